"""Requests that wait for an answer: the engine goes on with all others, and nothing is lost or left over."""

from __future__ import annotations

import inspect
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scripted import EOS, Texts, counting, follow, is_clean, same_documents, small_runtime
from test_random_link_graphs import check_scores, check_view, new_runtime, snapshot
from test_soak import Scene, scenes, stir

from ds2ds import ArenaFullError, ConfigError, Follow, GenerationConfig, LinkQuestion, Runtime, Skip
from ds2ds.engine.holding import release
from ds2ds.generation.running import Running

TEXTS = {"A": "about A, with [b](B) and more", "B": "about B", "Long": "a long one " * 12}


def config(**options: Any) -> GenerationConfig:
    wide = {"max_context_length": 300, "max_tokens_per_document": 200, "max_link_depth": 2, "logprobs": True}
    return GenerationConfig(**{"eos_token_id": EOS, "seed": 3, "max_new_tokens": 20, **wide, **options})


def start(runtime: Runtime, prompt: str, *, asks: bool = True, priority: int = 0, **options: Any) -> Running:
    request = runtime._generator.new_request(prompt, None, Texts(TEXTS), config(**options), interactive=asks)
    return runtime._generator.submit(request, priority)


def finish(runtime: Runtime, *running: Running) -> None:
    """Step until these are done, or nothing moves."""
    while runtime.engine.busy and not all(one.job.done for one in running):
        runtime.engine.step()
        runtime.engine.check_integrity()


def until_asked(runtime: Runtime, one: Running, title: str) -> None:
    """Follow all up to a title."""
    while one.job.question is None or one.job.question.title != title:
        assert runtime.engine.busy or one.job.question is not None
        if one.job.question is not None:
            runtime.engine.answer(one.job, Follow())
        runtime.engine.step()
        runtime.engine.check_integrity()


def same_as_alone(running: Running, prompt: str, **options: Any) -> None:
    assert running.job.done and running.job.error is None
    alone = small_runtime().generate(prompt, corpus=Texts(TEXTS), config=config(**options))
    same_documents(running.result().get_all_documents(), alone.get_all_documents())


def test_others_finish_while_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "x [l](Long) y"})
    runtime = small_runtime(arena_tokens=40_000)
    one = start(runtime, "p [a](A)")
    until_asked(runtime, one, "Long")
    others = [start(runtime, f"q{index} [b](B)", asks=False) for index in range(3)]
    finish(runtime, *others)
    for index, other in enumerate(others):
        same_as_alone(other, f"q{index} [b](B)")
    assert isinstance(one.job.question, LinkQuestion) and not one.job.done
    runtime.engine.answer(one.job, Follow())
    finish(runtime, one)
    same_as_alone(one, "p [a](A)")
    assert is_clean(runtime)


def test_one_that_waits_takes_no_place_among_those_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of max_running nor of the arena, in which only one request has room at a time."""
    follow(monkeypatch, {"": "x [l](Long) y"})
    for options in ({"max_running": 1, "arena_tokens": 40_000}, {"arena_tokens": 416}):
        runtime = small_runtime(**options)
        waiting = [start(runtime, f"p{index} [a](A)") for index in range(3)]
        finish(runtime, *waiting)
        assert [one.job.question.title for one in waiting] == ["A"] * 3
        other = start(runtime, "q [b](B)", asks=False)
        finish(runtime, other)
        same_as_alone(other, "q [b](B)")
        for one in reversed(waiting):
            while not one.job.done:
                if one.job.question is not None:
                    runtime.engine.answer(one.job, Follow())
                runtime.engine.step()
        for index, one in enumerate(waiting):
            same_as_alone(one, f"p{index} [a](A)")
        assert is_clean(runtime)


def test_nothing_is_computed_while_all_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small_runtime()
    one = start(runtime, "p [a](A)")
    runtime.engine.step()
    assert one.job.question is not None and not runtime.engine.busy
    with counting(monkeypatch) as rows:
        for _ in range(3):
            runtime.engine.step()
    assert rows == [] and one.job.question is not None
    runtime.engine.answer(one.job, Skip())
    assert runtime.engine.busy and one.job.question is None
    finish(runtime, one)
    assert one.job.error is None and is_clean(runtime)


def test_it_keeps_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reads is pinned: others make room of what nobody uses."""
    follow(monkeypatch, {"": "x [l](Long) y"})
    runtime = small_runtime(arena_tokens=512, retention="lru")
    one = start(runtime, "p [a](A)")
    until_asked(runtime, one, "Long")
    store, root = runtime.engine.store, one.request.context.root
    (a,) = [document for document in one.request.context.window if document.title == "A"]
    before = store.computed(root), store.computed(a)
    assert before[0] == len(root.tokens) - 1 and before[1] == len(a.tokens)
    for index in range(12):
        other = start(runtime, f"{index}" * 40, asks=False, max_link_depth=0, max_tokens_per_document=100)
        finish(runtime, other)
        assert other.job.error is None
    assert (store.computed(root), store.computed(a)) == before
    runtime.engine.answer(one.job, Follow())
    with counting(monkeypatch) as rows:
        runtime.engine.step()
    assert rows == [1]  # the token in which the link closed
    finish(runtime, one)
    same_as_alone(one, "p [a](A)")
    assert is_clean(runtime)


def test_where_the_arena_is_full_it_gives_up_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "x [l](Long) y"})
    runtime = small_runtime(arena_tokens=512)
    long = {"max_new_tokens": 200}  # so that there is room reserved for 200 tokens of each
    one, two = (start(runtime, prompt, **long) for prompt in ("p [a](A)", "q [b](B)"))
    for asked in (one, two):
        until_asked(runtime, asked, "Long")
    assert one.job.touched and two.job.touched
    other = start(runtime, "z" * 150, asks=False, **long)
    runtime.engine.step()
    # The last in turn first, and no more than has to.
    assert one.job.touched and not two.job.touched
    finish(runtime, other)
    same_as_alone(other, "z" * 150, **long)
    for asked, prompt in ((two, "q [b](B)"), (one, "p [a](A)")):
        assert asked.job.question.title == "Long"  # it is open still
        runtime.engine.answer(asked.job, Follow())
        finish(runtime, asked)
        same_as_alone(asked, prompt, **long)
    assert is_clean(runtime)


def test_it_gives_up_before_others_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "x [l](Long) y"})
    runtime = small_runtime(arena_tokens=448)
    waiting = start(runtime, "p [a](A)", max_new_tokens=200)
    until_asked(runtime, waiting, "Long")
    limits = {"max_context_length": 100, "max_tokens_per_document": 100, "max_auxiliary_documents": 0}
    limits |= {"max_link_depth": 0, "max_new_tokens": 200}
    one, two = (start(runtime, prompt, asks=False, **limits) for prompt in "qr")
    runtime.engine.step()
    # There is room for one of them beside what the waiting one holds, and for both without.
    assert not waiting.job.touched
    assert [len(each.request.context.root.tokens) for each in (one, two)] == [2, 2]
    finish(runtime, one, two)
    runtime.engine.answer(waiting.job, Follow())
    finish(runtime, waiting)
    same_as_alone(waiting, "p [a](A)", max_new_tokens=200)
    assert is_clean(runtime)


def test_what_it_gave_up_takes_no_more_room_than_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its documents came one after the other, each in place of the one before: so they are computed again."""
    titles = "CDEFGH"
    follow(monkeypatch, {"": "".join(f"[x]({title})" for title in titles) + "[l](Long)"})
    corpus = Texts({**dict.fromkeys(titles, "some text " * 9), "Long": "long"})
    corpus.texts = {title: f"{title} {text}" for title, text in corpus.texts.items()}
    limits = {"max_auxiliary_documents": 1, "max_new_tokens": 100, "max_link_depth": 1}
    for gives_up in (False, True):
        runtime = small_runtime(arena_tokens=400)
        request = runtime._generator.new_request("p", None, corpus, config(**limits), interactive=True)
        one = runtime._generator.submit(request)
        until_asked(runtime, one, "Long")
        if gives_up:
            release(runtime.engine.store, one.job)
            runtime.engine.store.clear()
        runtime.engine.answer(one.job, Follow())
        finish(runtime, one)
        assert one.job.error is None and one.result().trace.evictions == len(titles)
        alone = small_runtime().generate("p", corpus=corpus, config=config(**limits))
        same_documents(one.result().get_all_documents(), alone.get_all_documents())
        assert is_clean(runtime)


def test_one_that_waits_is_no_excuse_for_a_full_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request fails only where it finds no room alone, and one that was suspended may ask."""
    follow(monkeypatch, {"": "x [l](Long) y" + "z" * 100})
    options = {"max_new_tokens": 150, "max_tokens_per_document": 190}
    runtime = small_runtime(arena_tokens=400)
    waiting = start(runtime, "p [a](A)", **options)
    until_asked(runtime, waiting, "Long")
    other = start(runtime, "q [b](B)", asks=False, **options)
    finish(runtime, other)
    same_as_alone(other, "q [b](B)", **options)
    runtime.engine.scheduler._suspend(_running_again(runtime, waiting))
    finish(runtime, waiting)
    same_as_alone(waiting, "p [a](A)", **options)
    assert is_clean(runtime)


def _running_again(runtime: Runtime, one: Running) -> Any:
    runtime.engine.answer(one.job, Follow())
    runtime.engine.step()
    assert one.job in runtime.engine.running and one.job not in runtime.engine.parked
    return one.job


@pytest.mark.parametrize("stage", ["asked at once", "holding", "released", "answered"])
def test_cancelling_frees_everything(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "x [l](Long) y"})
    runtime = small_runtime(arena_tokens=40_000)
    one = start(runtime, "p [a](A)")
    runtime.engine.step()
    if stage != "asked at once":
        until_asked(runtime, one, "Long")
    if stage == "released":
        release(runtime.engine.store, one.job)
    if stage == "answered":
        runtime.engine.answer(one.job, Follow())
    runtime.engine.cancel(one.job)
    assert one.job.done and one.job.error is None and one.job.question is None
    assert inspect.getgeneratorstate(one.job.coroutine) == inspect.GEN_CLOSED
    assert is_clean(runtime) and not runtime.engine.busy
    runtime.engine.cancel(one.job, LookupError())  # no effect
    assert one.job.error is None


def test_it_can_be_ended_with_an_error() -> None:
    runtime = small_runtime()
    one = start(runtime, "p [a](A)")
    runtime.engine.step()
    runtime.engine.cancel(one.job, LookupError("mine"))
    assert isinstance(one.job.error, LookupError) and is_clean(runtime)


def test_another_answer_ends_its_request_alone() -> None:
    runtime = small_runtime(arena_tokens=40_000)
    one, two = start(runtime, "p [a](A)"), start(runtime, "q [a](A)")
    runtime.engine.step()
    runtime.engine.answer(one.job, "follow")
    runtime.engine.answer(two.job, Skip())
    finish(runtime, one, two)
    assert isinstance(one.job.error, ConfigError) and "got 'follow'" in str(one.job.error)
    assert two.job.done and two.job.error is None and is_clean(runtime)


def test_who_asks_nothing_cannot_be_answered() -> None:
    runtime = small_runtime()
    one = start(runtime, "p [a](A)")
    with pytest.raises(RuntimeError, match="a job was answered that asks nothing"):
        runtime.engine.answer(one.job, Follow())
    runtime.engine.step()
    runtime.engine.answer(one.job, Follow())
    with pytest.raises(RuntimeError, match="a job was answered that asks nothing"):
        runtime.engine.answer(one.job, Follow())
    runtime.engine.cancel(one.job)
    with pytest.raises(RuntimeError, match="a job was answered that asks nothing"):
        runtime.engine.answer(one.job, Follow())
    assert is_clean(runtime)


def test_a_run_that_nobody_reads_does_not_wait_for_ever() -> None:
    runtime = small_runtime()
    one = start(runtime, "p [a](A)")
    with pytest.raises(RuntimeError, match="nobody is there to answer LinkQuestion"):
        for _ in runtime.engine.run(one.job):
            pass
    assert is_clean(runtime)


def test_what_was_answered_goes_on_in_its_turn() -> None:
    """Before all that were submitted after it, of its priority."""
    runtime = small_runtime(max_running=1, arena_tokens=40_000)
    first = start(runtime, "p [a](A)")
    runtime.engine.step()
    later = [start(runtime, f"q{index}", asks=False) for index in range(3)]
    urgent = start(runtime, "u", asks=False, priority=1)
    runtime.engine.answer(first.job, Skip())
    order: list[Any] = []
    while runtime.engine.busy:
        runtime.engine.step()
        runtime.engine.check_integrity()
        assert len(runtime.engine.running) <= 1
        order += [one for one in (first, *later, urgent) if one.job.done and one not in order]
    assert order == [urgent, first, *later] and is_clean(runtime)


def test_the_queues_bound_is_not_for_what_was_answered() -> None:
    runtime = small_runtime(max_running=1, max_queue=1, arena_tokens=40_000)
    one = start(runtime, "p [a](A)")
    runtime.engine.step()
    running = start(runtime, "q", asks=False)
    runtime.engine.step()
    queued = start(runtime, "r", asks=False)
    assert not runtime.engine.has_room()
    runtime.engine.answer(one.job, Skip())
    assert len(runtime.engine.queue) == 2 and not runtime.engine.has_room()
    finish(runtime, one, running, queued)
    assert all(each.job.done and each.job.error is None for each in (one, running, queued)) and is_clean(runtime)


def test_integrity_sees_what_those_hold_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "x [l](Long) y"})
    runtime = small_runtime()
    one = start(runtime, "p")
    until_asked(runtime, one, "Long")
    runtime.engine.parked.clear()
    with pytest.raises(RuntimeError, match="are in use, but no request runs that has them"):
        runtime.engine.check_integrity()
    runtime.engine.parked.append(one.job)
    runtime.engine.cancel(one.job)
    assert is_clean(runtime)


# Random scenes: answers come early, late or in any order, with the arena stirred between any two steps


def run(scene: Scene, patience: int) -> tuple[list[Any], Counter[str]]:
    """All requests of a scene, each link followed after a while; checked after every step."""
    runtime, dice, seen = scene.runtime(), random.Random(patience), Counter[str]()
    running = []
    for request in scene.requests:
        options = runtime._config(None, {**request.options, "logprobs": True, "eos_token_id": 0})
        new_request = runtime._generator.new_request
        made = new_request(None, request.prompt, request.corpus, options, request.title, interactive=True)
        running.append(runtime._generator.submit(made))
    while not all(one.job.done for one in running):
        asking = [one.job for one in running if one.job.question is not None]
        if asking and (not runtime.engine.busy or dice.randrange(8) == 0):
            seen["questions"] += 1
            runtime.engine.answer(dice.choice(asking), Follow())
        if scene.stir is not None:
            stir(runtime.engine, dice)
        held = {job for job in runtime.engine.parked if job.touched}
        runtime.engine.step()
        runtime.engine.check_integrity()
        seen["gave up"] += sum(not job.touched for job in held.intersection(runtime.engine.parked))
        seen["others went on"] += bool(runtime.engine.running and asking)
    assert is_clean(runtime)
    return [one.job.error or one.result() for one in running], seen


def over_scenes(examples: int) -> Counter[str]:
    seen: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # to shrink a scene takes minutes
    )
    @given(scenes(), st.integers(0, 2**16))
    def soak(scene: Scene, patience: int) -> None:
        outcomes, counted = run(scene, patience)
        seen.update(counted)
        for request, outcome in zip(scene.requests, outcomes, strict=True):
            if isinstance(outcome, Exception):
                assert isinstance(outcome, ArenaFullError), outcome
                (by_itself,), _ = run(replace(scene, requests=[request]), patience)
                assert isinstance(by_itself, ArenaFullError)
                seen["full"] += 1
                continue
            options = {**request.options, "logprobs": True, "eos_token_id": EOS}
            on = new_runtime(request.model, request.layout)
            alone = on.generate(None, request.prompt, request.corpus, title=request.title, **options)
            assert snapshot(outcome) == snapshot(alone)
            check_view(outcome, request)
            check_scores(outcome, request, seen)

    soak()
    assert min(seen["questions"], seen["others went on"]) > 0, seen
    return seen


def test_random_scenes() -> None:
    over_scenes(20)


@pytest.mark.slow
def test_soak() -> None:
    seen = over_scenes(800)
    assert min(seen["gave up"], seen["full"]) > 0, seen
