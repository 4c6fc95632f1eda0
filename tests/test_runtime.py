"""The front door."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from scripted import EOS, TOKENIZER, Texts, encode, follow, grants, is_clean, same_documents, small_model, small_runtime

from ds2ds import (
    CheckpointError,
    ConfigError,
    CorpusError,
    DocumentClosed,
    DocumentCorpus,
    DocumentOpened,
    Done,
    DS2DSModel,
    GenerationConfig,
    GenerationError,
    GenerationResult,
    LinkClosed,
    Runtime,
    TokenWritten,
)
from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.model.checkpoint import save_checkpoint
from ds2ds.native import operations as native

OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "seed": 1, "logprobs": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    documents = [SourceDocument("A", "about A"), SourceDocument("B", "see [a](A)")]
    write_corpus(out, documents, tokenizer_name="bytes", tokenizer=TOKENIZER, search=False)
    return out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small"
    save_checkpoint(small_model(layout_policy="identifier_prefix"), path)
    return path


# The calls of the issue


def test_the_front_door_exactly() -> None:
    """Of another size only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DS2DSModel.from_config(vocab_size=50257, num_layers=2, model_dim=32, num_heads=4, max_seq_len=2048)
    runtime = Runtime(model, tokenizer=None, layout_policy="null", device=None)
    tokens = runtime.tokenizer.encode("see [the compiler](compiler). It")
    result = runtime.generate(
        prompt_tokens=tokens, corpus=DocumentCorpus("demo"), max_new_tokens=4, temperature=0.0, logprobs=True
    )
    assert isinstance(result, GenerationResult)
    root = result.root_document
    assert root.tokens[: len(tokens)] == tokens and len(root.tokens) == len(tokens) + 4
    assert root.finish_reason == "max_new_tokens"
    assert root.token_logprobs.dtype == np.float32 and root.token_logprobs.shape == (len(root.tokens),)
    assert np.isnan(root.token_logprobs).sum() == len(tokens)
    assert [title for _, title, _ in grants(root)] == ["compiler"]
    assert [(document.title, document.source) for document in result.auxiliary_documents] == [("compiler", "corpus")]
    assert runtime.tokenizer.name == "gpt2" and result.generation_config.temperature == 0.0
    assert set(result.trace.seconds) == {"prefill", "decode", "sampling", "total"}
    assert is_clean(runtime)


def test_the_default_arena_is_not_paid_for_before_it_is_used() -> None:
    assert Runtime(small_model(), TOKENIZER).engine.store.arena.slots * 512 == 2**30


def test_text_or_tokens() -> None:
    runtime = small_runtime()
    by_text = runtime.generate("some text", **OPTIONS)
    by_tokens = runtime.generate(prompt_tokens=encode("some text"), **OPTIONS)
    same_documents(by_text.get_all_documents(), by_tokens.get_all_documents())
    assert by_text.root_document.text.startswith("some text")
    for wrong in ({}, {"prompt": "p", "prompt_tokens": [1]}):
        with pytest.raises(ConfigError, match="give prompt or prompt_tokens, and not both"):
            runtime.generate(**wrong)


@pytest.mark.parametrize("empty", [{"prompt": ""}, {"prompt_tokens": []}])
def test_an_empty_prompt_starts_from_eos(empty: dict[str, Any]) -> None:
    root = small_runtime().generate(**empty, **OPTIONS).root_document
    assert root.tokens[0] == EOS and len(root.tokens) > 1 and np.isnan(root.token_logprobs[0])


def test_a_prompt_longer_than_the_context() -> None:
    runtime = small_runtime()
    with pytest.raises(ValueError, match="the prompt has 21 tokens, more than max_context_length 20"):
        runtime.generate("x" * 21, max_context_length=20)
    assert runtime.generate("x" * 20, max_context_length=20).root_document.finish_reason == "context_full"
    assert is_clean(runtime)


def test_a_context_longer_than_the_model() -> None:
    with pytest.raises(ConfigError, match="max_context_length must be at most the model's max_seq_len 512, got 600"):
        small_runtime().generate("p", max_context_length=600)
    assert small_runtime().generate("p", max_new_tokens=1).generation_config.max_context_length == 512


def test_settings_as_config_and_as_keywords() -> None:
    runtime = small_runtime()
    config = GenerationConfig(max_new_tokens=5, max_context_length=100, eos_token_id=EOS, seed=2)
    assert runtime.generate("p", config=config).generation_config == config
    changed = runtime.generate("p", config=config, max_new_tokens=3)
    assert changed.generation_config == config.with_overrides(max_new_tokens=3)
    assert config.max_new_tokens == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be positive, got -1"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"tempature": 1.0}, r"unknown generation settings \['tempature'\]"),
        ({"config": {"seed": 1}}, "config must be a GenerationConfig, got dict"),
        ({"device": "abacus"}, "device must be 'cpu' or 'cuda'"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not here"),
        ({"corpus": 5}, "corpus must be a path, 'demo', or have has_document and get_document, got int"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    runtime = small_runtime()
    for call in (runtime.generate, runtime.stream):
        with pytest.raises(ConfigError, match=message):
            call("p", **settings)
    with pytest.raises(ConfigError, match=message):
        runtime.generate_batch(["p"], **settings)
    assert is_clean(runtime)


def test_a_title_puts_its_heading_before_the_prompt() -> None:
    runtime = small_runtime("identifier_prefix")
    root = runtime.generate("text", title="Big O", **OPTIONS).root_document
    assert root.title == "Big O" and root.text.startswith("# Big O\n\ntext")


# Corpora


@pytest.mark.parametrize("kind", ["object", "path", "string", "corpus"])
def test_a_corpus_of_any_kind(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [b](B) x"})
    corpus: Any = {
        "object": Texts({"A": "about A", "B": "see [a](A)"}),
        "path": folder,
        "string": str(folder),
        "corpus": DocumentCorpus(folder),
    }[kind]
    result = small_runtime().generate("p", corpus=corpus, max_link_depth=2)
    assert [(d.title, d.text) for d in result.auxiliary_documents] == [("A", "about A"), ("B", "see [a](A)")]


def test_no_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [b](B) x", "B": "made up"})
    result = small_runtime().generate("p", corpus=None)
    assert [(d.source, d.text) for d in result.auxiliary_documents] == [("generated", "made up")]


def test_a_corpus_that_is_not_there(tmp_path: Path) -> None:
    runtime = small_runtime()
    with pytest.raises(CorpusError):
        runtime.generate("p", corpus=tmp_path / "none")
    assert is_clean(runtime)


def test_a_corpus_of_another_vocabulary() -> None:
    """The same tokenizer, but a model that knows 264 of its ids; the prompt is spelled in those."""
    runtime = Runtime(small_model(), arena_tokens=4096)
    spelled = [token for letter in "see [it](compiler)" for token in runtime.tokenizer.encode(letter)]
    with pytest.raises(CorpusError, match=r"document '.*' would hold token id .* outside the model's vocabulary"):
        runtime.generate(prompt_tokens=spelled, corpus="demo", eos_token_id=0)
    assert is_clean(runtime)


def test_a_corpus_of_another_tokenizer() -> None:
    runtime = small_runtime()
    with pytest.raises(ConfigError, match="the corpus was made with tokenizer 'gpt2', the runtime has 'bytes'"):
        runtime.generate("p", corpus="demo")
    assert is_clean(runtime)


# stream


def test_events_tell_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [a](A), [q](Q) é", "Q": "on 🦉"})
    runtime = small_runtime()
    corpus = Texts({"A": "about A"})
    events = list(runtime.stream("p", corpus=corpus, logprobs=True, seed=1))
    result = runtime.generate("p", corpus=corpus, logprobs=True, seed=1)
    assert isinstance(events[-1], Done) and sum(isinstance(event, Done) for event in events) == 1
    same_documents(events[-1].result.get_all_documents(), result.get_all_documents())

    documents = {document.title: document for document in events[-1].result.get_all_documents()}
    opened = {event.title: event for event in events if isinstance(event, DocumentOpened)}
    closed = {event.title: event for event in events if isinstance(event, DocumentClosed)}
    assert list(opened) == ["root", "A", "Q"] and list(closed) == ["A", "Q", "root"]
    assert opened.keys() == closed.keys() == documents.keys()
    for title, document in documents.items():
        event = opened[title]
        assert (event.source, event.depth, event.parent) == (document.source, document.depth, document.parent_title)
        written = [e for e in events if isinstance(e, TokenWritten) and e.title == title]
        assert event.text + "".join(e.text for e in written) == document.text
        start = len(document.tokens) - len(written)
        assert [e.token for e in written] == document.tokens[start:]
        np.testing.assert_allclose([e.logprob for e in written], document.token_logprobs[start:], rtol=1e-6)
        assert closed[title].finish_reason == document.finish_reason
        same_documents([closed[title].document], [document], tolerance=0)
        inside = events[events.index(event) : events.index(closed[title])]
        assert all(e in inside for e in written)
    links = [event for event in events if isinstance(event, LinkClosed)]
    assert [(e.position, e.target, None) for e in links] == grants(documents["root"])
    assert [(e.text, e.outcome) for e in links] == [("a", "corpus"), ("q", "generated")]


def test_type_checkers_know_that_a_stream_can_be_closed() -> None:
    assert get_origin(get_type_hints(Runtime.stream)["return"]) is Generator


def test_events_come_as_they_happen() -> None:
    runtime = small_runtime()
    events = runtime.stream("p", max_new_tokens=50, seed=1, top_k=200)
    passes = 0
    for event in events:
        if isinstance(event, TokenWritten):
            passes += 1
            (job,) = runtime.engine.running
            assert job.trace.forward_passes == passes
            if passes == 3:
                break
    events.close()
    assert passes == 3 and is_clean(runtime)


@pytest.mark.parametrize("read", [0, 1, 4])
def test_closing_a_stream_frees_everything(read: int) -> None:
    runtime = small_runtime()
    events = runtime.stream("see [q](Q)", max_new_tokens=50)
    for _ in range(read):
        next(events)
    events.close()
    assert is_clean(runtime)
    assert runtime.generate("p", max_new_tokens=1).root_document


def test_a_stream_that_is_dropped_frees_everything() -> None:
    runtime = small_runtime()
    next(runtime.stream("see [q](Q)", max_new_tokens=50))
    assert is_clean(runtime)


def test_streams_side_by_side_tell_all_their_events() -> None:
    runtime = small_runtime()
    alone = [list(runtime.stream(prompt, **OPTIONS)) for prompt in ("one", "two")]
    streams = [runtime.stream(prompt, **OPTIONS) for prompt in ("one", "two")]
    first = [next(streams[0])]
    second = list(streams[1])  # which also drives the first one to its end, or near it
    first += list(streams[0])
    for together, by_itself in zip((first, second), alone, strict=True):
        assert [type(event) for event in together] == [type(event) for event in by_itself]
        written = [[e.token for e in events if isinstance(e, TokenWritten)] for events in (together, by_itself)]
        assert written[0] == written[1]
    assert is_clean(runtime)


def test_a_stream_that_fails_tells_what_came_before() -> None:
    class Broken(Texts):
        def get_document(self, title: str) -> Any:
            raise OSError("the disk is gone")

    runtime = small_runtime()
    events = runtime.stream("p [a](A)", corpus=Broken({"A": "x"}))
    assert isinstance(next(events), DocumentOpened)
    with pytest.raises(OSError, match="the disk is gone"):
        list(events)
    assert is_clean(runtime)


def test_what_is_called_in_a_step_cannot_begin_another(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "x[a](A)y"})
    runtime = small_runtime()

    class Scoring(Texts):
        def get_document(self, title: str) -> Any:
            runtime.score(["how likely?"])
            return super().get_document(title)

    corpus = Scoring({"A": "about A"})
    results = runtime.generate_batch(["one", "two"], corpus, return_errors=True, **OPTIONS)
    for error in results:  # it would compute what the other one waits for, too
        assert isinstance(error, GenerationError) and "in the midst of a step, as a corpus" in str(error)
    with pytest.raises(GenerationError, match="in the midst of a step"):
        runtime.warm(["A"], Texts({"A": "about A"}), progress=lambda done, total: runtime.score(["p"]))
    assert is_clean(runtime)


# generate_batch


def test_a_batch_of_texts_and_tokens() -> None:
    runtime = small_runtime()
    prompts = ["one", encode("two"), np.array(encode("three"))]
    results = runtime.generate_batch(prompts, **OPTIONS)
    for result, prompt in zip(results, ["one", "two", "three"], strict=True):
        same_documents(result.get_all_documents(), runtime.generate(prompt, **OPTIONS).get_all_documents())
    assert runtime.generate_batch([]) == [] and is_clean(runtime)


def test_one_string_is_no_batch() -> None:
    with pytest.raises(ConfigError, match="prompts must be a sequence of prompts, got one string"):
        small_runtime().generate_batch("prompt")


def test_what_is_no_batch_or_no_prompt_is_named() -> None:
    runtime = small_runtime()
    with pytest.raises(ConfigError, match="prompts must be a sequence of prompts, got NoneType"):
        runtime.generate_batch(None)  # type: ignore[arg-type]
    prompts: Any = ["p", None]
    with pytest.raises(ConfigError, match="prompts must be texts or token ids, got None at 1"):
        runtime.generate_batch(prompts, **OPTIONS)
    _, error = runtime.generate_batch(prompts, return_errors=True, **OPTIONS)
    assert isinstance(error, ConfigError)


def test_without_a_seed_the_requests_of_a_batch_differ() -> None:
    torch.manual_seed(0)
    first, second = small_runtime().generate_batch(["p", "p"], max_new_tokens=12)
    assert first.root_document.tokens != second.root_document.tokens
    assert first.generation_config.seed != second.generation_config.seed


def test_equal_prompts_with_one_seed_give_equal_documents() -> None:
    first, second = small_runtime().generate_batch(["p", "p"], max_new_tokens=12, seed=1)
    same_documents(first.get_all_documents(), second.get_all_documents())


def test_errors_in_a_batch() -> None:
    runtime = small_runtime(arena_tokens=20_000)
    corpus = Texts({"A": "x"})
    corpus.get_document = lambda title: None  # type: ignore[method-assign]
    prompts = ["one", "see [a](A)", "three", "[a](A)"]
    results = runtime.generate_batch(prompts, corpus=corpus, return_errors=True, **OPTIONS)
    assert [type(result) for result in results] == [GenerationResult, CorpusError, GenerationResult, CorpusError]
    with pytest.raises(CorpusError, match="the corpus has document 'A', but gave None for it"):
        runtime.generate_batch(prompts, corpus=corpus, **OPTIONS)
    assert is_clean(runtime)


def test_a_prompt_that_cannot_be_started_leaves_nothing_of_the_batch() -> None:
    runtime = small_runtime()
    with pytest.raises(ValueError, match="the prompt has 600 tokens"):
        runtime.generate_batch(["one", "x" * 600], **OPTIONS)
    assert is_clean(runtime)


def test_a_prompt_longer_than_the_window_is_one_requests_error() -> None:
    runtime, prompts = small_runtime(), ["one", "x" * 600]
    for results in (
        runtime.generate_batch(prompts, return_errors=True, **OPTIONS),
        runtime.score(prompts, return_errors=True),
    ):
        assert [type(result) for result in results] == [GenerationResult, ConfigError]
        assert str(results[1]) == "the prompt has 600 tokens, more than max_context_length 512"
    assert is_clean(runtime)


def test_threads_share_a_runtime() -> None:
    runtime, corpus = small_runtime(), Texts({"A": "about A", "B": "about B"})
    prompts = ["see [a](A)", "see [b](B)", "[a](A) and [b](B)", "none"] * 2
    alone = [runtime.generate(prompt, corpus=corpus, **OPTIONS) for prompt in prompts]

    def generate(prompt: str) -> GenerationResult:
        return runtime.generate(prompt, corpus=corpus, **OPTIONS)

    def stream(prompt: str) -> GenerationResult:
        *events, done = runtime.stream(prompt, corpus=corpus, **OPTIONS)
        assert isinstance(done, Done) and isinstance(events[-1], DocumentClosed)
        written = [event.token for event in events if isinstance(event, TokenWritten)]
        assert written == done.result.root_document.tokens[-len(written) :]
        return done.result

    for work in (generate, stream):
        with ThreadPoolExecutor(len(prompts)) as threads:
            for result, expected in zip(threads.map(work, prompts), alone, strict=True):
                same_documents(result.get_all_documents(), expected.get_all_documents())
    assert is_clean(runtime)


# from_pretrained and the model's own door


def test_from_pretrained(checkpoint: Path) -> None:
    runtime = Runtime.from_pretrained(checkpoint, device="cpu", tokenizer=TOKENIZER, arena_tokens=4096)
    assert runtime.model.dtype == torch.float32 and runtime.model.device.type == "cpu"
    # The layout is the checkpoint's, and so are the weights.
    result = runtime.generate("text", title="Big O", **OPTIONS)
    assert result.root_document.text.startswith("# Big O\n\ntext")
    expected = small_runtime("identifier_prefix").generate("text", title="Big O", **OPTIONS)
    same_documents(result.get_all_documents(), expected.get_all_documents())


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.bfloat16), ("bfloat16", torch.bfloat16), ("float64", torch.float64)],
)
def test_dtypes(dtype: Any, expected: torch.dtype, checkpoint: Path) -> None:
    runtime = Runtime.from_pretrained(str(checkpoint), "cpu", dtype, tokenizer=TOKENIZER, arena_tokens=4096)
    assert runtime.model.dtype == runtime.engine.store.arena.data.dtype == expected
    assert len(runtime.generate("p", max_new_tokens=3, eos_token_id=263).root_document.tokens) > 1


@pytest.mark.parametrize("dtype", ["int8", "half-float", "nothing", 5, torch.int64])
def test_unknown_dtypes(dtype: Any, checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"dtype must be float32, bfloat16, float16 or float64, got "):
        Runtime.from_pretrained(checkpoint, "cpu", dtype)


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "mps"])
def test_unknown_devices(device: str, checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="device"):
        Runtime.from_pretrained(checkpoint, device)
    with pytest.raises(ConfigError, match="device"):
        Runtime(small_model(), TOKENIZER, device=device)


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config.json in"):
        Runtime.from_pretrained(tmp_path / "none", "cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": 5}, "tokenizer must be None, have encode and decode"),
        ({"arena_tokens": 0}, "arena_tokens must be a positive integer, got 0"),
        ({"model": torch.nn.Linear(1, 1)}, "model must be a DS2DSModel, got Linear"),
    ],
)
def test_what_a_runtime_cannot_be_made_of(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Runtime(**{"model": small_model(), **settings})


def test_an_unknown_layout() -> None:
    with pytest.raises(ConfigError, match=r"layout_policy must be one of .*, got 'nothing'"):
        Runtime(small_model(), TOKENIZER, "nothing", arena_tokens=64).generate("p")


def test_a_checkpoint_is_loaded_with_a_layout(tmp_path: Path, checkpoint: Path) -> None:
    save_checkpoint(small_model(), tmp_path)  # which says none
    options: dict[str, Any] = {"tokenizer": TOKENIZER, "arena_tokens": 64, "layout_policy": "bos_eos"}
    assert Runtime.from_pretrained(tmp_path, "cpu", **options).limits.has_marks
    with pytest.raises(ConfigError, match="layout_policy is 'bos_eos', but the model was trained with"):
        Runtime.from_pretrained(checkpoint, "cpu", **options)


def test_numbers_of_numpy_are_taken_as_pythons() -> None:
    sizes = {"arena_tokens": 2048, "step_tokens": 16, "max_running": 2, "max_queue": 3}
    given: dict[str, Any] = {name: np.int64(size) for name, size in sizes.items()}
    runtime = Runtime(small_model(), TOKENIZER, **given)
    assert {name: value for name, value in runtime.limits.to_dict().items() if name in sizes} == {
        name: value for name, value in sizes.items() if name != "step_tokens"
    }
    assert all(type(value) is int for name, value in runtime.limits.to_dict().items() if name in sizes)
    priority: Any = np.int32(1)
    assert runtime.generate("p", priority=priority, **OPTIONS).root_document.tokens


def test_the_models_generate_delegates(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(layout_policy="identifier_prefix")
    corpus = Texts({"A": "about A"})
    options = {**OPTIONS, "title": "Root", "max_link_depth": 1}
    result = model.generate(prompt="see [a](A)", corpus=corpus, tokenizer=TOKENIZER, **options)
    expected = small_runtime("identifier_prefix").generate("see [a](A)", corpus=corpus, **options)
    same_documents(result.get_all_documents(), expected.get_all_documents())
    assert result.auxiliary_documents[0].text == "# A\n\nabout A"
    by_tokens = model.generate(prompt_tokens=encode("p"), max_new_tokens=2, temperature=0.0, tokenizer=TOKENIZER)
    assert len(by_tokens.root_document.tokens) <= 3
    with pytest.raises(ConfigError, match="unknown generation settings"):
        model.generate(prompt="p", tokenizer=TOKENIZER, beams=2)


def test_a_batch_can_return_the_error_of_a_prompt_that_cannot_start() -> None:
    made = Runtime(small_model(), tokenizer=TOKENIZER)
    good, bad = made.generate_batch([[70, 71], [10_000]], max_new_tokens=3, seed=1, return_errors=True)
    assert len(good.root_document.tokens) == 5
    assert isinstance(bad, ConfigError) and "10000" in str(bad)
    with pytest.raises(ConfigError, match="10000"):
        made.generate_batch([[70, 71], [10_000]], max_new_tokens=3, seed=1)
    made.engine.check_integrity()


def test_int8_weights_write_nearly_what_floats_do() -> None:
    runtime = Runtime.from_pretrained("demo", "cpu", weights="int8")
    floats = Runtime.from_pretrained("demo", "cpu")
    settings = {"max_new_tokens": 12, "temperature": 0.0, "max_link_depth": 0, "logprobs": True}
    result, expected = (one.generate("# Incremental linker\n\n", **settings) for one in (runtime, floats))
    ours, theirs = (torch.tensor(r.root_document.token_logprobs[-12:]) for r in (result, expected))
    assert 0 < (ours - theirs).abs().max() < 0.2
    with pytest.raises(ConfigError, match=r"weights must be one of .* got 'int3'"):
        Runtime.from_pretrained("demo", "cpu", weights="int3")


def test_batch_invariance_is_for_float32_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"batch_invariant needs float32 on a CPU, got torch\.bfloat16 on cpu"):
        Runtime.from_pretrained("demo", "cpu", "bfloat16", batch_invariant=True)
    with pytest.raises(ConfigError, match="batch_invariant must be True or False, got 'no'"):
        Runtime.from_pretrained("demo", "cpu", batch_invariant="no")


def test_batch_invariance_needs_the_compiled_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds2ds.native.operations.available", lambda: False)
    with pytest.raises(ConfigError, match="batch_invariant needs the compiled functions"):
        Runtime.from_pretrained("demo", "cpu", batch_invariant=True)


@pytest.mark.skipif(not native.available(), reason="the C files could not be compiled")
def test_batch_invariant_requests_give_the_same_bits_alone_and_together() -> None:
    runtime = Runtime.from_pretrained("demo", "cpu", batch_invariant=True, document_store=False)
    prompts = ["# Stack\n\n", "A [linker](linker) joins", "# Queue\n\nIn a", "The [kernel](kernel) of", "# Heap\n\n"]
    settings = {"corpus": "demo", "max_new_tokens": 8, "temperature": 0.8, "seed": 3, "logprobs": True}
    together = runtime.generate_batch(prompts, **settings)
    for prompt, result in zip(prompts, together, strict=True):
        alone = runtime.generate(prompt, **settings)
        assert alone.root_document.tokens == result.root_document.tokens
        both = [torch.tensor(r.root_document.token_logprobs[-8:]) for r in (alone, result)]
        assert torch.equal(*both)
