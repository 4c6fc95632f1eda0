"""Beam search of one document: the same as its definition, what it costs, and what it is refused."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from beam_reference import full_pass, search
from hypothesis import given, settings
from hypothesis import strategies as st
from link_graphs import VOCABULARY, TinyTokenizer, ids, texts, tiny_model
from scripted import (
    TOKENIZER,
    Texts,
    agrees_with_oracle,
    counting,
    is_clean,
    same_documents,
    small_model,
    small_runtime,
)

from ds2ds import AsyncRuntime, ConfigError, GenerationConfig, GenerationError, GenerationResult, Runtime
from ds2ds.documents.document import Document
from ds2ds.engine.ranking import rank
from ds2ds.engine.work import Sampled
from ds2ds.errors import ArenaFullError
from ds2ds.generation.events import DocumentClosed, DocumentOpened, Done, TokenWritten
from ds2ds.generation.save import save_result
from ds2ds.model.ds2ds_model import DS2DSModel

PROMPT = "Some text to go on with"


@functools.cache
def exact_model(seed: int) -> DS2DSModel:
    """In float64, so that no two scores are equal to rounding."""
    return copy.deepcopy(tiny_model(seed)).double()


def written(result: GenerationResult, prompt: list[int]) -> tuple[int, ...]:
    tokens = list(result.root_document.tokens or ())
    assert tokens[: len(prompt)] == prompt
    return tuple(tokens[len(prompt) :])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 3),
    prompt=texts(1, 4),
    eos=st.integers(0, len(VOCABULARY) - 1),
    beams=st.integers(2, 7),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.5]),
    early_stopping=st.sampled_from([True, False, "never"]),
    max_new_tokens=st.integers(1, 9),
    room=st.integers(1, 12),
    document_store=st.booleans(),
)
def test_it_is_what_its_definition_says(
    seed: int,
    prompt: list[int],
    eos: int,
    beams: int,
    length_penalty: float,
    early_stopping: bool | str,
    max_new_tokens: int,
    room: int,
    document_store: bool,
) -> None:
    model = exact_model(seed)
    most = min(max_new_tokens, room)
    expected = search(
        full_pass(model, prompt),
        lambda tokens: tokens[-1] == eos or len(tokens) == most,
        num_beams=beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        most_tokens=most,
    )
    runtime = Runtime(model, TinyTokenizer(), arena_tokens=4096, document_store=document_store)
    result = runtime.generate(
        prompt_tokens=prompt,
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        max_new_tokens=max_new_tokens,
        max_tokens_per_document=len(prompt) + room,
        max_link_depth=0,
        eos_token_id=eos,
    )
    assert is_clean(runtime)
    found = [result, *result.alternatives]
    assert [written(one, prompt) for one in found] == [one.tokens for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)
    for one in found:
        tokens = written(one, prompt)
        ended = "eos" if tokens[-1] == eos else "max_new_tokens" if len(tokens) == max_new_tokens else None
        assert one.root_document.finish_reason == (ended or "max_tokens_per_document")


def test_a_beam_may_beat_greedy_and_both_are_scored_alike() -> None:
    runtime = small_runtime()
    options: dict[str, Any] = {"max_new_tokens": 12, "max_link_depth": 0, "logprobs": True}
    greedy = runtime.generate(PROMPT, temperature=0.0, **options)
    beam = runtime.generate(PROMPT, num_beams=4, **options)
    agrees_with_oracle(beam)
    scores = [float(torch.tensor(one.root_document.token_logprobs).nanmean()) for one in (greedy, beam)]
    assert scores[0] < scores[1] == pytest.approx(beam.score, abs=1e-5)
    assert greedy.score is None and greedy.alternatives == []


@pytest.mark.parametrize("length_penalty", [-2.0, 0.0, 3.0])
def test_without_beams_a_length_penalty_changes_nothing(length_penalty: float) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.0, "seed": 0}
    plain = small_runtime().generate(PROMPT, **options)
    same = small_runtime().generate(PROMPT, num_beams=1, length_penalty=length_penalty, early_stopping=True, **options)
    same_documents(plain.get_all_documents(), same.get_all_documents())


@pytest.mark.parametrize("seed", [1, 2, None])
def test_a_search_draws_nothing(seed: int | None) -> None:
    for temperature in (0.0, 1.0):
        options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 5, "logprobs": True}
        first = small_runtime().generate(PROMPT, seed=0, **options)
        again = small_runtime().generate(PROMPT, seed=seed, temperature=temperature, **options)
        same_documents(first.get_all_documents(), again.get_all_documents(), tolerance=0)
        assert first.score == again.score


def test_stop_strings_end_a_hypothesis() -> None:
    runtime = Runtime(exact_model(0), TinyTokenizer(), arena_tokens=4096)
    prompt = ids(b"x", b" t")
    found = runtime.generate(
        prompt_tokens=prompt, num_beams=6, num_return_sequences=6, stop="x", max_new_tokens=5, max_link_depth=0
    )
    stopped = [one for one in (found, *found.alternatives) if one.root_document.finish_reason == "stop"]
    expected = search(
        full_pass(exact_model(0), prompt),
        lambda tokens: tokens[-1] == 0 or len(tokens) == 5 or b"x" in VOCABULARY[tokens[-1]],
        num_beams=6,
    )
    assert stopped and "x" not in (stopped[0].root_document.text or "")[2:]
    assert [written(one, prompt) for one in (found, *found.alternatives)] == [one.tokens for one in expected]


def test_a_prompt_that_fills_its_document_leaves_nothing_to_search() -> None:
    runtime = small_runtime()
    result = runtime.generate(PROMPT, num_beams=3, num_return_sequences=3, max_tokens_per_document=4)
    assert (result.root_document.finish_reason, result.score) == ("max_tokens_per_document", 0.0)
    assert result.alternatives == [] and result.trace.forward_passes == 0
    assert is_clean(runtime)


def test_the_window_bounds_every_hypothesis() -> None:
    runtime = small_runtime()
    length = len(TOKENIZER.encode(PROMPT))
    result = runtime.generate(PROMPT, num_beams=3, num_return_sequences=3, max_context_length=length + 4)
    for one in (result, *result.alternatives):
        assert one.root_document.finish_reason == "context_full"
        assert len(one.root_document.tokens or ()) == length + 4


# What it costs


def test_a_beam_computes_its_own_tail_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt once, then a token for each hypothesis and step, in one pass."""
    runtime = small_runtime()
    length = len(TOKENIZER.encode(PROMPT))
    with counting(monkeypatch) as rows:
        result = runtime.generate(PROMPT, num_beams=4, max_new_tokens=10, max_link_depth=0)
    assert rows == [length, *[4] * 9]
    trace = result.trace
    assert (trace.forward_passes, trace.tokens_prefilled, trace.tokens_decoded) == (10, length, 36)
    with counting(monkeypatch) as rows:
        again = runtime.generate(PROMPT, num_beams=4, max_new_tokens=10, max_link_depth=0)
    assert rows == [1, *[4] * 9]  # the prompt was kept, but for its last token
    same_documents(result.get_all_documents(), again.get_all_documents())


def test_the_time_that_ranking_takes_counts_once_for_all_beams(monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(contextlib.nullcontext[None]):
        seconds = 1.0

        def __enter__(self) -> Any:
            return self

    monkeypatch.setattr("ds2ds.engine.results.Stopwatch", Second)
    trace = small_runtime().generate(PROMPT, num_beams=4, max_new_tokens=10, max_link_depth=0).trace
    assert trace.seconds["sampling"] == 10


def test_only_the_prompt_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small_runtime()
    runtime.generate(PROMPT, num_beams=5, max_new_tokens=10, max_link_depth=0)
    (kept,) = runtime.engine.store.shared()
    assert kept.prompt and len(kept.content or ()) == len(TOKENIZER.encode(PROMPT))
    assert runtime.engine.store.arena.allocator.used == runtime.engine.store.arena.allocator.rounded(kept.computed)


def test_dead_hypotheses_hold_nothing() -> None:
    """At most one document in progress for each live hypothesis, and what a fork is yet to be copied from."""
    runtime = small_runtime()
    running = runtime._generator.start(PROMPT, None, None, GenerationConfig(**LIMITS, num_beams=4, max_new_tokens=30))
    assert running.search is not None
    most = 0
    while not running.job.done:
        runtime.engine.step()
        runtime.engine.check_integrity()
        most = max(most, len(runtime.engine.store.documents()))
    assert 4 <= most <= 8
    assert is_clean(runtime)


LIMITS: dict[str, Any] = {"max_context_length": 512, "eos_token_id": 0, "max_link_depth": 0}


# Beside others, cancelled, and short of room


def test_beside_other_requests_it_is_what_it_is_alone() -> None:
    options: dict[str, Any] = {"max_new_tokens": 9, "seed": 3, "logprobs": True}
    prompts = [PROMPT, "another", "a third one [x](A)"]
    corpus = Texts({"A": "What is known of A"})
    alone = [small_runtime().generate(one, corpus=corpus, num_beams=3, **options) for one in prompts]
    drawn = small_runtime().generate("drawn", **options)
    runtime = small_runtime()
    other = runtime._generator.start("drawn", None, None, runtime._config(None, options))
    together = runtime.generate_batch(prompts, corpus=corpus, num_beams=3, **options)
    for one, two in zip(alone, together, strict=True):
        same_documents(one.get_all_documents(), two.get_all_documents())
        assert one.score == pytest.approx(two.score, abs=1e-5)
    same_documents(other.result().get_all_documents(), drawn.get_all_documents())
    assert is_clean(runtime)


@pytest.mark.parametrize("steps", range(0, 8))
def test_cancelled_at_any_time_it_leaves_nothing(steps: int) -> None:
    runtime = small_runtime()
    corpus = Texts({"A": "What is known of A"})
    config = GenerationConfig(**LIMITS | {"max_link_depth": 1}, num_beams=3, max_new_tokens=6)
    running = runtime._generator.start(PROMPT + "[x](A)", None, corpus, config)
    for _ in range(steps):
        runtime.engine.step()
        runtime.engine.check_integrity()
    runtime.engine.cancel(running.job)
    assert is_clean(runtime)


def test_a_closed_stream_is_cancelled() -> None:
    runtime = small_runtime()
    events = runtime.stream(PROMPT, num_beams=3, max_new_tokens=4)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert is_clean(runtime)


def test_the_events_are_the_best_hypothesis_alone() -> None:
    corpus = Texts({"A": "What is known of A"})
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 6, "num_return_sequences": 2, "logprobs": True}
    *events, done = small_runtime().stream(PROMPT + "[x](A)", corpus=corpus, **options)
    assert isinstance(done, Done)
    root = done.result.root_document
    tokens = [event.token for event in events if isinstance(event, TokenWritten)]
    assert tokens == list(root.tokens or ())[-len(tokens) :] and len(tokens) == 6
    opened = [event.title for event in events if isinstance(event, DocumentOpened)]
    assert opened == ["root", "A"]
    assert [event.title for event in events if isinstance(event, DocumentClosed)] == ["A", "root"]
    result = small_runtime().generate(PROMPT + "[x](A)", corpus=corpus, **options)
    same_documents(result.get_all_documents(), done.result.get_all_documents())
    assert len(result.alternatives) == 1


def test_the_same_for_asyncio() -> None:
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 6, "num_return_sequences": 3}
    expected = small_runtime().generate(PROMPT, **options)

    async def run() -> tuple[GenerationResult, list[Any]]:
        async with AsyncRuntime(small_runtime()) as runtime:
            result = await runtime.generate(PROMPT, **options)
            batch = await runtime.generate_batch([PROMPT, PROMPT], **options)
            task = asyncio.create_task(runtime.generate(PROMPT, num_beams=4, max_new_tokens=400))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await runtime.call(is_clean)
            return result, batch

    result, batch = asyncio.run(run())
    for one in (result, *batch):
        assert [found.to_dict()["root_document"] for found in (one, *one.alternatives)] == [
            found.to_dict()["root_document"] for found in (expected, *expected.alternatives)
        ]


def test_an_arena_that_is_too_small_is_an_error_that_names_the_numbers() -> None:
    runtime = small_runtime(arena_tokens=128)
    options: dict[str, Any] = {"max_new_tokens": 20, "max_tokens_per_document": 48, "max_link_depth": 0}
    assert runtime.generate(PROMPT, num_beams=2, **options).score is not None
    with pytest.raises(ArenaFullError, match=r"document 'root' needs 48 slots of the KV arena; 32 of 128 can be had"):
        runtime.generate(PROMPT, num_beams=3, **options)
    assert is_clean(runtime)


@pytest.mark.parametrize(("arena_tokens", "suspends"), [(208, True), (256, False), (480, False)])
def test_suspended_it_starts_anew_and_gives_the_same(
    arena_tokens: int, suspends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three searches that all start, as if they needed nothing, in an arena that may not hold their hypotheses."""
    options: dict[str, Any] = {"max_new_tokens": 12, "max_tokens_per_document": 48, "num_beams": 3, "logprobs": True}
    prompts = [PROMPT, PROMPT[::-1], PROMPT.upper()]
    alone = [small_runtime().generate(one, **options) for one in prompts]
    runtime = small_runtime(arena_tokens=arena_tokens)
    monkeypatch.setattr(runtime._generator, "_need", lambda config: 0)
    suspended: list[Any] = []
    suspend = runtime.engine.scheduler._suspend
    monkeypatch.setattr(runtime.engine.scheduler, "_suspend", lambda job: (suspended.append(job), suspend(job)))
    together = runtime.generate_batch(prompts, **options)
    for one, two in zip(alone, together, strict=True):
        same_documents(one.get_all_documents(), two.get_all_documents())
    assert is_clean(runtime)
    assert bool(suspended) == suspends


def test_a_search_counts_as_its_beams_among_those_that_run() -> None:
    runtime = small_runtime(max_running=5, arena_tokens=40_000)  # there is room for both
    generator, config = runtime._generator, GenerationConfig(**LIMITS, num_beams=4, max_new_tokens=3)
    running = [generator.start(PROMPT, None, None, config) for _ in range(2)]
    runtime.engine.step()
    assert [one.job in runtime.engine.running for one in running] == [True, False]
    while runtime.engine.busy:
        runtime.engine.step()
    same_documents(*(one.result().get_all_documents() for one in running))
    assert runtime.generate(PROMPT, **LIMITS, num_beams=5, max_new_tokens=3)
    with pytest.raises(ConfigError, match="num_beams must be at most the runtime's max_running 5, got 6"):
        runtime.generate(PROMPT, num_beams=6)
    with pytest.raises(ConfigError, match="6 documents at a time are more than max_running 5"):
        runtime.engine.submit(iter(()), [], running[0].job.trace, width=6)  # type: ignore[arg-type]


def test_weights_that_give_nan_fail_that_request_alone() -> None:
    model = copy.deepcopy(small_model())
    with torch.no_grad():
        model.embedding.weight[TOKENIZER.encode("!")[0]] = math.nan
    runtime = Runtime(model, TOKENIZER, arena_tokens=4096)
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 4}
    bad, good = runtime.generate_batch(["bad!", PROMPT], return_errors=True, **options)
    assert isinstance(bad, GenerationError) and "no usable logits for token 4 of ''" in str(bad)
    same_documents(good.get_all_documents(), small_runtime().generate(PROMPT, **options).get_all_documents())
    assert is_clean(runtime)


def test_a_hypothesis_that_fails_ends_the_search_whatever_is_drawn_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*given: Any) -> list[Any]:
        first, *others = rank(*given)
        return [GenerationError("a bug") if others else first, *others]

    monkeypatch.setattr("ds2ds.engine.results.rank", failing)
    runtime = small_runtime()
    with pytest.raises(GenerationError, match="a bug"):
        runtime.generate(PROMPT, num_beams=3, max_new_tokens=4)
    assert is_clean(runtime)


# Ranking


class Logits:
    """A model whose hidden states are the logits."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def ranked(*rows: list[float], most: int = 3) -> list[Any]:
    documents = [Document("D", [1, 2]) for _ in rows]
    return rank(Logits(), torch.tensor(rows), documents, [most] * len(rows))  # type: ignore[arg-type]


def test_the_likeliest_tokens_in_order_and_ties_to_the_lower_id() -> None:
    (first, second) = ranked([0.0, 2.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0])
    logprobs = torch.tensor([0.0, 2.0, 1.0, 2.0]).log_softmax(-1).tolist()
    assert first == [Sampled(1, logprobs[1]), Sampled(3, logprobs[3]), Sampled(2, logprobs[2])]
    assert [one.token for one in second] == [0, 1, 2]
    assert second[0].logprob == pytest.approx(math.log(0.25))


def test_each_document_gets_as_many_as_it_asked_for() -> None:
    documents = [Document("D", [1, 2]) for _ in range(2)]
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 2)
    found = rank(Logits(), logits, documents, [1, 3])  # type: ignore[arg-type]
    assert [[one.token for one in tokens] for tokens in found if isinstance(tokens, list)] == [[0], [0, 1, 2]]


def test_tokens_that_cannot_be_are_not_ranked() -> None:
    assert [one.token for one in ranked([-math.inf, 0.0, -math.inf, 1.0])[0]] == [3, 1]
    assert [len(one) for one in ranked([0.0, 1.0], [1.0, 0.0], most=9)] == [2, 2]


@pytest.mark.parametrize("row", [[0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_a_row_without_probabilities_is_an_error_of_its_own(row: list[float]) -> None:
    bad, good = ranked(row, [0.0, 0.0])
    assert isinstance(bad, GenerationError) and "no usable logits for token 2 of 'D'" in str(bad)
    assert [one.token for one in good] == [0, 1]


# Settings and results


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "num_beams must be positive, got 0"),
        ({"num_beams": 2.0}, "num_beams must be an integer, got 2.0"),
        ({"num_return_sequences": 0}, "num_return_sequences must be positive, got 0"),
        ({"num_return_sequences": True}, "num_return_sequences must be an integer, got True"),
        ({"num_return_sequences": 2}, "num_return_sequences must be at most num_beams 1, got 2"),
        ({"num_return_sequences": 5, "num_beams": 4}, "num_return_sequences must be at most num_beams 4, got 5"),
        ({"length_penalty": 11}, "length_penalty must be in [-10, 10], got 11"),
        ({"length_penalty": -10.5}, "length_penalty must be in [-10, 10], got -10.5"),
        ({"length_penalty": math.nan}, "length_penalty must be in [-10, 10], got nan"),
        ({"length_penalty": "1"}, "length_penalty must be a number, got '1'"),
        ({"early_stopping": "always"}, "early_stopping must be True, False or 'never', got 'always'"),
        ({"early_stopping": 1}, "early_stopping must be True, False or 'never', got 1"),
        ({"early_stopping": None}, "early_stopping must be True, False or 'never', got None"),
        ({"num_beams": 2, "temperature": 0.7}, "temperature must be 1.0 or 0.0 with num_beams above 1, got 0.7"),
        ({"num_beams": 2, "top_k": 5}, "top_k must be None or 0 with num_beams above 1, got 5"),
        ({"num_beams": 2, "top_p": 0.9}, "top_p must be 1.0 with num_beams above 1, got 0.9"),
        ({"num_beams": 2, "min_p": 0.1}, "min_p must be 0.0 with num_beams above 1, got 0.1"),
        (
            {"num_beams": 2, "repetition_penalty": 1.2},
            "repetition_penalty must be 1.0 with num_beams above 1, got 1.2",
        ),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        GenerationConfig(**settings)
    assert str(raised.value) == message


def test_settings_that_are_fine() -> None:
    config = GenerationConfig(num_beams=4, num_return_sequences=4, length_penalty=-10, early_stopping="never", top_k=0)
    assert GenerationConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert GenerationConfig(temperature=0.7, top_k=5).num_beams == 1


def test_a_document_in_a_given_context_cannot_be_searched() -> None:
    from ds2ds import DocumentContext, SingleDocumentGenerator

    context = DocumentContext(64)
    context.initialize_root([1, 2])
    with pytest.raises(ConfigError, match=r"num_beams must be 1 for a document in a given context, got 2: search with"):
        SingleDocumentGenerator(TOKENIZER).generate(small_model(), context, GenerationConfig(num_beams=2))


def test_alternatives_are_in_the_dictionary_and_on_disk(tmp_path: Path) -> None:
    result = small_runtime().generate(PROMPT, num_beams=3, num_return_sequences=3, max_new_tokens=4)
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    scores = [values["score"], *(one["score"] for one in values["alternatives"])]
    assert scores == sorted(scores, reverse=True) and len(scores) == 3
    assert values["alternatives"][0]["root_document"]["tokens"] != values["root_document"]["tokens"]
    save_result(result, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8")) == values


def test_what_forks_copy_is_not_counted_as_a_prompt_found_computed() -> None:
    runtime = small_runtime()
    settings = {"num_beams": 4, "max_new_tokens": 6, "max_link_depth": 0}
    first = runtime.generate("abc", **settings).trace
    assert first.tokens_reused > 0 and first.prompt_tokens_reused == 0
    again = runtime.generate("abc", **settings).trace
    assert again.prompt_tokens_reused == len(runtime.tokenize("abc")) - 1
