"""AsyncRuntime: many requests at a time in asyncio, each as in a Runtime, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import pytest
from asyncio_runs import run
from scripted import EOS, Texts, encode, follow, is_clean, same_results, small_runtime

from ds2ds import (
    AsyncRuntime,
    ConfigError,
    CorpusError,
    DocumentOpened,
    Done,
    EventStream,
    GenerationConfig,
    QueueFullError,
    Runtime,
    RuntimeClosedError,
    TokenWritten,
    WorkerError,
)
from ds2ds.engine.engine import Engine

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

TEXTS = {"A": "about A, with [b](B) and more", "B": "about B", "Long": "a long one " * 12}
OPTIONS: dict[str, Any] = {"max_new_tokens": 9, "seed": 3, "logprobs": True, "max_link_depth": 2}
ENDLESS = GenerationConfig(
    max_new_tokens=500, max_context_length=512, max_tokens_per_document=500, eos_token_id=EOS, seed=1, min_p=0.0
)


async def clean(runtime: AsyncRuntime) -> bool:
    return await runtime.call(is_clean)


def never_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "x" * 1000})


# The calls


def test_calls_give_what_a_runtime_gives() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        corpus = Texts(TEXTS)
        prompts = ["p", "see [a](A) and [l](Long) now", encode("[b](B), [q](Unknown)")]
        results = await runtime.generate_batch(prompts, corpus, **OPTIONS)
        texts = [prompt if isinstance(prompt, str) else None for prompt in prompts]
        for result, prompt, text in zip(results, prompts, texts, strict=True):
            tokens = None if text is not None else prompt
            expected = small_runtime().generate(text, tokens, corpus, **OPTIONS)
            same_results(result, expected)
            same_results(await runtime.generate(text, tokens, corpus, **OPTIONS), expected)
            events = [event async for event in runtime.stream(text, tokens, corpus, **OPTIONS)]
            assert isinstance(events[-1], Done)
            same_results(events[-1].result, expected)
        assert await runtime.generate_batch([]) == []

    run(main)


def test_a_stream_tells_the_events_of_a_runtimes_stream() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        options = {**OPTIONS, "logprobs": False, "title": "T"}
        expected = list(small_runtime().stream("see [a](A) and", corpus=Texts(TEXTS), **options))
        events = [event async for event in runtime.stream("see [a](A) and", corpus=Texts(TEXTS), **options)]
        assert [type(event) for event in events] == [type(event) for event in expected]
        for one, other in zip(events, expected, strict=True):
            if isinstance(one, TokenWritten) and isinstance(other, TokenWritten):
                assert (one.title, one.token, one.text) == (other.title, other.token, other.text)
            elif not isinstance(one, Done) and not hasattr(one, "document"):
                assert one == other

    run(main)


def test_many_at_a_time_share_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    step = Engine.step

    def counted(engine: Engine) -> None:
        nonlocal steps
        steps += 1
        step(engine)

    monkeypatch.setattr(Engine, "step", counted)

    async def main(runtime: AsyncRuntime) -> None:
        results = await asyncio.gather(*(runtime.generate(f"p{i}", **{**OPTIONS, "seed": i}) for i in range(40)))
        passes = sum(result.trace.forward_passes for result in results)
        assert steps < passes / 4
        for index in (0, 17, 39):
            same_results(results[index], small_runtime().generate(f"p{index}", **{**OPTIONS, "seed": index}))

    run(main)


def test_requests_join_while_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    never_ending(monkeypatch)

    async def main(runtime: AsyncRuntime) -> None:
        async with runtime.stream("first", config=ENDLESS) as first:
            assert isinstance(await anext(first), DocumentOpened)
            second = await runtime.generate("second", max_new_tokens=5)
            assert len(second.root_document.tokens) == len(encode("second")) + 5
            assert await runtime.call(lambda runtime: len(runtime.engine.running)) == 1
            assert isinstance(await anext(first), TokenWritten)
        assert await clean(runtime)

    run(main)


def test_from_pretrained() -> None:
    async def main() -> None:
        async with AsyncRuntime.from_pretrained("demo", "cpu", arena_tokens=4096, max_queue=3) as runtime:
            assert runtime.runtime.engine.limits.max_queue == 3
            result = await runtime.generate("# Queue", max_new_tokens=3, seed=1)
            assert len(result.root_document.tokens) > 3

    asyncio.run(main())


def test_what_it_cannot_be_made_of() -> None:
    with pytest.raises(ConfigError, match="runtime must be a Runtime, got str"):
        AsyncRuntime("demo")  # type: ignore[arg-type]


def test_call_has_the_runtime_between_two_steps(tmp_path: Any) -> None:
    async def main(runtime: AsyncRuntime) -> None:
        thread = await runtime.call(lambda _: threading.current_thread().name)
        assert thread == "ds2ds-worker"
        await runtime.generate("see [l](Long) x", corpus=Texts(TEXTS), **OPTIONS)
        assert await runtime.call(lambda r: r.save_cache(tmp_path / "cache.safetensors")) == 1
        with pytest.raises(KeyError, match="mine"):
            await runtime.call(lambda _: {}["mine"])  # type: ignore[index]
        assert await runtime.generate("p", max_new_tokens=1)  # no harm done

    run(main)


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "p", "max_new_tokens": -1}, "max_new_tokens must be positive, got -1"),
        ({"prompt": "p", "tempature": 1}, "unknown generation settings"),
        ({}, "give prompt or prompt_tokens, and not both"),
        ({"prompt": "p", "corpus": 5}, "corpus must be a path"),
        ({"prompt": "x" * 600}, "the prompt has 600 tokens"),
        ({"prompt": "p", "priority": "high"}, "priority must be an integer"),
    ],
)
def test_wrong_arguments_are_raised_at_once(arguments: dict[str, Any], message: str) -> None:
    async def main(runtime: AsyncRuntime) -> None:
        with pytest.raises(ValueError, match=message):
            runtime.stream(**arguments)
        with pytest.raises(ValueError, match=message):
            await runtime.generate(**arguments)
        assert await clean(runtime)

    run(main)


class Broken(Texts):
    def get_document(self, title: str) -> Any:
        raise OSError("the disk is gone")


def test_errors_of_a_request_reach_it_alone() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        broken, good = Broken({"A": "x"}), Texts(TEXTS)
        corpora = [good, broken, good, broken]
        calls = [runtime.generate("see [a](A) x", corpus=corpus, **OPTIONS) for corpus in corpora]
        results = await asyncio.gather(*calls, return_exceptions=True)
        expected = small_runtime().generate("see [a](A) x", corpus=good, **OPTIONS)
        for result, corpus in zip(results, corpora, strict=True):
            if corpus is good:
                same_results(result, expected)
            else:
                assert isinstance(result, OSError) and str(result) == "the disk is gone"
        stream = runtime.stream("see [a](A) x", corpus=broken, **OPTIONS)
        assert isinstance(await anext(stream), DocumentOpened)  # what came before is told
        with pytest.raises(OSError, match="the disk is gone"):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert await clean(runtime)

    run(main)


def test_what_cannot_even_start_ends_its_request_alone() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        def fail(*_: Any) -> None:
            raise KeyError("a bug")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runtime.runtime._generator, "submit", fail)
            stream = runtime.stream("p")
        with pytest.raises(KeyError, match="a bug"):
            await asyncio.wait_for(anext(stream), 10)
        assert await runtime.generate("q", max_new_tokens=3)

    run(main)


def test_errors_in_a_batch() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        corpus = Texts({"A": "x"})
        corpus.get_document = lambda title: None  # type: ignore[method-assign]
        prompts = ["p", "see [a](A) x", [10_000], "q"]
        with pytest.raises(ConfigError, match="10000"):
            await runtime.generate_batch(prompts, corpus, **OPTIONS)
        results = await runtime.generate_batch(prompts, corpus, return_errors=True, **OPTIONS)
        assert [type(result).__name__ for result in results] == [
            "GenerationResult",
            "CorpusError",
            "ConfigError",
            "GenerationResult",
        ]
        with pytest.raises(CorpusError):
            await runtime.generate_batch(prompts[:2], corpus, **OPTIONS)
        with pytest.raises(ConfigError, match="got one string"):
            await runtime.generate_batch("p")
        assert await clean(runtime)

    run(main)


@pytest.mark.parametrize("failure", [MemoryError("no more"), KeyError("a bug"), SystemExit(3)])
def test_a_failure_of_the_worker_reaches_everyone(failure: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    never_ending(monkeypatch)
    steps = 0
    step = Engine.step

    def failing(engine: Engine) -> None:
        nonlocal steps
        steps += 1
        if steps == 8:
            raise failure
        step(engine)

    monkeypatch.setattr(Engine, "step", failing)
    runtime = small_runtime(max_running=2, max_queue=1)

    async def main() -> None:
        async with AsyncRuntime(runtime) as made:
            calls = [made.generate(f"p{index}", config=ENDLESS) for index in range(5)]  # 2 run, 1 is queued, 2 wait
            results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
            for result in results:
                assert isinstance(result, WorkerError) and result.__cause__ is failure
                assert f"the worker failed with {type(failure).__name__}: {failure}" in str(result)
            assert len({id(result) for result in results}) == 5  # each with a traceback of its own
            with pytest.raises(WorkerError):
                await made.generate("p")
            with pytest.raises(WorkerError):
                made.stream("p")
            with pytest.raises(WorkerError):
                await made.call(lambda runtime: None)

    asyncio.run(main())
    assert is_clean(runtime)


def test_it_reaches_everyone_even_if_nothing_can_be_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(engine: Engine, *_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Engine, "step", fail)
    monkeypatch.setattr(Engine, "cancel", fail)

    async def main() -> None:
        async with AsyncRuntime(small_runtime()) as made:
            calls = [made.generate(f"p{index}", config=ENDLESS) for index in range(3)]
            results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
            assert [type(result) for result in results] == [WorkerError] * 3

    asyncio.run(main())


def test_what_was_to_run_after_the_step_that_failed_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stepping, posted = threading.Event(), threading.Event()
    ran: list[Runtime] = []

    def fail(engine: Engine) -> None:
        stepping.set()
        assert posted.wait(30)
        raise KeyError("a bug")

    monkeypatch.setattr(Engine, "step", fail)

    async def main() -> None:
        async with AsyncRuntime(small_runtime()) as made:
            generating = asyncio.create_task(made.generate("p", config=ENDLESS))
            while not stepping.is_set():
                await asyncio.sleep(0.001)
            calling = asyncio.create_task(made.call(ran.append))
            await asyncio.sleep(0)
            posted.set()
            results = await asyncio.wait_for(asyncio.gather(generating, calling, return_exceptions=True), 30)
            assert [type(result) for result in results] == [WorkerError] * 2

    asyncio.run(main())
    assert ran == []


# Cancelling


def test_leaving_the_loop_over_a_stream_cancels_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    never_ending(monkeypatch)

    async def main(runtime: AsyncRuntime) -> None:
        async for event in runtime.stream("p", config=ENDLESS):
            if isinstance(event, TokenWritten):
                break
        assert await clean(runtime)

        with pytest.raises(ZeroDivisionError):
            async with runtime.stream("p", config=ENDLESS) as events:
                async for _ in events:
                    raise ZeroDivisionError
        assert await clean(runtime)

        held = runtime.stream("p", config=ENDLESS)
        await anext(held)
        assert not await clean(runtime)
        await held.aclose()
        assert is_clean(runtime.runtime)  # nothing runs: the worker sleeps
        await held.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(held)
        with pytest.raises(RuntimeError, match="the stream has ended or was closed"):
            await held.result()

    run(main)


@pytest.mark.parametrize("stage", ["waiting", "queued", "prefilling", "decoding", "suspended"])
def test_cancelling_a_task_frees_at_once_what_it_held(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    never_ending(monkeypatch)
    limits = {"waiting": (1, 1), "queued": (1, 5)}.get(stage, (5, 5))

    async def main(runtime: AsyncRuntime) -> None:
        other = asyncio.create_task(runtime.generate("other", config=ENDLESS.with_overrides(max_new_tokens=250)))
        await asyncio.sleep(0)
        while not await runtime.call(lambda r: r.engine.running):
            pass
        if stage == "waiting":
            queued = asyncio.create_task(runtime.generate("queued", max_new_tokens=2))
            await asyncio.sleep(0)
        alone = await runtime.call(lambda r: r.engine.store.arena.allocator.used)
        prompt = "z" * 450 if stage == "prefilling" else "p"
        victim = asyncio.create_task(runtime.generate(prompt, config=ENDLESS))
        await asyncio.sleep(0)
        if stage in ("decoding", "suspended"):
            while not await runtime.call(lambda r: len(r.engine.running) == 2 and r.engine.running[1].touched):
                pass
            if stage == "suspended":
                await runtime.call(lambda r: r.engine.scheduler._suspend(r.engine.running[1]))
        victim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await victim
        assert await runtime.call(lambda r: r.engine.store.arena.allocator.used) <= alone
        assert await runtime.call(lambda r: len(r.engine.running)) == 1
        await other
        if stage == "waiting":
            await queued
        assert await clean(runtime)

    run(main, max_running=limits[0], max_queue=limits[1], step_tokens=16, document_store=False)


def test_cancelling_a_batch_cancels_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    never_ending(monkeypatch)

    async def main(runtime: AsyncRuntime) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(runtime.generate_batch(["p", "q", "r"], config=ENDLESS), 0.03)
        assert await clean(runtime)

    run(main)


def test_a_stream_that_was_never_read_costs_nothing() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        stream = runtime.stream("p", config=ENDLESS)
        assert await clean(runtime)
        await stream.aclose()
        assert [event async for event in stream] == []
        del stream
        runtime.stream("p")
        assert await clean(runtime)

    run(main)


def test_closing_a_stream_ends_the_wait_of_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    never_ending(monkeypatch)

    async def main(runtime: AsyncRuntime) -> None:
        stream = runtime.stream("p", config=ENDLESS)

        async def read() -> int:
            return len([event async for event in stream])

        reader = asyncio.create_task(read())
        await asyncio.sleep(0.02)
        with pytest.raises(RuntimeError, match="two tasks read one stream"):
            while True:  # the reader may have events to read just now
                await anext(stream)
        await stream.aclose()
        assert await reader >= 0
        assert await clean(runtime)

    run(main)


# Back-pressure


def test_calls_wait_for_a_place_in_the_queue() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        most = 0
        add = runtime.runtime.engine.queue.add

        def watched(job: Any) -> None:
            nonlocal most
            add(job)
            most = max(most, len(runtime.runtime.engine.queue))

        runtime.runtime.engine.queue.add = watched  # type: ignore[method-assign]
        results = await asyncio.gather(*(runtime.generate(f"p{i}", **OPTIONS) for i in range(12)))
        results += await runtime.generate_batch([f"p{i}" for i in range(12)], **OPTIONS)
        assert most == 2
        for index, result in enumerate(results):
            same_results(result, small_runtime().generate(f"p{index % 12}", **OPTIONS))

    run(main, max_running=2, max_queue=2)


def test_or_raise_where_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    never_ending(monkeypatch)

    async def main(runtime: AsyncRuntime) -> None:
        tasks = [asyncio.create_task(runtime.generate(f"p{i}", config=ENDLESS, wait=False)) for i in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="1 requests wait already, and max_queue is 1"):
            await runtime.generate("q", wait=False)
        with pytest.raises(QueueFullError):
            await anext(runtime.stream("q", wait=False, priority=7))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert await clean(runtime)
        assert await runtime.generate("q", wait=False, max_new_tokens=1)

    run(main, max_running=1, max_queue=1)


def test_priority_counts_among_those_that_wait_too() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        ended: list[int] = []

        async def one(index: int, priority: int) -> None:
            await runtime.generate(f"p{index}", priority=priority, max_new_tokens=2, max_link_depth=0, eos_token_id=EOS)
            ended.append(index)

        held, all_came = threading.Event(), threading.Event()

        def hold(_: Runtime) -> None:  # so that all have come before the first one starts
            held.set()
            all_came.wait(60)

        holding = asyncio.create_task(runtime.call(hold))
        # Not before that: a worker that wakes late would take the first one along, and start it.
        assert await asyncio.to_thread(held.wait, 60)
        tasks = [asyncio.create_task(one(*pair)) for pair in enumerate([0, 0, 0, 1, 2, -1, 2])]
        await asyncio.sleep(0)  # each runs up to where it waits for its result
        all_came.set()
        await asyncio.gather(holding, *tasks)
        # The first two came when the queue had room; of the others the highest priority goes first.
        assert ended == [4, 6, 3, 0, 1, 2, 5]

    run(main, max_running=1, max_queue=7)


def test_a_slow_reader_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "x" * 300})

    async def main(runtime: AsyncRuntime) -> None:
        stream = runtime.stream("p", config=ENDLESS)
        assert isinstance(await anext(stream), DocumentOpened)
        await runtime.generate("q", config=ENDLESS)
        while not await clean(runtime):  # the request ends though no one reads
            await asyncio.sleep(0)
        rest = [event async for event in stream]
        assert sum(isinstance(event, TokenWritten) for event in rest) == 301 and isinstance(rest[-1], Done)

    run(main)


# Sleeping, closing


def test_an_idle_worker_does_nothing() -> None:
    async def main(runtime: AsyncRuntime) -> None:
        await runtime.generate("p", max_new_tokens=2)
        before = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - before < 0.1

    run(main)


def test_closing_lets_requests_end(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": "x" * 40})
    runtime = small_runtime(max_running=2, max_queue=1)

    async def main() -> None:
        made = AsyncRuntime(runtime)
        tasks = [asyncio.create_task(made.generate(f"p{index}")) for index in range(6)]
        await asyncio.sleep(0)
        stream = made.stream("s")
        await anext(stream)
        await asyncio.gather(made.aclose(), made.aclose())
        await made.aclose(cancel=True)
        assert "ds2ds-worker" not in [thread.name for thread in threading.enumerate()]
        for result in await asyncio.gather(*tasks):
            assert result.root_document.finish_reason == "eos"
        assert [event async for event in stream][-1:]  # what has come can still be read

    asyncio.run(main())
    assert is_clean(runtime)


def test_closing_can_cancel_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    never_ending(monkeypatch)
    runtime = small_runtime(max_running=2, max_queue=1)

    async def main() -> None:
        made = AsyncRuntime(runtime)
        tasks = [asyncio.create_task(made.generate(f"p{index}", config=ENDLESS)) for index in range(6)]
        await asyncio.sleep(0.01)
        draining = asyncio.create_task(made.aclose())
        await asyncio.sleep(0.01)
        await made.aclose(cancel=True)  # cuts the drain short
        await draining
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, RuntimeClosedError) for result in results)
        assert is_clean(runtime)
        for use in (lambda: made.generate("p"), lambda: made.generate_batch(["p"]), lambda: made.call(is_clean)):
            with pytest.raises(RuntimeClosedError, match="the AsyncRuntime is closed: make a new one"):
                await use()
        with pytest.raises(RuntimeClosedError):
            made.stream("p")
        with pytest.raises(RuntimeClosedError):
            async with made:
                pass
        await made.aclose()

    asyncio.run(main())
    # The Runtime is its owner's again.
    assert runtime.generate("p", max_new_tokens=2).root_document


def test_a_stream_that_begins_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        made = AsyncRuntime(small_runtime())
        stream = made.stream("p")
        await made.aclose()
        with pytest.raises(RuntimeClosedError):
            await anext(stream)

    asyncio.run(main())


def test_an_exception_in_the_block_cancels_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    never_ending(monkeypatch)
    runtime = small_runtime()

    async def main() -> None:
        async with AsyncRuntime(runtime) as made:
            task = asyncio.create_task(made.generate("p", config=ENDLESS))
            await asyncio.sleep(0.01)
            try:
                raise ZeroDivisionError
            finally:
                task.add_done_callback(lambda task: task.exception())

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    assert is_clean(runtime)


def test_a_runtime_that_is_forgotten_stops_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    never_ending(monkeypatch)
    runtime = small_runtime()

    async def main() -> EventStream:
        stream = AsyncRuntime(runtime).stream("p", config=ENDLESS)
        await anext(stream)  # the stream keeps alive what computes for it
        await anext(stream)
        return stream

    stream = asyncio.run(main())
    assert "ds2ds-worker" in [thread.name for thread in threading.enumerate()]
    del stream
    gc.collect()
    assert "ds2ds-worker" not in [thread.name for thread in threading.enumerate()]
    assert is_clean(runtime)


def test_one_runtime_in_several_event_loops() -> None:
    runtime = small_runtime()
    made = AsyncRuntime(runtime)
    try:
        first = asyncio.run(made.generate("p", **OPTIONS))
        results = [None] * 3

        def in_a_thread(index: int) -> None:
            results[index] = asyncio.run(made.generate("p", **OPTIONS))  # type: ignore[call-overload]

        threads = [threading.Thread(target=in_a_thread, args=[index]) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            same_results(result, first)
    finally:
        asyncio.run(made.aclose())
    assert is_clean(runtime)


def test_a_stream_belongs_to_one_event_loop() -> None:
    made = AsyncRuntime(small_runtime())
    stream = made.stream("p", max_new_tokens=3)

    async def one_event() -> Any:
        return await anext(stream)

    asyncio.run(one_event())
    with pytest.raises(RuntimeError, match="read in another event loop"):
        asyncio.run(one_event())
    asyncio.run(made.aclose(cancel=True))


def test_a_loop_that_is_gone_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    never_ending(monkeypatch)
    made = AsyncRuntime(small_runtime())
    stream = made.stream("p", config=ENDLESS)

    async def one_event() -> Any:
        await anext(stream)
        return await made.call(lambda r: r.engine.running[0])

    job = asyncio.run(one_event())
    asyncio.run(made.generate("q", max_new_tokens=5))
    while asyncio.run(made.call(lambda r: len(r.engine.running))):
        pass  # its request ends when the next event finds no loop
    assert job.trace.tokens_decoded < 400  # of nearly 500
    asyncio.run(made.aclose())


@pytest.mark.parametrize(
    ("busy", "ending"),
    [(False, "pass"), (True, "pass"), (True, "raise SystemExit(0)"), (True, "asyncio.run(made.aclose())")],
)
def test_the_interpreter_exits_whatever_was_left_open(busy: bool, ending: str) -> None:
    code = f"""
        import asyncio, sys
        sys.path.insert(0, {str(__file__).rpartition("/")[0]!r})
        from scripted import small_runtime
        from ds2ds import AsyncRuntime

        made = AsyncRuntime(small_runtime())
        stream = made.stream("p", max_new_tokens=400, max_tokens_per_document=500, seed=1)

        async def main():
            if {busy}:
                await anext(stream)

        asyncio.run(main())
        print("done", flush=True)
        {ending}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
