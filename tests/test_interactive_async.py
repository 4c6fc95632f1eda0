"""Links decided over asyncio: a stream's questions, async callbacks, and what happens while one is open."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from asyncio_runs import run
from scripted import EOS, Texts, follow, is_clean, same_results, small_runtime

from ds2ds import (
    AsyncRuntime,
    ConfigError,
    DocumentOpened,
    Done,
    EventStream,
    Follow,
    LinkAsked,
    LinkClosed,
    LinkQuestion,
    Quit,
    RuntimeClosedError,
    Skip,
    Supply,
    TokenWritten,
    WorkerError,
)
from ds2ds.engine.engine import Engine
from ds2ds.generation.choices import Answer

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

TEXTS = {"A": "about A, with [b](B) and more", "B": "about B", "Long": "a long one " * 12}
OPTIONS: dict[str, Any] = {"max_new_tokens": 40, "seed": 3, "logprobs": True, "max_link_depth": 2, "eos_token_id": EOS}
PROMPT = "see [a](A)"


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " then [l](Long) and [q](Q).", "Q": "on [b](B)"})


def stream(runtime: AsyncRuntime, prompt: str = PROMPT, **options: Any) -> EventStream:
    options = {**OPTIONS, "interactive": True, **options}
    return runtime.stream(prompt, corpus=Texts(TEXTS), **options)


async def until_asked(events: EventStream) -> LinkQuestion:
    async for event in events:
        if isinstance(event, LinkAsked):
            return event.question
    raise AssertionError("nothing was asked")


async def answered(events: EventStream, answer: Callable[[LinkQuestion], Answer]) -> list[Any]:
    """All events of a stream whose questions are answered as they come."""
    told = []
    async for event in events:
        told.append(event)
        if isinstance(event, LinkAsked):
            await events.answer(event.question, answer(event.question))
    return told


def followed() -> Any:
    return small_runtime().generate(PROMPT, corpus=Texts(TEXTS), **OPTIONS)


def choose(question: LinkQuestion) -> Answer:
    return {"Long": Skip(), "Q": Supply("mine, [b](B)")}.get(question.title, Follow())


async def choose_later(question: LinkQuestion) -> Answer:
    await asyncio.sleep(0.001)
    return choose(question)


async def clean(runtime: AsyncRuntime) -> bool:
    return await runtime.call(is_clean)


# Answers


def test_a_stream_is_answered_as_it_is_read() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        told = await answered(stream(runtime), lambda question: Follow())
        assert isinstance(told[-1], Done)
        same_results(told[-1].result, followed())
        assert [e.question.title for e in told if isinstance(e, LinkAsked)] == ["A", "B", "Long", "Q", "B"]
        for index, event in enumerate(told):
            if isinstance(event, LinkAsked):
                assert isinstance(told[index + 1], LinkClosed) and told[index + 1].target == event.question.target

    run(main)


def test_all_ways_to_answer_give_the_same() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        corpus = Texts(TEXTS)
        expected = list(small_runtime().stream(PROMPT, corpus=corpus, on_link=choose, **OPTIONS))
        assert isinstance(expected[-1], Done)
        told = await answered(stream(runtime), choose)
        assert [e for e in told if isinstance(e, LinkAsked | LinkClosed)] == [
            e for e in expected if isinstance(e, LinkAsked | LinkClosed)
        ]
        assert [type(event) for event in told] == [type(event) for event in expected]
        for on_link in (choose, choose_later):
            events = stream(runtime, interactive=False, on_link=on_link)
            asked = [event async for event in events]
            assert [type(event) for event in asked] == [type(event) for event in expected]
            results = [
                told[-1].result,
                asked[-1].result,  # type: ignore[attr-defined]
                await stream(runtime, interactive=False, on_link=on_link).result(),
                await runtime.generate(PROMPT, corpus=corpus, on_link=on_link, **OPTIONS),
                *await runtime.generate_batch([PROMPT] * 3, corpus, on_link=on_link, **OPTIONS),
            ]
            for result in results:
                same_results(result, expected[-1].result)

    run(main)


def test_a_batch_tells_which_prompt_asks() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        seen: list[tuple[int, str]] = []

        async def on_link(question: LinkQuestion) -> Answer:
            seen.append((question.request, question.title))
            await asyncio.sleep(0.001 * (2 - question.request))
            return Skip() if question.request else Follow()

        results = await runtime.generate_batch(["[a](A)", "[l](Long)"], Texts(TEXTS), on_link=on_link, **OPTIONS)
        assert {request for request, _ in seen} == {0, 1} and (1, "A") not in seen
        assert [result.trace.links_skipped for result in results] == [0, 3]

    run(main)


def test_a_question_may_be_named_by_its_number_and_answered_by_another_task() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        events = stream(runtime)
        numbers: asyncio.Queue[int] = asyncio.Queue()

        async def decide() -> None:
            while True:
                await events.answer(await numbers.get(), Follow())

        deciding = asyncio.create_task(decide())
        async for event in events:
            if isinstance(event, LinkAsked):
                await numbers.put(event.question.number)
            if isinstance(event, Done):
                same_results(event.result, followed())
        deciding.cancel()
        await asyncio.wait([deciding])

    run(main)


def test_quitting() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        told = await answered(stream(runtime), lambda q: Quit() if q.title == "Q" else Follow())
        assert told[-1].result.root_document.finish_reason == "quit"
        assert told[-1].result.root_document.text == PROMPT + " then [l](Long) and [q](Q)."

    run(main)


# What is no answer


def test_a_wrong_answer_leaves_the_question_open() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        events = stream(runtime)
        with pytest.raises(ConfigError, match=r"question 0 is not open, none is"):
            await events.answer(0, Follow())
        question = await until_asked(events)
        with pytest.raises(ConfigError, match="the answer to a link must be"):
            await events.answer(question, "follow")  # type: ignore[arg-type]
        for other in (question.number + 1, replace(question, title="Other"), "0"):
            with pytest.raises(ConfigError, match="is not open, number 0 is"):
                await events.answer(other, Follow())  # type: ignore[arg-type]
        await events.answer(question, Skip())
        with pytest.raises(ConfigError, match="question 0 is not open, none is: it was answered, or the stream"):
            await events.answer(question, Follow())
        assert (await until_asked(events)).number == 1
        await events.aclose()
        with pytest.raises(ConfigError, match="question 1 is not open, none is"):
            await events.answer(1, Follow())
        assert await clean(runtime)

    run(main)


def test_what_a_callback_does_wrong_ends_its_request_alone() -> None:
    async def fails(question: LinkQuestion) -> Answer:
        await asyncio.sleep(0)
        raise LookupError("no idea")

    async def nothing(question: LinkQuestion) -> Any:
        return None

    async def main(runtime: AsyncRuntime) -> None:
        corpus = Texts(TEXTS)
        for on_link, error in ((fails, LookupError), (nothing, ConfigError)):
            other = asyncio.create_task(runtime.generate(PROMPT, corpus=corpus, on_link=choose_later, **OPTIONS))
            with pytest.raises(error, match=r"no idea|the answer to a link must be"):
                await runtime.generate(PROMPT, corpus=corpus, on_link=on_link, **OPTIONS)
            events = stream(runtime, interactive=False, on_link=on_link)
            with pytest.raises(error):
                [event async for event in events]
            with pytest.raises(StopAsyncIteration):
                await anext(events)
            (result,) = await runtime.generate_batch([PROMPT], corpus, on_link=on_link, return_errors=True, **OPTIONS)
            assert isinstance(result, error)
            assert (await other).trace.links_skipped == 1
        assert await clean(runtime)

    run(main)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interactive": "yes"}, "interactive must be True or False, got 'yes'"),
        ({"on_link": 5}, "on_link must be a function that takes a LinkQuestion, got 5"),
        ({"interactive": True, "on_link": choose}, "give interactive=True, .* or on_link, and not both"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    async def main(runtime: AsyncRuntime) -> None:
        with pytest.raises(ConfigError, match=message):
            runtime.stream(PROMPT, **options)
        if options.get("on_link") == 5:
            with pytest.raises(ConfigError, match=message):
                await runtime.generate(PROMPT, **options)
            with pytest.raises(ConfigError, match=message):
                await runtime.generate_batch([PROMPT], **options)

    run(main)


def test_the_result_of_a_stream_that_nobody_answers() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        events = stream(runtime)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the stream asks about a link: read its events and answer them"):
                await events.result()
        await events.answer(0, Skip())  # it is open still
        assert (await until_asked(events)).title == "Long"
        await events.aclose()
        with pytest.raises(RuntimeError, match="the stream has ended or was closed"):
            await events.result()
        plain = stream(runtime, "see")  # what never asks
        with pytest.raises(RuntimeError, match="the stream asks about a link"):
            await plain.result()
        del events, plain
        gc.collect()
        assert await clean(runtime)
        none = runtime.stream("see", corpus=Texts(TEXTS), interactive=True, **{**OPTIONS, "max_link_depth": 0})
        assert (await none.result()).trace.links_not_followed == 2

    run(main)


# While a question is open


def test_all_others_go_on() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        waiting = [stream(runtime) for _ in range(5)]
        questions = [await until_asked(events) for events in waiting]
        for _ in range(2):
            same_results(await runtime.generate(PROMPT, corpus=Texts(TEXTS), **OPTIONS), followed())
        told = await answered(stream(runtime), lambda question: Follow())
        same_results(told[-1].result, followed())
        for events, question in reversed(list(zip(waiting, questions, strict=True))):
            await events.answer(question, Follow())
            told = await answered(events, lambda question: Follow())
            same_results(told[-1].result, followed())

    run(main, max_running=1, max_queue=1)


def test_the_worker_sleeps() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        events = stream(runtime)
        question = await until_asked(events)
        steps = 0
        step = Engine.step

        def counted(engine: Engine) -> None:
            nonlocal steps
            steps += 1
            step(engine)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "step", counted)
            before = time.process_time()
            await asyncio.sleep(0.4)
            assert time.process_time() - before < 0.1 and steps == 0
            await events.answer(question, Follow())
            assert isinstance(await anext(events), LinkClosed) and steps > 0
        await events.aclose()

    run(main)


def test_a_time_limit_is_the_readers_own() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        async def never(question: LinkQuestion) -> Answer:
            await asyncio.sleep(60)
            return Follow()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await runtime.generate(PROMPT, corpus=Texts(TEXTS), on_link=never, **OPTIONS)
        assert await clean(runtime)

        async def skip_after(question: LinkQuestion) -> Answer:
            try:
                async with asyncio.timeout(0.005):
                    return await never(question)
            except TimeoutError:
                return Skip()

        result = await runtime.generate(PROMPT, corpus=Texts(TEXTS), on_link=skip_after, **OPTIONS)
        assert result.trace.links_skipped == 3 and result.auxiliary_documents == []

    run(main)


@pytest.mark.parametrize("way", ["close", "forget", "leave", "cancel", "cancel the callback"])
def test_a_stream_that_is_left_at_a_question_frees_everything(way: str) -> None:
    async def main(runtime: AsyncRuntime) -> None:
        if way == "close":
            events = stream(runtime)
            await until_asked(events)
            assert not await clean(runtime)
            await events.aclose()
        elif way == "forget":
            events = stream(runtime)
            await until_asked(events)
            del events
            gc.collect()
        elif way == "leave":
            with pytest.raises(ZeroDivisionError):
                async with stream(runtime) as events:
                    await until_asked(events)
                    raise ZeroDivisionError
        elif way == "cancel":
            events = stream(runtime)
            await until_asked(events)
            reader = asyncio.create_task(anext(events))  # type: ignore[arg-type]
            await asyncio.sleep(0.01)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
        else:
            asked = asyncio.Event()

            async def never(question: LinkQuestion) -> Answer:
                asked.set()
                await asyncio.sleep(60)
                return Follow()

            task = asyncio.create_task(runtime.generate(PROMPT, corpus=Texts(TEXTS), on_link=never, **OPTIONS))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await clean(runtime)

    run(main)


def test_closing_a_stream_while_its_callback_decides() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        asked, go_on = asyncio.Event(), asyncio.Event()

        async def on_link(question: LinkQuestion) -> Answer:
            asked.set()
            await go_on.wait()
            return Follow()

        events = stream(runtime, interactive=False, on_link=on_link)

        async def read() -> list[Any]:
            return [event async for event in events]

        reader = asyncio.create_task(read())
        await asked.wait()
        await events.aclose()
        go_on.set()
        assert [type(event) for event in await reader] == [DocumentOpened, LinkAsked]
        assert await clean(runtime)

    run(main)


def test_a_question_is_put_to_a_callback_once() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        asked: list[int] = []

        async def on_link(question: LinkQuestion) -> Answer:
            asked.append(question.number)
            with pytest.raises(RuntimeError, match="two tasks read one stream"):
                await anext(events)
            return Follow()

        events = stream(runtime, interactive=False, on_link=on_link)
        told = [event async for event in events]
        assert asked == list(range(len(asked))) and isinstance(told[-1], Done)
        assert await clean(runtime)

    run(main)


def test_a_slow_reader_finds_the_question_where_it_belongs() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        events = stream(runtime, "p")
        assert isinstance(await anext(events), DocumentOpened)
        while not await runtime.call(lambda r: r.engine.parked):
            await asyncio.sleep(0)
        with pytest.raises(ConfigError, match="not open"):  # it is asked, but was not read yet
            await events.answer(0, Follow())
        told = [await anext(events)]
        while not isinstance(told[-1], LinkAsked):
            told.append(await anext(events))
        assert "".join(event.text for event in told if isinstance(event, TokenWritten)) == " then [l](Long)"
        await events.answer(0, Follow())
        await events.aclose()

    run(main)


# The end


def test_a_drain_waits_for_the_answers() -> None:
    runtime = small_runtime(arena_tokens=40_000)

    async def main() -> None:
        made = AsyncRuntime(runtime)
        events = stream(made)
        question = await until_asked(events)
        draining = asyncio.create_task(made.aclose())
        done, _ = await asyncio.wait([draining], timeout=0.05)
        assert not done
        with pytest.raises(RuntimeClosedError):
            made.stream("p")
        await events.answer(question, Follow())
        told = await answered(events, lambda question: Follow())
        same_results(told[-1].result, followed())
        await draining

    asyncio.run(main())
    assert is_clean(runtime)


def test_a_drain_ends_when_the_last_question_is_dropped() -> None:
    runtime = small_runtime(arena_tokens=40_000)

    async def main() -> None:
        made = AsyncRuntime(runtime)
        events = stream(made)
        await until_asked(events)
        draining = asyncio.create_task(made.aclose())
        await asyncio.sleep(0.01)
        await events.aclose()
        await asyncio.wait_for(draining, 30)

    asyncio.run(main())
    assert is_clean(runtime)


@pytest.mark.parametrize("draining", [False, True])
def test_closing_with_cancel_ends_what_waits(draining: bool) -> None:
    runtime = small_runtime(arena_tokens=40_000)

    async def main() -> None:
        made = AsyncRuntime(runtime)
        events = stream(made)
        question = await until_asked(events)
        drain = asyncio.create_task(made.aclose()) if draining else None
        await asyncio.sleep(0)
        await made.aclose(cancel=True)
        if drain is not None:
            await drain
        assert is_clean(runtime)
        with pytest.raises(RuntimeClosedError):
            await events.answer(question, Follow())
        with pytest.raises(RuntimeClosedError):
            await anext(events)

    asyncio.run(main())


def test_a_failure_of_the_worker_reaches_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small_runtime(arena_tokens=40_000)

    def failing(engine: Engine) -> None:
        raise MemoryError("no more")

    async def main() -> None:
        async with AsyncRuntime(runtime) as made:
            one, two = stream(made), stream(made)
            first, second = await until_asked(one), await until_asked(two)
            monkeypatch.setattr(Engine, "step", failing)
            await one.answer(first, Follow())
            with pytest.raises(WorkerError):
                await anext(one)
            with pytest.raises(WorkerError):
                await two.answer(second, Follow())
            with pytest.raises(WorkerError):
                await anext(two)

    asyncio.run(main())
    assert is_clean(runtime)


def test_a_stream_is_answered_in_its_own_event_loop() -> None:
    made = AsyncRuntime(small_runtime())
    events = stream(made)
    question = asyncio.run(until_asked(events))
    with pytest.raises(RuntimeError, match="in another event loop"):
        asyncio.run(events.answer(question, Follow()))
    asyncio.run(made.aclose(cancel=True))
