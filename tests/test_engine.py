"""The engine: many requests in one batch, each as if alone, and nothing left behind."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scripted import (
    EOS,
    TOKENIZER,
    Texts,
    agrees_with_oracle,
    counting,
    encode,
    follow,
    grants,
    is_clean,
    same_documents,
    small_model,
    small_runtime,
)

from ds2ds import ArenaFullError, DS2DSModel, GenerationConfig, GenerationError, GenerationResult, Runtime, TokenWritten
from ds2ds.attention.flex_kernel import check_gpu
from ds2ds.engine import arena_size
from ds2ds.engine.arena_size import default_arena_tokens
from ds2ds.engine.engine import Engine

TEXTS = {
    "A": "about A, with [b](B) and more",
    "B": "about B",
    "Long": "a long one " * 12,
    "Loop": "to [a](A) and [loop](Loop) and [missing](Missing) x",
}
PROMPTS = [
    "p",
    "see [a](A) and [l](Long) now",
    "x" * 70,
    "[l](Loop)",
    "[q](Unknown title) [b](B), [b](B)",
    "[x](B)[y](C)",
]
OPTIONS: dict[str, Any] = {"max_new_tokens": 9, "max_link_depth": 2, "seed": 3, "logprobs": True}


def config(**options: Any) -> GenerationConfig:
    options = {"max_context_length": 300, "max_tokens_per_document": 100, "eos_token_id": EOS, "seed": 3, **options}
    return GenerationConfig(**options)


# A token is computed once


def test_a_step_passes_only_what_is_new_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [a](A). So"})
    runtime = small_runtime()
    with counting(monkeypatch) as rows:
        result = runtime.generate("pp", corpus=Texts({"A": "about A"}))
    link, rest = len(encode(" [a](A).")), len(encode(" So"))
    # The prompt; each token of the link, its last one too, which does not read the target; the target; the rest.
    assert rows == [2, *[1] * link, 7, *[1] * rest]
    assert result.trace.forward_passes == len(rows)
    assert result.trace.tokens_prefilled + result.trace.tokens_decoded == sum(rows)
    # All but the last token, which nothing was to follow.
    assert sum(rows) == sum(len(document.tokens) for document in result.get_all_documents()) - 1


def test_a_document_is_computed_once_however_many_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [q](Q) [b](B) x", "Q": " [b](B) [a](A) x"})
    runtime = small_runtime()
    corpus = Texts({"A": "on [b](B) x", "B": "about B"})
    with counting(monkeypatch) as rows:
        result = runtime.generate("[b](B)", corpus=corpus, max_link_depth=3)
    readers = [d.title for d in result.get_all_documents() if "B" in [title for _, title, _ in grants(d)]]
    assert readers == ["root", "A", "Q"]
    written = {"root", "Q"}  # the last token of a written document is computed only if it is read
    unread = sum(1 for document in result.get_all_documents() if document.title in written - {"Q"})
    assert sum(rows) == sum(len(document.tokens) for document in result.get_all_documents()) - unread


def test_what_is_never_read_is_never_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A's link closes in the last token that may be written."""
    follow(monkeypatch, {"": "see [a](A)"})
    runtime = small_runtime()
    with counting(monkeypatch) as rows:
        runtime.generate("p", corpus=Texts({"A": "about A"}), max_new_tokens=len(encode("see [a](A)")))
    assert rows == [1] * len(encode("see [a](A)"))


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_prefill_in_chunks_equals_one_go(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small_runtime(document_store=False, step_tokens=512)
    prompt, corpus = "see [a](A) and [l](Long) " + "x" * 70, Texts(TEXTS)
    with counting(monkeypatch) as whole_rows:
        whole = runtime.generate(prompt, corpus=corpus, **OPTIONS)
    in_steps = small_runtime(document_store=False, step_tokens=chunk)
    with counting(monkeypatch) as rows:
        chunked = in_steps.generate(prompt, corpus=corpus, **OPTIONS)
    assert max(whole_rows) > 100 and max(rows) == chunk and sum(rows) == sum(whole_rows)
    same_documents(whole.get_all_documents(), chunked.get_all_documents())
    assert chunked.trace.tokens_prefilled == whole.trace.tokens_prefilled
    assert chunked.trace.tokens_decoded == whole.trace.tokens_decoded
    agrees_with_oracle(chunked)


def test_one_token_of_prompt_is_prefill_too() -> None:
    trace = small_runtime().generate("p", max_new_tokens=1).trace
    assert (trace.tokens_prefilled, trace.tokens_decoded) == (1, 0)


# Batches


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_of_a_batch_gets_what_it_gets_alone(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**OPTIONS, "temperature": temperature}
    runtime = small_runtime(arena_tokens=20_000, document_store=False)
    with counting(monkeypatch) as rows:
        together = runtime.generate_batch(PROMPTS, corpus=Texts(TEXTS), **options)
        passes = len(rows)
        alone = [runtime.generate(prompt, corpus=Texts(TEXTS), **options) for prompt in PROMPTS]
    assert passes < (len(rows) - passes) / 2  # they did share passes
    for one, other in zip(together, alone, strict=True):
        same_documents(one.get_all_documents(), other.get_all_documents())
        for name in ("forward_passes", "tokens_prefilled", "tokens_decoded", "links_found", "links_from_corpus"):
            assert getattr(one.trace, name) == getattr(other.trace, name)
        agrees_with_oracle(one)
    assert is_clean(runtime)


def test_requests_that_differ_in_settings_share_a_batch() -> None:
    runtime = small_runtime(arena_tokens=20_000)
    generator = runtime._generator
    settings = [
        {"temperature": 0.0},
        {"temperature": 1.5, "top_k": 5},
        {"top_p": 0.5, "repetition_penalty": 1.3},
        {"min_p": 0.1, "max_new_tokens": 3},
    ]
    configs = [
        config(seed=index, max_new_tokens=8, logprobs=True).with_overrides(**s) for index, s in enumerate(settings)
    ]
    running = [generator.start("some prompt", None, None, one) for one in configs]
    while not all(one.job.done for one in running):
        runtime.engine.step()
    for one, request in zip(configs, running, strict=True):
        alone = runtime.generate("some prompt", config=one)
        same_documents(request.result().get_all_documents(), alone.get_all_documents())


# Cancelling


def test_cancelling_frees_the_arena_and_leaves_the_others_alone() -> None:
    runtime = small_runtime(arena_tokens=20_000)
    start = runtime._generator.start
    running = [start(prompt, None, Texts(TEXTS), config(**OPTIONS)) for prompt in PROMPTS[:3]]
    for _ in range(4):
        runtime.engine.step()
    held = runtime.engine.store.arena.allocator.used
    runtime.engine.cancel(running[1].job)
    assert running[1].job.done and running[1].job.error is None
    assert inspect.getgeneratorstate(running[1].job.coroutine) == inspect.GEN_CLOSED
    assert 0 < runtime.engine.store.arena.allocator.used < held
    runtime.engine.check_integrity()
    runtime.engine.cancel(running[1].job)  # no effect
    for index in (0, 2):
        for _ in runtime.engine.run(running[index].job):
            pass
        alone = runtime.generate(PROMPTS[index], corpus=Texts(TEXTS), config=config(**OPTIONS))
        same_documents(running[index].result().get_all_documents(), alone.get_all_documents())
    assert is_clean(runtime)


def test_a_queued_request_can_be_cancelled() -> None:
    runtime = small_runtime()
    running = runtime._generator.start("p", None, None, config())
    runtime.engine.cancel(running.job)
    runtime.engine.step()
    assert running.job.done and is_clean(runtime)


def test_leaving_a_run_early_cancels_it() -> None:
    runtime = small_runtime()
    running = runtime._generator.start("p", None, None, config())
    steps = runtime.engine.run(running.job)
    next(steps)
    assert runtime.engine.running and runtime.engine.store.arena.allocator.used
    steps.close()
    assert running.job.done and is_clean(runtime)


def test_integrity_sees_documents_that_are_held_for_nobody() -> None:
    runtime = small_runtime()
    running = runtime._generator.start("p", None, None, config(), "Title")
    runtime.engine.step()
    runtime.engine.check_integrity()
    runtime.engine.running.clear()
    with pytest.raises(RuntimeError, match=r"documents \['Title'\] are in use, but no request runs that has them"):
        runtime.engine.check_integrity()
    runtime.engine.running.append(running.job)
    runtime.engine.cancel(running.job)
    assert is_clean(runtime)


# Errors of one request


class Broken(Texts):
    """A corpus that has a document and fails to give it."""

    def get_document(self, title: str) -> np.ndarray | None:
        if title == "Broken":
            raise OSError("the disk is gone")
        return super().get_document(title)


def test_a_corpus_that_raises_ends_its_request_alone() -> None:
    runtime = small_runtime(arena_tokens=20_000)
    corpus = Broken({**TEXTS, "Broken": "x"})
    prompts = ["see [a](A)", "see [a](A) and [x](Broken)", "[b](B)"]
    results = runtime.generate_batch(prompts, corpus=corpus, return_errors=True, **OPTIONS)
    assert isinstance(results[1], OSError) and str(results[1]) == "the disk is gone"
    for index in (0, 2):
        alone = runtime.generate(prompts[index], corpus=corpus, **OPTIONS)
        same_documents(results[index].get_all_documents(), alone.get_all_documents())
    assert is_clean(runtime)
    with pytest.raises(OSError, match="the disk is gone"):
        runtime.generate(prompts[1], corpus=corpus, **OPTIONS)
    assert is_clean(runtime)


def test_documents_more_levels_deep_than_pythons_stack_end_their_request_alone() -> None:
    runtime = Runtime(small_model(max_seq_len=8192), TOKENIZER, arena_tokens=30_000)
    chain = Texts({str(n): f"[a]({n + 1}). x" for n in range(600)})
    options = {**OPTIONS, "max_context_length": 8192, "max_link_depth": 600, "max_auxiliary_documents": 600}
    prompts = ["p", "[a](0)", "[a](599)"]
    one, wrong, other = runtime.generate_batch(
        prompts, chain, return_errors=True, allow_corpus_fallback=False, **options
    )
    assert isinstance(wrong, GenerationError) and "lower max_link_depth" in str(wrong)
    assert [type(result) for result in (one, other)] == [GenerationResult] * 2
    assert is_clean(runtime)


@pytest.mark.parametrize("amid", [False, True])
def test_a_model_of_another_dtype_than_the_arena_is_not_computed_with(amid: bool) -> None:
    """Compiled code would write beyond its buffers."""
    runtime = Runtime(copy.deepcopy(small_model()), TOKENIZER, arena_tokens=4096)
    before = runtime.generate("p", max_new_tokens=5, seed=1)
    events = runtime.stream("q", max_new_tokens=50, seed=1)
    while amid and not isinstance(next(events), TokenWritten):
        pass
    runtime.model.to(torch.bfloat16)
    with pytest.raises(
        GenerationError, match=r"is torch\.bfloat16 on cpu, but .* made with torch\.float32 on cpu: move"
    ):
        list(events)
    runtime.model.to(torch.float32).load_state_dict(small_model().state_dict())
    after = runtime.generate("p", max_new_tokens=5, seed=1)
    assert after.root_document.tokens == before.root_document.tokens and is_clean(runtime)


@pytest.mark.parametrize("after_some_tokens", [False, True])
def test_nan_ends_its_request_alone(after_some_tokens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token's embedding is NaN; a request that meets it fails, the others do not notice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {"num_layers": 2, "model_dim": 32, "num_heads": 2, "max_seq_len": 512, "weight_tying": False}
        model = DS2DSModel.from_config(vocab_size=TOKENIZER.vocab_size, **settings)
    bad = encode("!")[0]
    with torch.no_grad():
        model.embedding.weight[bad] = torch.nan
    runtime = Runtime(model, TOKENIZER, arena_tokens=20_000)
    prompts = ["fine", "bad!" if not after_some_tokens else "[q](Broken!) x", "fine too"]
    corpus = Texts({"Broken!": "x"} if not after_some_tokens else {"Broken!": "a!b"})
    results = runtime.generate_batch(prompts, corpus=corpus, return_errors=True, max_new_tokens=8, seed=1)
    assert isinstance(results[1], GenerationError)
    assert str(results[1]).startswith("the model gave no usable logits for token ")
    assert "check the weights and the dtype" in str(results[1])
    assert all(isinstance(results[index], GenerationResult) for index in (0, 2))
    alone = runtime.generate(prompts[2], max_new_tokens=8, seed=1)
    same_documents(results[2].get_all_documents(), alone.get_all_documents())
    assert is_clean(runtime)


# A full arena


def test_a_request_too_big_for_the_arena_names_need_and_capacity() -> None:
    runtime = small_runtime(arena_tokens=64)
    message = "document 'root' needs 112 slots of the KV arena; 64 of 64 can be had: give the runtime more arena_tokens"
    with pytest.raises(ArenaFullError, match=message):
        runtime.generate("x" * 100, config=config(max_tokens_per_document=110))
    assert is_clean(runtime)
    assert runtime.generate("x" * 20, config=config(max_tokens_per_document=40, max_link_depth=0)).root_document


def test_a_request_waits_for_room_while_others_go_on() -> None:
    runtime = small_runtime(arena_tokens=128)
    options = {**OPTIONS, "max_link_depth": 0}
    large, small = (config(max_tokens_per_document=most, **options) for most in (120, 16))
    running = [runtime._generator.start(text, None, None, c) for text, c in [("x" * 110, large), ("p", small)]]
    for one in running:
        one.job.need = 0  # so that both start, though there is room for one
    waited = 0
    while not all(one.job.done for one in running):
        runtime.engine.step()
        waited += len(runtime.engine.running) == 2 and not running[1].job.touched
    assert waited > 5
    for one, text, settings in zip(running, ["x" * 110, "p"], [large, small], strict=True):
        assert one.job.error is None
        alone = runtime.generate(text, config=settings)
        same_documents(one.result().get_all_documents(), alone.get_all_documents())
    assert is_clean(runtime)


def test_of_requests_that_wait_for_each_others_room_the_newest_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [l](Long) x"})
    runtime = small_runtime(arena_tokens=128)
    corpora = [Texts({"Long": text * 40}) for text in "yz"]
    settings = config(max_tokens_per_document=48, logprobs=True)
    running = [runtime._generator.start("p", None, corpus, settings) for corpus in corpora]
    for one in running:
        one.job.need = 0
    suspended = 0
    while not all(one.job.done for one in running):
        runtime.engine.step()
        runtime.engine.check_integrity()
        suspended += running[1].job in runtime.engine.queue
    # 48 + 48 for the roots leave 32, and each wants 48 for its target.
    assert suspended
    for one, corpus in zip(running, corpora, strict=True):
        assert one.job.error is None
        alone = small_runtime().generate("p", corpus=corpus, config=settings)
        same_documents(one.result().get_all_documents(), alone.get_all_documents())
        agrees_with_oracle(one.result())
    assert is_clean(runtime)


def test_a_suspended_request_keeps_what_its_tokens_have_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A is evicted from the view after the request was suspended and computed anew in part: its grant must not go."""
    follow(monkeypatch, {"": " [a](A) one [b](B) two"})
    corpus = Texts({"A": "about A", "B": "about B"})
    settings = config(max_auxiliary_documents=1, logprobs=True)
    runtime = small_runtime()
    running = runtime._generator.start("p", None, corpus, settings)
    steps = 0
    while not running.job.done:
        runtime.engine.step()
        steps += 1
        if not running.job.done and running.job in runtime.engine.running:
            runtime.engine.scheduler._suspend(running.job)
            assert not runtime.engine.store.documents()
    assert steps > len(encode(" [a](A) one [b](B) two"))
    root = running.result().root_document
    assert [(title, end is None) for _, title, end in grants(root)] == [("A", False), ("B", True)]
    agrees_with_oracle(running.result())
    same_documents(
        running.result().get_all_documents(),
        small_runtime().generate("p", corpus=corpus, config=settings).get_all_documents(),
    )


def test_what_is_read_together_and_does_not_fit_is_an_error_and_no_endless_exchange() -> None:
    """C, in view, reads A and B, which were evicted: computing one must not drive out the other for ever."""
    texts = {"A": "a" * 30, "B": "b" * 30, "C": "[a](A)[b](B) c", "D": "d", "E": "e"}
    runtime = small_runtime(arena_tokens=48)
    settings = config(max_auxiliary_documents=3, max_link_depth=2)
    prompt = "[a](A)[b](B)[c](C)[d](D)[e](E)"
    running = runtime._generator.start(prompt, None, Texts(texts), settings)
    for _ in range(20):
        runtime.engine.step()
    assert running.job.done
    with pytest.raises(ArenaFullError, match="document 'root' needs 112 slots of the KV arena; 48 of 48 can be had"):
        raise running.job.error or AssertionError("it did not fail")
    assert is_clean(runtime)
    roomy = small_runtime().generate(prompt, corpus=Texts(texts), config=settings.with_overrides(logprobs=True))
    assert [title for _, title, _ in grants(roomy.get_document_by_title("C"))] == ["A", "B"]
    agrees_with_oracle(roomy)


def test_what_was_dropped_for_room_is_computed_again_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [a](A) 1 [b](B) 2 [a](A) 3"})
    texts = {"A": "about A " * 5, "B": "about B " * 5}
    options = {"max_auxiliary_documents": 1, "max_tokens_per_document": 60, "logprobs": True, "seed": 0}
    results, rows = [], []
    for arena_tokens in (64 + 48, 4096):
        runtime = small_runtime(arena_tokens=arena_tokens)
        with counting(monkeypatch) as counted:
            results.append(runtime.generate("p", corpus=Texts(texts), config=config(**options)))
        rows.append(sum(counted))
        assert is_clean(runtime)
    assert rows[0] == rows[1] + 40
    same_documents(results[0].get_all_documents(), results[1].get_all_documents())
    agrees_with_oracle(results[0])


# Admission


@pytest.mark.parametrize(("suspended", "together"), [(False, 5), (True, 2)])
def test_requests_start_while_there_is_room_for_them(suspended: bool, together: int) -> None:
    """A new one beside what the others hold and all that one may need, one that was suspended beside all they may."""
    settings = config(**OPTIONS, max_context_length=100, max_tokens_per_document=40, max_auxiliary_documents=1)
    need = 100 + 40 * 3 + 16 * 2
    runtime = small_runtime(arena_tokens=2 * need)
    assert runtime.engine.store.arena.slots == 2 * need // 16 * 16 + (16 if 2 * need % 16 else 0)
    running = [runtime._generator.start(f"prompt {index}", None, None, settings) for index in range(5)]
    for one in running:
        assert one.job.need == need
        one.job.suspended = suspended
    most, started = 0, []
    while not all(one.job.done for one in running):
        runtime.engine.step()
        most = max(most, len(runtime.engine.running))
        started += [one for one in running if one.job in runtime.engine.running and one not in started]
        runtime.engine.check_integrity()
    assert most == together and started == running  # first come, first served
    for index, one in enumerate(running):
        alone = runtime.generate(f"prompt {index}", config=settings)
        same_documents(one.result().get_all_documents(), alone.get_all_documents())
    assert is_clean(runtime)


@pytest.mark.parametrize("at_once", [True, False])
def test_what_runs_leaves_room_for_all_that_one_of_them_may_need(at_once: bool) -> None:
    settings = config(max_new_tokens=20, max_context_length=100, max_tokens_per_document=40, max_auxiliary_documents=1)
    runtime = small_runtime(arena_tokens=600)
    running = []
    for _ in range(13):
        running.append(runtime._generator.start("p" * 10, None, None, settings))
        if not at_once:
            runtime.engine.step()
    need, start = running[0].job.need, 32  # 10 given and 20 to write, in blocks of 16
    assert need == 100 + 40 * 2 + 16 * 2
    for _ in range(2):
        runtime.engine.step()
        assert len(runtime.engine.running) == (runtime.engine.store.arena.slots - need) // start == 12
        assert running[-1].job not in runtime.engine.running
    for one in running:
        for _ in runtime.engine.run(one.job):
            runtime.engine.check_integrity()
        assert one.job.error is None
    assert is_clean(runtime)


def test_room_is_left_for_the_largest_need_whoever_has_it() -> None:
    runtime = small_runtime(arena_tokens=608)
    first, second = (runtime._generator.start("p", None, None, config(max_new_tokens=4)) for _ in range(2))
    first.job.need, second.job.need = 608, 32
    runtime.engine.step()
    assert runtime.engine.running == [first.job]
    for one in (first, second):
        for _ in runtime.engine.run(one.job):
            pass
        assert one.job.error is None


def test_one_request_may_always_start() -> None:
    runtime = small_runtime(arena_tokens=64)
    running = runtime._generator.start("p", None, None, config(max_tokens_per_document=32, max_new_tokens=4))
    assert running.job.need > 64
    for _ in runtime.engine.run(running.job):
        pass
    assert running.job.error is None


def test_a_written_document_gives_back_what_it_reserved_and_did_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [q](Q) x", "Q": "short"})
    runtime = small_runtime()
    used = []
    for _ in runtime.stream("p", config=config(max_tokens_per_document=100)):
        used.append(runtime.engine.store.arena.allocator.used)
    assert max(used) == 112 + 112  # two documents in progress, 100 tokens each in blocks of 16
    assert 112 + 16 in used  # then Q has one block
    assert is_clean(runtime)


# The engine by itself


def test_default_arena() -> None:
    model = small_model()
    per_token = 2 * 2 * 32 * 4
    assert default_arena_tokens(model) == 2**30 // per_token
    monkey = pytest.MonkeyPatch()
    monkey.setattr(arena_size, "CPU_ARENA_BYTES", 1000)
    assert default_arena_tokens(model) == 4 * 512
    monkey.undo()


@pytest.mark.parametrize(("layers", "width", "most"), [(6, 256, 8_388_480), (12, 768, 1_898_437)])
def test_the_default_arena_of_a_large_gpu(layers: int, width: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what is free, but for a small model no more than FlexAttention reads."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (139_968_000_000, 150_000_000_000))
    shape = SimpleNamespace(num_layers=layers, model_dim=width, max_seq_len=2048)
    model = SimpleNamespace(config=shape, device=torch.device("cuda"), dtype=torch.bfloat16)
    slots = default_arena_tokens(model)  # type: ignore[arg-type]
    assert slots == most
    check_gpu(torch.empty(1, 2, width // 64, -(-slots // 128) * 128, 64, dtype=torch.bfloat16, device="meta"), 128)


@pytest.mark.parametrize("arena_tokens", [0, -5])
def test_an_arena_without_room(arena_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"arena_tokens must be a positive integer, got {arena_tokens}"):
        Engine(small_model(), arena_tokens)


def test_steps_are_taken_on_the_arenas_gpu_whichever_is_the_threads_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several GPUs, which are stood in for."""
    done: list[str] = []

    @contextlib.contextmanager
    def on(device: torch.device) -> Iterator[None]:
        done.append(f"on {device}")
        yield
        done.append("back")

    engine = small_runtime().engine
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(engine, "_step", lambda: done.append("step"))
    engine.step()
    assert done == ["step"]
    there = SimpleNamespace(data=SimpleNamespace(device=torch.device("cuda", 1)))
    monkeypatch.setattr(engine, "store", SimpleNamespace(arena=there))
    monkeypatch.setattr(engine, "decoder", SimpleNamespace(warm_up=lambda rows, penalised: done.append("warm up")))
    engine.step()
    engine.warm_up()
    assert done == ["step", "on cuda:1", "step", "back", "on cuda:1", "warm up", "back"]


def test_stepping_an_idle_engine_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small_runtime()
    with counting(monkeypatch) as rows:
        runtime.engine.step()
    assert rows == [] and is_clean(runtime)


def test_float64_and_bfloat16_models_can_be_run() -> None:
    expected = small_runtime().generate("some prompt", max_new_tokens=8, temperature=0, logprobs=True)
    for dtype, tolerance in [(torch.float64, 1e-4), (torch.bfloat16, 0.5)]:
        with torch.random.fork_rng(devices=[]):
            model = DS2DSModel(small_model().config).eval()
        model.load_state_dict(small_model().state_dict())
        runtime = Runtime(model.to(dtype), TOKENIZER, arena_tokens=4096)
        assert runtime.engine.store.arena.data.dtype == dtype
        result = runtime.generate("some prompt", max_new_tokens=8, temperature=0, logprobs=True)
        first = len(encode("some prompt"))
        scores = [r.root_document.token_logprobs[first] for r in (result, expected)]
        assert abs(scores[0] - scores[1]) < tolerance
