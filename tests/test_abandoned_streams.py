"""Streams that nobody refers to any more end at any time: a garbage collection may come in the midst of a step."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
from decode_reference import decode_in_tables, use_plain_kernels
from scripted import EOS, Texts, follow, is_clean, same_documents, small_runtime

from ds2ds.cache.document_store import DocumentStore
from ds2ds.engine import engine as engine_module
from ds2ds.engine import scheduler as scheduler_module
from ds2ds.engine.decode_graph.decoder import Decoder
from ds2ds.engine.engine import Engine
from ds2ds.engine.scheduler import Scheduler
from ds2ds.generation.link_following import LinkFollower

CORPUS = Texts({"A": "about A, with [b](B) and more", "B": "about B", "Long": "a long one " * 12})
PROMPTS = ["see [a](A) and [l](Long) now", "x [b](B)"]
ABANDONED = ["see [a](A) or [q](Unknown) so", "x [b](B)", "see [l](Long)"]
CONFIG: dict[str, Any] = {
    "max_new_tokens": 5,
    "max_tokens_per_document": 200,
    "max_context_length": 300,
    "eos_token_id": EOS,
    "logprobs": True,
    "seed": 3,
}
# All that a step goes through, from who starts to what a coroutine does with its token.
PLACES: list[tuple[Any, str]] = [
    *((engine_module, name) for name in ("forward", "account", "results")),
    *((scheduler_module, name) for name in ("may_start", "plan", "release")),
    (Engine, "_admit"),
    *((Scheduler, name) for name in ("pass_prefilled", "hand_over", "_send", "finish")),
    *((DocumentStore, name) for name in ("attach", "reserve", "advance", "complete", "release", "_drop")),
    *((LinkFollower, name) for name in ("_follow", "_follow_all", "_write")),
]
DECODER: list[tuple[Any, str]] = [
    (engine_module, "decodable"),
    *((Decoder, name) for name in ("decode", "row", "_launch", "_read")),
]


def within_steps(
    monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str], after: bool, number: int, decoder: bool = False
) -> bool:
    """Drop streams before a function is called, or after, for the n-th time within steps; whether it came to that."""
    runtime = small_runtime(max_running=8, arena_tokens=640)
    if decoder:
        decode_in_tables(runtime)
    streams = [runtime.stream(prompt, corpus=CORPUS, **CONFIG) for prompt in ABANDONED]
    for stream in streams:
        next(stream)
    del stream
    running = [runtime._generator.start(prompt, None, CORPUS, runtime._config(None, CONFIG)) for prompt in PROMPTS]
    function, calls = getattr(*place), itertools.count()

    def wrapped(*args: Any, **options: Any) -> Any:
        here = next(calls) == number
        if here and not after:
            streams.clear()
        result = function(*args, **options)
        if here and after:
            streams.clear()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(*place, wrapped)
        while not all(one.job.done for one in running):
            runtime.engine.step()
            runtime.engine.check_integrity()
    dropped = not streams
    streams.clear()
    assert is_clean(runtime)
    for one, prompt in zip(running, PROMPTS, strict=True):
        assert one.job.error is None
        assert_as_alone(one.result(), prompt)
    return dropped


def assert_as_alone(result: Any, prompt: str) -> None:
    alone = small_runtime().generate(prompt, corpus=CORPUS, **CONFIG)
    same_documents(result.get_all_documents(), alone.get_all_documents())


# What a finalizer raises is told by a warning alone.
loud = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


@loud
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[1])
def test_streams_dropped_in_the_midst_of_a_step(place: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert any([within_steps(monkeypatch, place, after, number) for after in (False, True) for number in (0, 3)])


@loud
@pytest.mark.parametrize("place", [*DECODER, (engine_module, "account")], ids=lambda place: place[1])
def test_streams_dropped_while_a_launched_step_is_out(place: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    use_plain_kernels(monkeypatch)
    assert any([within_steps(monkeypatch, place, after, number, True) for after in (False, True) for number in (0, 3)])


@loud
def test_a_coroutine_that_drops_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its generator is at work, and cannot be closed before it has yielded."""

    class Dropping(Texts):
        def get_document(self, title: str) -> Any:
            streams.clear()
            return super().get_document(title)

    follow(monkeypatch, {"": "see [a](A) now"})
    runtime = small_runtime()
    streams = [runtime.stream("p", corpus=Dropping(CORPUS.texts), **CONFIG | {"max_new_tokens": 20})]
    next(streams[0])
    while runtime.engine.busy:
        runtime.engine.step()
    assert not streams
    assert is_clean(runtime)


@loud
def test_streams_dropped_in_another_thread_while_steps_are_taken() -> None:
    runtime = small_runtime(max_running=8)
    stop, failed = threading.Event(), []

    def abandon() -> None:
        try:
            while not stop.is_set():
                streams = [runtime.stream(prompt, corpus=CORPUS, **CONFIG) for prompt in ABANDONED]
                for stream in streams:
                    next(stream)
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=abandon)
    thread.start()
    try:
        results = [runtime.generate(prompt, corpus=CORPUS, **CONFIG) for prompt in PROMPTS * 3]
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert is_clean(runtime)
    for prompt, result in zip(PROMPTS * 3, results, strict=True):
        assert_as_alone(result, prompt)
