"""Log-probabilities of text that is there already, the likeliest tokens beside it, and what ends a document besides."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import (
    EOS,
    TOKENIZER,
    Texts,
    agrees_with_oracle,
    counting,
    encode,
    follow,
    is_clean,
    small_model,
    small_runtime,
)

from ds2ds import AsyncBackend, AsyncRuntime, Backend, ConfigError, GenerationError, Runtime, TokenWritten

CORPUS = Texts({"B": "body [x](C) more", "C": "see nothing", "D": "dd"})


def reference(tokens: list[int]) -> torch.Tensor:
    """float64 [n, V]: what the dense reference says of a document that reads nothing else."""
    return oracle.Oracle(small_model()).log_probs([oracle.Document("", tokens)])[0]


def expected(tokens: list[int]) -> list[float]:
    rows = reference(tokens)
    return [float(rows[at - 1, token]) for at, token in enumerate(tokens) if at]


# Scoring


@pytest.mark.parametrize("attention", ["plain", "flex"])
def test_a_prompt_is_scored_as_the_reference_scores_it(attention: str) -> None:
    runtime = small_runtime(attention=attention)
    tokens = encode("some text. More of it")
    (result,) = runtime.score([tokens])
    root = result.root_document
    assert root.tokens == tokens and root.finish_reason is None and not result.auxiliary_documents
    assert np.isnan(root.token_logprobs[0])
    np.testing.assert_allclose(root.token_logprobs[1:], expected(tokens), atol=1e-4)
    assert is_clean(runtime)


def test_linked_documents_are_in_view_of_what_is_scored() -> None:
    runtime = small_runtime()
    (result,) = runtime.score(["a [b](B) c [d](D) and [e](unknown) e"], corpus=CORPUS, max_link_depth=2)
    assert [d.title for d in result.auxiliary_documents] == ["C", "B", "D"]
    assert np.isfinite(result.root_document.token_logprobs[1:]).all()
    agrees_with_oracle(result)
    assert result.trace.tokens_decoded == 0 and is_clean(runtime)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_scores_do_not_depend_on_chunks_neighbours_or_the_store(data: st.DataObject) -> None:
    token = st.integers(1, TOKENIZER.vocab_size - 1)
    prompts = data.draw(st.lists(st.lists(token, min_size=1, max_size=40), min_size=1, max_size=4))
    runtime = small_runtime(
        step_tokens=data.draw(st.integers(1, 30)), document_store=data.draw(st.booleans()), max_running=3
    )
    for _ in range(2):  # the second time, the prompts have been here before
        for prompt, result in zip(prompts, runtime.score(prompts, max_link_depth=0), strict=True):
            np.testing.assert_allclose(result.root_document.token_logprobs[1:], expected(prompt), atol=1e-4)
    assert is_clean(runtime)


def test_scoring_computes_each_token_once_and_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small_runtime()
    with counting(monkeypatch) as rows:
        runtime.score([encode("abcdefgh"), encode("a")])
    assert sum(rows) == 7  # nothing comes before the only token of the second


def test_a_scored_prompt_is_no_reason_to_keep_it_and_a_kept_one_is_scored_all_the_same() -> None:
    runtime = small_runtime()
    prompt = encode("abcdefgh")
    runtime.generate(prompt_tokens=prompt, max_new_tokens=1, max_link_depth=0)
    (result,) = runtime.score([prompt], max_link_depth=0)
    assert result.trace.tokens_reused == 0
    np.testing.assert_allclose(result.root_document.token_logprobs[1:], expected(prompt), atol=1e-4)
    again = runtime.generate(prompt_tokens=prompt, max_new_tokens=1, max_link_depth=0)
    assert again.trace.tokens_reused == len(prompt) - 1


def test_the_likeliest_tokens_are_the_references() -> None:
    tokens = encode("some text")
    (result,) = small_runtime().score([tokens], top_logprobs=3)
    told = result.root_document.top_logprobs
    assert told[0] == [] and len(told) == len(tokens)
    for row, found in zip(reference(tokens), told[1:], strict=False):
        values, ids = row.topk(3)
        assert [token for token, _ in found] == ids.tolist()
        np.testing.assert_allclose([logprob for _, logprob in found], values, atol=1e-4)


def test_a_vocabulary_smaller_than_asked_for_is_told_whole() -> None:
    runtime = small_runtime()
    result = runtime.generate("a", max_new_tokens=1, top_logprobs=20, max_link_depth=0)
    assert len(result.root_document.top_logprobs[1]) == 20  # of 264


@pytest.mark.parametrize("given", ["overrides", "config", "both"])
def test_beams_of_which_nothing_is_searched_keep_nothing_from_being_told(given: str) -> None:
    beams, rest = {"num_beams": 4, "num_return_sequences": 2}, {"top_logprobs": 2, "temperature": 0.7, "top_k": 3}
    runtime = small_runtime()
    (plain,) = runtime.score(["some text"], top_logprobs=2)
    if given == "overrides":
        (result,) = runtime.score(["some text"], **beams, **rest)
    else:
        config = runtime.default_config().with_overrides(**beams)
        (result,) = runtime.score(["some text"], config=config, **(rest if given == "both" else {"top_logprobs": 2}))
    assert result.root_document.top_logprobs == plain.root_document.top_logprobs
    assert result.generation_config.num_beams == 1


def test_beams_that_there_cannot_be_are_refused_in_scoring_too() -> None:
    runtime = small_runtime()
    for beams, message in (
        ({"num_beams": 0}, "num_beams must be positive, got 0"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences must be at most num_beams 2, got 3"),
        ({"num_beams": 2, "seed": "x"}, "seed must be an integer, got 'x'"),
    ):
        with pytest.raises(ConfigError, match=message):
            runtime.score(["a"], **beams)
    with pytest.raises(ConfigError, match="config must be a GenerationConfig, got dict"):
        runtime.score(["a"], config={"num_beams": 2})


def test_errors_of_scoring_are_one_prompts_alone() -> None:
    runtime = small_runtime()
    outcomes = runtime.score(["ab", [1, 10_000], "cd"], return_errors=True)
    assert isinstance(outcomes[1], ConfigError) and "10000" in str(outcomes[1])
    assert np.isfinite(outcomes[0].root_document.token_logprobs[1:]).all()
    with pytest.raises(ConfigError, match="10000"):
        runtime.score([[1, 10_000]])
    with pytest.raises(ConfigError, match="use generate for one"):
        runtime.score("one string")


def test_a_model_that_gives_nan_is_told_and_everything_is_freed() -> None:
    broken = Runtime(
        type(small_model()).from_config(vocab_size=264, num_layers=2, model_dim=32, num_heads=2), TOKENIZER
    )
    with torch.no_grad():
        broken.model.loss_fn.weight.fill_(torch.nan)
    with pytest.raises(GenerationError, match="NaN or infinite logits"):
        broken.score(["abc"])
    assert is_clean(broken)


def test_an_arena_that_is_too_small_for_all_serves_them_in_turn() -> None:
    runtime = small_runtime(arena_tokens=64)
    prompts = [encode("x" * 30 + letter) for letter in "abcde"]
    limits = {"max_context_length": 40, "max_tokens_per_document": 40, "max_link_depth": 0}
    for prompt, result in zip(prompts, runtime.score(prompts, **limits), strict=True):
        np.testing.assert_allclose(result.root_document.token_logprobs[1:], expected(prompt), atol=1e-4)
    assert is_clean(runtime)


# Beside generation


def test_a_prompts_logprobs_come_with_what_is_written_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " and [x](D) on"})
    runtime = small_runtime()
    result = runtime.generate("a [b](B) c", corpus=CORPUS, prompt_logprobs=True, seed=0)
    root = result.root_document
    assert np.isfinite(root.token_logprobs[1:]).all()
    agrees_with_oracle(result)
    # One step wrote a token each; the prompt's tokens were prefilled, the last of them for the first draw.
    assert result.trace.tokens_decoded == len(root.tokens) - len(encode("a [b](B) c")) - 1
    assert is_clean(runtime)


@pytest.mark.parametrize("batch_mates", [0, 3])
def test_prompt_logprobs_change_nothing_that_is_written(batch_mates: int) -> None:
    runtime = small_runtime()
    prompts = ["a prompt", *(f"mate {n}" for n in range(batch_mates))]
    plain = runtime.generate_batch(prompts, seed=3, max_new_tokens=12)
    scored = runtime.generate_batch(prompts, seed=3, max_new_tokens=12, prompt_logprobs=True, top_logprobs=2)
    for one, other in zip(plain, scored, strict=True):
        assert one.root_document.tokens == other.root_document.tokens


def test_nor_where_the_first_token_drives_a_document_out() -> None:
    """The window is full of the prompt and what it links to: no token reads that, and no score says otherwise."""
    prompt = "see [d](D) and on"
    window = len(encode(prompt)) + len(encode(CORPUS.texts["D"]))
    limits = {"max_context_length": window, "max_new_tokens": 6, "temperature": 0, "logprobs": True}
    plain, scored = (
        small_runtime().generate(prompt, corpus=CORPUS, prompt_logprobs=told, **limits) for told in (False, True)
    )
    assert plain.trace.evictions == scored.trace.evictions == 1
    assert plain.root_document.tokens == scored.root_document.tokens
    assert plain.root_document.grants == scored.root_document.grants == []
    agrees_with_oracle(plain)
    agrees_with_oracle(scored)


def test_drawn_tokens_come_with_the_likeliest_in_their_place() -> None:
    runtime = small_runtime()
    prompt = encode("abc")
    events = list(
        runtime.stream(
            prompt_tokens=prompt, seed=1, max_new_tokens=5, top_logprobs=2, max_link_depth=0, ignore_eos=True
        )
    )
    written = [event for event in events if isinstance(event, TokenWritten)]
    root = events[-1].result.root_document
    rows = reference(root.tokens)
    assert len(written) == 5
    for at, event in enumerate(written, start=len(prompt)):
        values, ids = rows[at - 1].topk(2)
        assert [token for token, _ in event.top] == ids.tolist()
        np.testing.assert_allclose([logprob for _, logprob in event.top], values, atol=1e-4)
        assert root.top_logprobs[at] == list(event.top)
        assert event.logprob == pytest.approx(float(rows[at - 1, event.token]), abs=1e-4)
    assert root.to_dict()["top_logprobs"][-1] == list(written[-1].top)


def test_a_greedy_token_is_the_likeliest_told() -> None:
    root = small_runtime().generate("abc", temperature=0, max_new_tokens=8, top_logprobs=1, seed=0).root_document
    for at in range(3, len(root.tokens)):
        assert root.top_logprobs[at][0][0] == root.tokens[at]
        assert root.top_logprobs[at][0][1] == pytest.approx(float(root.token_logprobs[at]), abs=1e-5)


# What ends a document


def test_a_stop_token_ends_a_document_and_is_not_in_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "one;two"})
    semicolon = encode(";")[0]
    events = list(small_runtime().stream("p: ", stop_token_ids=[semicolon, 5]))
    root = events[-1].result.root_document
    assert (root.finish_reason, root.text) == ("stop", "p: one")
    assert root.tokens[-1] == semicolon
    assert "".join(event.text for event in events if isinstance(event, TokenWritten)) == "one"


def test_a_stop_token_that_closes_a_link_ends_the_document_first(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "[x](B)"})
    result = small_runtime().generate("p", corpus=CORPUS, stop_token_ids=encode(")"))
    assert result.root_document.finish_reason == "stop" and not result.auxiliary_documents


def test_eos_may_be_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": [*encode("a"), EOS, *encode("b")]})
    root = small_runtime().generate("p", ignore_eos=True, max_new_tokens=5).root_document
    assert root.tokens == [*encode("pa"), EOS, *encode("b"), EOS, EOS]
    assert (root.finish_reason, root.text) == ("max_new_tokens", "pab")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"top_logprobs": 21}, r"top_logprobs must be in \[0, 20\], got 21"),
        ({"top_logprobs": -1}, r"top_logprobs must be in \[0, 20\], got -1"),
        ({"top_logprobs": True}, "top_logprobs must be an integer, got True"),
        ({"prompt_logprobs": 1}, "prompt_logprobs must be True or False, got 1"),
        ({"ignore_eos": None}, "ignore_eos must be True or False, got None"),
        ({"stop_token_ids": "ab"}, "stop_token_ids must be a sequence of token ids >= 0, got 'ab'"),
        ({"stop_token_ids": [1, -2]}, r"stop_token_ids must be a sequence of token ids >= 0, got \[1, -2\]"),
        ({"stop_token_ids": [9, 264]}, r"stop_token_ids must be in the model's vocabulary of 264, got \[264\]"),
        ({"stop_token_ids": 7}, "stop_token_ids must be a sequence of token ids >= 0, got 7"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_runtime().generate("a", **setting)


# The protocol


def test_both_runtimes_are_backends_and_tell_their_limits() -> None:
    runtime = small_runtime(arena_tokens=1024, max_running=7, max_queue=9)
    assert isinstance(runtime, Backend)
    limits = runtime.limits
    assert limits.to_dict() == {
        "vocab_size": TOKENIZER.vocab_size,
        "max_context_length": 512,
        "eos_token_id": EOS,
        "arena_tokens": 1024,
        "max_running": 7,
        "max_queue": 9,
        "has_headings": False,
        "has_marks": False,
    }
    assert runtime.default_config().max_context_length == 512

    async def ask() -> None:
        async with AsyncRuntime(runtime) as served:
            assert isinstance(served, AsyncBackend)
            assert (served.limits, served.default_config()) == (limits, runtime.default_config())
            assert served.detokenize(served.tokenize("héllo")) == "héllo"
            assert served.token_bytes(encode("a")[0]) == b"a"

    asyncio.run(ask())


def test_text_and_tokens() -> None:
    runtime = small_runtime()
    assert runtime.tokenize("a).") == encode("a).")
    assert runtime.detokenize(encode("a [b](c)")) == "a [b](c)"
    assert runtime.token_bytes(EOS) == b""
    for call in (lambda: runtime.detokenize([10_000]), lambda: runtime.token_bytes(10_000)):
        with pytest.raises(ConfigError, match="token id 10000 is not in the vocabulary of bytes"):
            call()


def test_many_tasks_score_at_once() -> None:
    prompts = [encode(text) for text in ("abc", "d", "efgh ij", "klmnop")]

    async def ask() -> list[Any]:
        async with AsyncRuntime(small_runtime()) as runtime:
            writing = asyncio.create_task(runtime.generate("busy", max_new_tokens=20, seed=1))
            scored = await asyncio.gather(*(runtime.score([prompt], max_link_depth=0) for prompt in prompts))
            wrong = await runtime.score([[10_000]], return_errors=True)
            assert isinstance(wrong[0], ConfigError)
            await writing
            return [result for (result,) in scored]

    for prompt, result in zip(prompts, asyncio.run(ask()), strict=True):
        np.testing.assert_allclose(result.root_document.token_logprobs[1:], expected(prompt), atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "headings", "marks"),
    [("bos_eos", False, True), ("identifier_prefix", True, False), ("identifier_prefix_bos_eos", True, True)],
)
def test_limits_tell_of_the_layout_that_is_given_where_the_model_says_none(
    layout: str, headings: bool, marks: bool
) -> None:
    limits = small_runtime(layout).limits
    assert (limits.has_headings, limits.has_marks) == (headings, marks)
