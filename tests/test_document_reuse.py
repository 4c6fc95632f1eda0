"""Documents are computed once for everyone: across requests, within one, in whatever order; results never change."""

from __future__ import annotations

import contextlib
from typing import Any

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

from ds2ds import ConfigError, DS2DSModel, GenerationConfig, Runtime
from ds2ds.engine import planning

TEXTS = {"A": "about A, with [b](B) and more", "B": "about B", "Long": "a long one " * 12}
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "seed": 3, "logprobs": True, "temperature": 0.0}


def config(**options: Any) -> GenerationConfig:
    return GenerationConfig(**{"max_context_length": 400, "eos_token_id": EOS, **OPTIONS, **options})


def same(one: Any, other: Any) -> None:
    same_documents(one.get_all_documents(), other.get_all_documents())


# One request after the other


def test_the_second_request_does_not_prefill_what_the_first_one_did(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, length = small_runtime(), len(encode(TEXTS["Long"]))
    first = runtime.generate("see [l](Long). ", corpus=Texts(TEXTS), **OPTIONS)
    with counting(monkeypatch) as rows:
        second = runtime.generate("another [l](Long): ", corpus=Texts(TEXTS), **OPTIONS)
    assert max(rows) == len(encode("another [l](Long): ")) < length
    assert (first.trace.tokens_reused, first.trace.documents_reused) == (0, 0)
    assert (second.trace.tokens_reused, second.trace.documents_reused) == (length, 1)
    assert first.trace.tokens_prefilled == length + len(encode("see [l](Long). "))
    assert second.trace.tokens_prefilled == len(encode("another [l](Long): "))
    agrees_with_oracle(second)
    assert is_clean(runtime)


def test_without_the_store_every_request_computes_all_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small_runtime(document_store=False)
    results = [runtime.generate("see [l](Long). ", corpus=Texts(TEXTS), **OPTIONS) for _ in range(2)]
    assert results[0].trace.tokens_prefilled == results[1].trace.tokens_prefilled > len(encode(TEXTS["Long"]))
    assert results[1].trace.tokens_reused == 0 and runtime.engine.store.arena.allocator.used == 0
    same(*results)
    same(results[0], small_runtime().generate("see [l](Long). ", corpus=Texts(TEXTS), **OPTIONS))


def test_titles_do_not_matter_under_a_layout_that_does_not_write_them() -> None:
    runtime = small_runtime()
    runtime.generate("[x](One) ", corpus=Texts({"One": "the same text"}), **OPTIONS)
    other = runtime.generate("[x](Two) ", corpus=Texts({"Two": "the same text"}), **OPTIONS)
    assert other.trace.tokens_reused == len(encode("the same text"))
    agrees_with_oracle(other)


def test_titles_matter_under_a_layout_that_writes_them() -> None:
    runtime = small_runtime("identifier_prefix")
    runtime.generate("[x](One) ", corpus=Texts({"One": "the same text"}), **OPTIONS)
    other = runtime.generate("[x](Two) ", corpus=Texts({"Two": "the same text"}), **OPTIONS)
    assert other.trace.tokens_reused == 0


@pytest.mark.parametrize("depths", [(1, 2), (2, 1)])
def test_what_a_document_reads_is_part_of_what_it_is(depths: tuple[int, int]) -> None:
    """A reads B only where links are followed that far: two entries for one text."""
    runtime = small_runtime()
    for depth in depths:
        result = runtime.generate("see [a](A) ", corpus=Texts(TEXTS), max_link_depth=depth, **OPTIONS)
        assert len(grants(result.get_document_by_title("A"))) == depth - 1
        agrees_with_oracle(result)
    assert result.trace.tokens_reused == 0
    again = runtime.generate("and [a](A) ", corpus=Texts(TEXTS), max_link_depth=2, **OPTIONS)
    # B was computed for A; that A is there is enough, and B, which the root does not read, is not asked for.
    assert (again.trace.documents_reused, again.trace.tokens_reused) == (1, len(encode(TEXTS["A"])))


def test_a_chain_is_reused_from_any_link_on() -> None:
    runtime = small_runtime()
    runtime.generate("[b](B) ", corpus=Texts(TEXTS), **OPTIONS)
    result = runtime.generate("[a](A) ", corpus=Texts(TEXTS), max_link_depth=2, **OPTIONS)
    assert result.trace.documents_reused == 1 and result.trace.tokens_reused == len(encode(TEXTS["B"]))
    agrees_with_oracle(result)


# Written documents


def test_a_written_document_that_left_the_view_comes_back_without_being_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    follow(monkeypatch, {"": " [q](Q) [b](B) [q](Q) x", "Q": "some text"})
    runtime = small_runtime()
    with counting(monkeypatch) as rows:
        result = runtime.generate("p", corpus=Texts(TEXTS), config=config(max_auxiliary_documents=1, max_new_tokens=99))
    root, q = result.root_document, result.get_document_by_title("Q")
    assert [title for _, title, _ in grants(root)] == ["Q", "B", "Q"]
    # Every token once, but the root's last, which nothing was to follow.
    assert sum(rows) == len(root.tokens) - 1 + len(q.tokens) + len(encode(TEXTS["B"]))
    agrees_with_oracle(result)


def test_a_document_written_twice_is_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [q](Q) x", "Q": "some text"})
    runtime = small_runtime()
    results = [runtime.generate("p", config=config(max_new_tokens=99)) for _ in range(3)]
    length = len(results[0].get_document_by_title("Q").tokens)
    assert sorted(entry.computed for entry in runtime.engine.store.shared()) == [1, length]  # the prompt, and Q
    # The last one found all of Q computed, its end mark too, once it was complete.
    assert results[2].trace.tokens_prefilled < results[0].trace.tokens_prefilled
    for result in results[1:]:
        same(results[0], result)
    assert is_clean(runtime)


def test_a_written_document_is_found_by_a_request_that_fetches_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [q](Q) x", "Q": "some text"})
    runtime = small_runtime("identifier_prefix_bos_eos")
    written = runtime.generate("p", config=config(max_new_tokens=99)).get_document_by_title("Q")
    fetched = runtime.generate("pp", corpus=Texts({"Q": "some text"}), config=config(max_new_tokens=99))
    assert list(fetched.get_document_by_title("Q").tokens) == list(written.tokens)
    assert fetched.trace.tokens_reused == len(written.tokens)


# Side by side


@pytest.mark.parametrize("chunk", [512, 16, 7])
def test_requests_that_run_together_share(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PREFILL_CHUNK", chunk)
    prompts = ["[l](Long) one", "two [l](Long) ", "[a](A)[l](Long)", "[l](Long)[a](A)"]
    options = {**OPTIONS, "max_link_depth": 2, "allow_corpus_fallback": False}
    runtime = small_runtime(arena_tokens=20_000)
    with counting(monkeypatch) as rows:
        together = runtime.generate_batch(prompts, corpus=Texts(TEXTS), **options)
    apart = [small_runtime().generate(prompt, corpus=Texts(TEXTS), **options) for prompt in prompts]
    for one, other in zip(together, apart, strict=True):
        same(one, other)
        agrees_with_oracle(one)
    documents = sum(len(encode(TEXTS[title])) for title in ("A", "B", "Long"))
    roots = sum(len(result.root_document.tokens) - 1 for result in together)
    assert sum(rows) == documents + roots
    # What a request did not compute itself it reused: nothing is counted twice, or not at all.
    for one, other in zip(together, apart, strict=True):
        needed = other.trace.tokens_prefilled
        assert one.trace.tokens_prefilled + one.trace.tokens_reused <= needed
    assert sum(one.trace.tokens_reused for one in together) >= 3 * len(encode(TEXTS["Long"]))
    assert is_clean(runtime)


def test_what_another_computes_counts_once_though_two_documents_of_a_request_have_it() -> None:
    texts = {"Long": TEXTS["Long"], "Twin": TEXTS["Long"]}
    prompts = ["[l](Long) x", "[l](Long)[t](Twin) x"]
    _, second = small_runtime().generate_batch(prompts, corpus=Texts(texts), **OPTIONS)
    assert (second.trace.tokens_reused, second.trace.documents_reused) == (len(encode(TEXTS["Long"])), 2)


def test_documents_computed_in_one_step_share_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(contextlib.nullcontext[None]):
        seconds = 1.0

        def __enter__(self) -> Any:
            return self

    monkeypatch.setattr("ds2ds.engine.engine.Stopwatch", Second)
    runtime = small_runtime()
    runtime.generate("[b](B)[l](Long) x", corpus=Texts(TEXTS), **OPTIONS)
    b, long = (len(encode(TEXTS[title])) for title in ("B", "Long"))
    costs = {entry.computed: entry.cost for entry in runtime.engine.store.shared() if not entry.prompt}
    assert costs == pytest.approx({b: b / (b + long), long: long / (b + long)})


def test_what_a_cancelled_request_has_begun_another_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PREFILL_CHUNK", 16)
    runtime, corpus = small_runtime(), Texts(TEXTS)
    start = runtime._generator.start
    running = [start(prompt, None, corpus, config()) for prompt in ("[l](Long) one", "two [l](Long) ")]
    for _ in range(3):
        runtime.engine.step()
    (entry,) = runtime.engine.store.shared()
    assert entry.computed == 48 and len(entry.documents) == 2
    runtime.engine.cancel(running[0].job)
    for _ in runtime.engine.run(running[1].job):
        runtime.engine.check_integrity()
    trace = running[1].job.trace
    assert trace.tokens_reused == 48
    assert trace.tokens_prefilled == len(encode(TEXTS["Long"])) - 48 + len(encode("two [l](Long) "))
    agrees_with_oracle(running[1].result())
    assert is_clean(runtime)


def test_what_was_begun_and_given_up_is_ended_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PREFILL_CHUNK", 16)
    runtime, corpus = small_runtime(), Texts(TEXTS)
    running = runtime._generator.start("[l](Long) one", None, corpus, config())
    for _ in range(3):
        runtime.engine.step()
    runtime.engine.cancel(running.job)
    assert is_clean(runtime)
    result = runtime.generate("[l](Long) two", corpus=corpus, config=config())
    assert result.trace.tokens_reused == 48
    agrees_with_oracle(result)


# Prompts

PROMPT = "see [a](A) and [l](Long), all of it: "


def test_a_prompt_that_was_computed_is_copied_but_for_its_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, options = small_runtime(), {**OPTIONS, "max_link_depth": 2}
    first = runtime.generate(PROMPT, corpus=Texts(TEXTS), **options)
    with counting(monkeypatch) as rows:
        again = runtime.generate(PROMPT, corpus=Texts(TEXTS), **options)
    assert max(rows) == 1 and again.trace.tokens_prefilled == 1
    assert again.trace.tokens_reused == len(encode(PROMPT)) - 1 + len(encode(TEXTS["A"] + TEXTS["Long"]))
    same(first, again)
    for seed in range(2):  # what is written from then on is another matter
        other = runtime.generate(PROMPT, corpus=Texts(TEXTS), **{**options, "temperature": 1.0, "seed": seed})
        agrees_with_oracle(other)
        assert other.trace.tokens_prefilled < len(encode(PROMPT))
    assert is_clean(runtime)


def test_a_prompt_with_another_view_is_another_prompt() -> None:
    runtime = small_runtime()
    runtime.generate(PROMPT, corpus=Texts(TEXTS), **OPTIONS)
    for corpus, depth in ((Texts(TEXTS), 0), (Texts({**TEXTS, "A": "another A"}), 1), (Texts(TEXTS), 2)):
        result = runtime.generate(PROMPT, corpus=corpus, max_link_depth=depth, **OPTIONS)
        assert result.trace.tokens_prefilled >= len(encode(PROMPT))
        agrees_with_oracle(result)


def test_of_a_prompt_that_a_link_ends_the_last_token_reads_nothing_new() -> None:
    """The grant holds from the token after the prompt on, whoever computed the prompt."""
    runtime = small_runtime()
    for depth in (0, 1):
        result = runtime.generate("see [l](Long)", corpus=Texts(TEXTS), max_link_depth=depth, **OPTIONS)
        agrees_with_oracle(result)
    assert result.trace.tokens_reused == len(encode("see [l](Long)")) - 1


def test_what_is_written_is_not_part_of_the_prompt() -> None:
    runtime = small_runtime()
    result = runtime.generate("some prompt", max_link_depth=0, **OPTIONS)
    longer = TOKENIZER.decode(list(result.root_document.tokens)[:-2])
    again = runtime.generate(longer, max_link_depth=0, **OPTIONS)
    assert again.trace.tokens_reused == 0 and again.trace.tokens_prefilled == len(encode(longer))
    agrees_with_oracle(again)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 12])
def test_a_prompt_is_kept_once_it_is_computed_however_the_request_ends(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PREFILL_CHUNK", 16)
    runtime = small_runtime()
    running = runtime._generator.start("x" * 40, None, None, config(max_new_tokens=20, max_link_depth=0))
    for _ in range(steps):
        runtime.engine.step()
    runtime.engine.cancel(running.job)
    assert is_clean(runtime)
    assert [entry.computed for entry in runtime.engine.store.shared()] == ([40] if steps >= 3 else [])
    result = runtime.generate("x" * 40, config=config(max_link_depth=0))
    assert result.trace.tokens_reused == (39 if steps >= 3 else 0)
    agrees_with_oracle(result)


def test_a_prompt_goes_for_the_room_of_its_own_copy_where_there_is_none_else() -> None:
    """Two of 112 slots do not fit: the one that was kept is dropped, and all is computed anew."""
    runtime = small_runtime(arena_tokens=160)
    settings = config(max_tokens_per_document=110, max_link_depth=0)
    results = [runtime.generate("x" * 100, config=settings) for _ in range(3)]
    assert [result.trace.tokens_reused for result in results] == [0, 0, 0]
    same(results[0], results[2])
    assert is_clean(runtime)


# Room


def test_what_no_one_reads_goes_when_room_is_needed_and_memory_does_not_grow() -> None:
    corpus = Texts({f"D{i}": f"document {i} " * 6 for i in range(12)})
    runtime = small_runtime(arena_tokens=384)
    arena = runtime.engine.store.arena.data
    before = (arena.data_ptr(), arena.shape)
    settings = config(max_tokens_per_document=100, max_context_length=200, max_auxiliary_documents=1)
    for _ in range(2):
        for index in range(12):
            result = runtime.generate(f"[d](D{index}) ", corpus=corpus, config=settings)
            agrees_with_oracle(result)
            assert is_clean(runtime)
            prompt, document = len(encode(f"[d](D{index}) ")), len(encode(corpus.texts[f"D{index}"]))
            assert result.trace.tokens_prefilled + result.trace.tokens_reused == prompt + document
    assert (runtime.engine.store.arena.data.data_ptr(), arena.shape) == before
    assert 0 < len(runtime.engine.store.shared()) < 24


@pytest.mark.parametrize("retention", ["gdsf", "lru"])
def test_retention_can_be_chosen(retention: str) -> None:
    runtime = small_runtime(retention=retention)
    runtime.generate("[l](Long) ", corpus=Texts(TEXTS), **OPTIONS)
    assert runtime.generate("x [l](Long) ", corpus=Texts(TEXTS), **OPTIONS).trace.tokens_reused


def test_wrong_choices() -> None:
    with pytest.raises(ConfigError, match=r"retention must be one of \('gdsf', 'lru'\), got 'fifo'"):
        small_runtime(retention="fifo")
    with pytest.raises(ConfigError, match="document_store must be True or False, got 'yes'"):
        small_runtime(document_store="yes")


# FlexAttention, as on a GPU


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_request_through_flex_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PREFILL_CHUNK", 24)
    corpus, options = Texts({**TEXTS, "Long": "a long one " * 3}), {**OPTIONS, "max_link_depth": 2, "max_new_tokens": 3}
    settings = config(**options, max_tokens_per_document=48, max_auxiliary_documents=3)
    runtime = small_runtime(arena_tokens=256, attention="flex")
    for _ in range(2):
        result = runtime.generate(PROMPT, corpus=corpus, config=settings)
        agrees_with_oracle(result)
        same(result, small_runtime().generate(PROMPT, corpus=corpus, config=settings))
    assert result.trace.tokens_prefilled == 1
    assert is_clean(runtime)


def test_attention_is_named() -> None:
    with pytest.raises(ConfigError, match=r"attention must be one of \('auto', 'flex', .*'triton'\), got 'fast'"):
        small_runtime(attention="fast")
    with pytest.raises(ConfigError, match="of an arena of at most 65,536 tokens, got 65,552"):
        small_runtime(attention="flex", arena_tokens=2**16 + 1)


# Weights


def fresh_model() -> DS2DSModel:
    with torch.random.fork_rng(devices=[]):
        model = DS2DSModel(small_model().config).eval()
    model.load_state_dict(small_model().state_dict())
    return model


@pytest.mark.parametrize("how", ["load_state_dict", "in place", "replaced"])
def test_documents_of_other_weights_are_not_reused(how: str) -> None:
    model = fresh_model()
    runtime = Runtime(model, TOKENIZER, arena_tokens=4096)
    runtime.generate("[l](Long) ", corpus=Texts(TEXTS), **OPTIONS)
    with torch.no_grad():
        if how == "load_state_dict":
            model.load_state_dict(small_model(1).state_dict())
        elif how == "in place":
            model.backbone.layers[0].attn.Wqkv.mul_(-1)
        else:
            model.embedding.weight = torch.nn.Parameter(small_model(1).embedding.weight.detach().clone())
    changed = runtime.generate("[l](Long) ", corpus=Texts(TEXTS), **OPTIONS)
    assert changed.trace.tokens_reused == 0
    expected = Runtime(model, TOKENIZER, arena_tokens=4096).generate("[l](Long) ", corpus=Texts(TEXTS), **OPTIONS)
    same(changed, expected)
    assert len(runtime.engine.store.shared()) == 2  # the document, and the prompt
    assert is_clean(runtime)
