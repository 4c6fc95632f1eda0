"""Many requests under random limits, policies and arenas, with the arena stirred between any two steps: the oracle's
results, no leak, and no error but one that the arena's size alone explains."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from link_graphs import texts, tiny_model
from scripted import is_clean
from test_random_link_graphs import (
    LAYOUTS,
    MAX_SEQ_LEN,
    MODELS,
    TOKENIZER,
    Request,
    assert_rare_ties,
    check_documents,
    check_grants_are_of_links,
    check_scores,
    check_view,
    corpora,
    requests,
    snapshot,
    tight_requests,
)

from ds2ds import ArenaFullError, GenerationResult, Runtime
from ds2ds.documents.eviction import EVICTION_POLICIES
from ds2ds.engine.engine import Engine

SLOTS = (96, 128, 192, 256, 384, 768)


@dataclass
class Scene:
    """Requests that run together on one runtime, and how the arena is stirred."""

    requests: list[Request]
    arena_tokens: int
    document_store: bool
    retention: str
    stir: int | None

    def runtime(self) -> Runtime:
        first = self.requests[0]
        return Runtime(
            tiny_model(*first.model, MAX_SEQ_LEN),
            TOKENIZER,
            first.layout,
            device="cpu",
            arena_tokens=self.arena_tokens,
            document_store=self.document_store,
            retention=self.retention,
        )


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Up to four requests to one model over one corpus, each with settings of its own."""
    model, layout = draw(st.sampled_from(MODELS)), draw(st.sampled_from(LAYOUTS))
    corpus = draw(corpora())
    drawn = []
    for _ in range(draw(st.integers(1, 4))):
        request = replace(draw(tight_requests() | requests()), model=model, layout=layout, corpus=corpus)
        start = len(request.prefix(request.title)) + len(request.prompt) + 1
        for name in ("max_context_length", "max_tokens_per_document"):
            request.options[name] = max(request.option(name), start)
        if "max_auxiliary_documents" in request.options:
            request.options["eviction_policy"] = draw(st.sampled_from(sorted(EVICTION_POLICIES)))
        else:  # a wide request reserves what it may write: no more than the arenas here can give
            request.options["max_tokens_per_document"] = max(48, start)
        drawn.append(request)
    return Scene(
        drawn,
        draw(st.sampled_from(SLOTS)),
        draw(st.sampled_from([True, True, True, False])),
        draw(st.sampled_from(["gdsf", "lru"])),
        draw(st.none() | st.integers(0, 2**16)),
    )


def stir(engine: Engine, dice: random.Random) -> None:
    """Move extents about, and fill all that is free with NaN: whatever is read without having been written shows."""
    arena = engine.store.arena
    allocator = arena.allocator
    wedges = [allocator.allocate(allocator.block * dice.randint(1, 2)) for _ in range(dice.randint(0, 3))]
    poison(engine)
    arena.compact()
    for wedge in wedges:
        if wedge is not None:
            allocator.release(wedge)
    poison(engine)


def poison(engine: Engine) -> None:
    arena = engine.store.arena
    at = 0
    for extent in arena.allocator.extents:
        arena.data[..., at : extent.start, :] = float("nan")
        at = extent.stop
    arena.data[..., at:, :] = float("nan")


def run(scene: Scene) -> list[GenerationResult | Exception]:
    """All requests of a scene, checked after every step."""
    runtime = scene.runtime()
    arena = runtime.engine.store.arena.data
    memory = (arena.data_ptr(), arena.shape)
    dice = random.Random(scene.stir)
    running: list[Any] = []
    for request in scene.requests:
        options = runtime._config(None, {**request.options, "logprobs": True, "eos_token_id": 0})
        running.append(runtime._generator.start(None, request.prompt, request.corpus, options, request.title))
    while not all(one.job.done for one in running):
        if scene.stir is not None:
            stir(runtime.engine, dice)
        runtime.engine.step()
        runtime.engine.check_integrity()
    assert is_clean(runtime)
    arena = runtime.engine.store.arena.data
    assert (arena.data_ptr(), arena.shape) == memory
    return [one.job.error or one.result() for one in running]


def over_scenes(examples: int, seen: Counter[str]) -> Callable[[], None]:
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(scenes())
    def soak(scene: Scene) -> None:
        for request, outcome in zip(scene.requests, run(scene), strict=True):
            seen["requests"] += 1
            alone = replace(scene, requests=[request])
            if isinstance(outcome, Exception):
                # Its neighbours are no excuse: alone, too, it finds no room.
                assert isinstance(outcome, ArenaFullError), outcome
                (by_itself,) = run(alone)
                assert isinstance(by_itself, ArenaFullError)
                assert f"of {scene.arena_tokens} can be had" in str(outcome) and " needs " in str(outcome)
                seen["full"] += 1
                continue
            check_documents(outcome, request)
            check_view(outcome, request)
            check_grants_are_of_links(outcome, request)
            check_scores(outcome, request, seen)
            seen["evictions"] += outcome.trace.evictions
            seen["reused"] += outcome.trace.tokens_reused
            seen[f"finish {outcome.root_document.finish_reason}"] += 1
            seen[request.option("eviction_policy")] += 1

    return soak


def assert_worth_the_name(seen: Counter[str]) -> None:
    assert_rare_ties(seen)
    assert min(seen["evictions"], seen["reused"], seen["finish context_full"], seen["full"]) > 0, seen
    assert min(seen[policy] for policy in EVICTION_POLICIES) > 0, seen


def test_random_scenes() -> None:
    seen: Counter[str] = Counter()
    over_scenes(100, seen)()
    assert_worth_the_name(seen)


@pytest.mark.slow
def test_soak_of_two_thousand_requests() -> None:
    seen: Counter[str] = Counter()
    over_scenes(1000, seen)()
    print(dict(seen))
    assert seen["requests"] >= 2000
    assert_worth_the_name(seen)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(tight_requests() | requests(), st.lists(texts(), max_size=2))
def test_the_store_on_off_cold_and_warm_gives_the_same(request: Request, before: list[list[int]]) -> None:
    def fresh(**options: Any) -> Runtime:
        weights = tiny_model(*request.model, MAX_SEQ_LEN)
        return Runtime(weights, TOKENIZER, request.layout, device="cpu", **options)

    off, cold = request.run(fresh(document_store=False)), fresh()
    results = [request.run(cold), request.run(cold)]
    busy = fresh(retention="lru")
    for prompt in before:
        start = len(request.prefix(request.title)) + len(prompt) + 1
        wide = {"max_context_length": MAX_SEQ_LEN, "max_tokens_per_document": max(64, start)}
        replace(request, prompt=prompt, options={**request.options, **wide}).run(busy)
    results.append(request.run(busy))
    for result in results:
        assert snapshot(result) == snapshot(off)
        for document, other in zip(result.get_all_documents(), off.get_all_documents(), strict=True):
            np.testing.assert_allclose(document.token_logprobs, other.token_logprobs, atol=1e-4, rtol=0)
