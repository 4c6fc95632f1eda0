"""AsyncRuntime: many requests at a time, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ds2ds.analysis.attention_analysis import MAX_BYTES, Tokens
from ds2ds.analysis.attention_map import AttentionMap
from ds2ds.backend import BackendLimits, BackendUsage
from ds2ds.documents.generation_result import GenerationResult
from ds2ds.documents.link_formats import LinkFormat
from ds2ds.engine.async_engine import AsyncEngine
from ds2ds.engine.desk import Ticket
from ds2ds.engine.limits import check_priority
from ds2ds.errors import ConfigError, Ds2dsError
from ds2ds.event_stream import EventStream
from ds2ds.generation.batch import in_place, new_requests
from ds2ds.generation.choices import AsyncOnLink, check_on_link
from ds2ds.generation.generation_config import GenerationConfig, scoring
from ds2ds.generation.request import Request
from ds2ds.generation.running import Running
from ds2ds.runtime import Runtime

T = TypeVar("T")


class AsyncRuntime:
    """A Runtime whose work is done in a thread of its own, for any number of tasks of an event loop at a time.

    All requests run in one batch, which they join and leave at every step. A task that is cancelled, or leaves the
    loop over its stream, cancels its request: what that held is free before the next step begins. What goes wrong in
    one request is raised there alone; if the worker itself fails, as when the GPU has no memory left, every request
    raises WorkerError, and so does every later call.

    Checking a request's arguments, tokenizing its prompt, and opening a corpus given as a path happen in the caller's
    thread: open a large corpus once, and pass it.

    Args:
        runtime: nobody else may use it before this one is closed.

    `async with AsyncRuntime(...)` closes it: after all requests have ended, or, on an exception, at once.
    """

    def __init__(self, runtime: Runtime) -> None:
        if not isinstance(runtime, Runtime):
            raise ConfigError(f"runtime must be a Runtime, got {type(runtime).__name__}")
        self.runtime = runtime
        self._engine = AsyncEngine(runtime.engine)

    @classmethod
    def from_pretrained(cls, path: str | Path, *args: Any, **options: Any) -> AsyncRuntime:
        """Load a checkpoint; arguments and errors are those of `Runtime.from_pretrained`."""
        return cls(Runtime.from_pretrained(path, *args, **options))

    async def generate(
        self,
        prompt: str | None = None,
        prompt_tokens: Iterable[int] | None = None,
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        title: str | None = None,
        priority: int = 0,
        wait: bool = True,
        on_link: AsyncOnLink | None = None,
        **overrides: Any,
    ) -> GenerationResult:
        """Write a document, and what its links lead to; see `Runtime.generate`.

        Args:
            wait: where the engine's queue is full, wait for a place in it.
            on_link: as in `Runtime.generate`; it may be async. Other requests go on while it decides.

        Raises:
            QueueFullError: it is full, and wait is False; RuntimeClosedError: the runtime is closed, or was before the
                end; WorkerError: the worker failed; and what `Runtime.generate` raises.
        """
        self._engine.require_open()
        check_on_link(on_link, may_be_async=True)
        settings = self.runtime._config(config, overrides)
        request = self.runtime._generator.new_request(
            prompt, prompt_tokens, corpus, settings, title, interactive=on_link is not None
        )
        return await self._stream(request, priority, wait, on_link).result()

    def stream(
        self,
        prompt: str | None = None,
        prompt_tokens: Iterable[int] | None = None,
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        title: str | None = None,
        priority: int = 0,
        wait: bool = True,
        interactive: bool = False,
        on_link: AsyncOnLink | None = None,
        **overrides: Any,
    ) -> EventStream:
        """Like `generate`, as typed events, the last one Done: `async for event in runtime.stream(...)`.

        Arguments are checked at once; the request begins when the first event is asked for.

        Args:
            interactive: ask about each link that would be followed, before anything is brought in: LinkAsked comes,
                and then nothing until `EventStream.answer`.
            on_link: answers instead, when the event after LinkAsked is asked for.

        Raises:
            ConfigError: both are given; and as for `generate`.
        """
        self._engine.require_open()
        check_on_link(on_link, may_be_async=True)
        if not isinstance(interactive, bool):
            raise ConfigError(f"interactive must be True or False, got {interactive!r}")
        if interactive and on_link is not None:
            raise ConfigError("give interactive=True, to answer by EventStream.answer, or on_link, and not both")
        settings = self.runtime._config(config, overrides)
        request = self.runtime._generator.new_request(
            prompt, prompt_tokens, corpus, settings, title, interactive=interactive or on_link is not None
        )
        return self._stream(request, priority, wait, on_link, told=True)

    async def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        priority: int = 0,
        return_errors: bool = False,
        on_link: AsyncOnLink | None = None,
        **overrides: Any,
    ) -> list[Any]:
        """Write a document for each prompt; see `Runtime.generate_batch`. Beside other requests, each counts as one.

        `on_link` may be async, and is called for several prompts at a time.
        """
        self._engine.require_open()
        check_on_link(on_link, may_be_async=True)
        settings = self.runtime._config(config, overrides)
        generator = self.runtime._generator
        requests = new_requests(generator, prompts, corpus, settings, return_errors, on_link is not None)
        return await self._run(requests, generator.submit, priority, return_errors, on_link)

    async def score(
        self,
        prompts: Sequence[str | Sequence[int]],
        corpus: Any = None,
        config: GenerationConfig | None = None,
        *,
        priority: int = 0,
        return_errors: bool = False,
        **overrides: Any,
    ) -> list[Any]:
        """How likely each token of each prompt is; see `Runtime.score`."""
        self._engine.require_open()
        settings = scoring(config, self.default_config(), overrides)
        generator = self.runtime._generator
        requests = new_requests(generator, prompts, corpus, settings, return_errors)
        return await self._run(requests, generator.submit_score, priority, return_errors)

    @property
    def limits(self) -> BackendLimits:
        """See `Runtime.limits`. What has no docstring below is the runtime's, too."""
        return self.runtime.limits

    @property
    def link_format(self) -> LinkFormat:
        return self.runtime.link_format

    def usage(self) -> BackendUsage:
        """See `Runtime.usage`; those that wait for a place in the engine's queue wait, too."""
        usage = self.runtime.usage()
        return replace(usage, waiting=usage.waiting + self._engine.waiting)

    def default_config(self) -> GenerationConfig:
        return self.runtime.default_config()

    def tokenize(self, text: str) -> list[int]:
        return self.runtime.tokenize(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self.runtime.detokenize(tokens)

    def token_bytes(self, token: int) -> bytes:
        return self.runtime.token_bytes(token)

    async def _run(
        self,
        requests: Sequence[Request | Ds2dsError],
        submit: Callable[[Request, int], Running],
        priority: int,
        return_errors: bool,
        on_link: AsyncOnLink | None = None,
    ) -> list[Any]:
        streams = [
            self._stream(one, priority, on_link=on_link, submit=submit) for one in requests if isinstance(one, Request)
        ]
        results = await asyncio.gather(*(stream.result() for stream in streams), return_exceptions=True)
        return in_place(requests, results, return_errors)

    async def call(self, function: Callable[[Runtime], T]) -> T:
        """Let a function use the Runtime between two steps, as in `await runtime.call(lambda r: r.save_cache(path))`.

        It runs in the worker's thread, and requests wait for it. Raises what it raises.
        """
        self._engine.require_open()
        return await self._engine.between_steps(partial(function, self.runtime))

    async def attention(
        self,
        result: GenerationResult,
        document: str | int | None = None,
        tokens: Tokens = None,
        *,
        per_token: bool = False,
        max_bytes: int = MAX_BYTES,
    ) -> AttentionMap:
        """See `Runtime.attention`. Between two steps: requests wait the longer the more tokens are asked for."""
        return await self.call(
            lambda runtime: runtime.attention(result, document, tokens, per_token=per_token, max_bytes=max_bytes)
        )

    async def aclose(self, cancel: bool = False) -> None:
        """Take no more requests, let those that are there end, and stop the worker; returns once its thread is gone.

        A request that waits for an answer ends no sooner than it has it. Closing twice is fine, and a way to cut a
        drain short.

        Args:
            cancel: cancel them instead; whoever reads them gets RuntimeClosedError.
        """
        await self._engine.aclose(cancel)

    async def __aenter__(self) -> AsyncRuntime:
        self._engine.require_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose(cancel=kind is not None)

    def _stream(
        self,
        request: Request,
        priority: int,
        wait: bool = True,
        on_link: AsyncOnLink | None = None,
        told: bool = False,
        submit: Callable[[Request, int], Running] | None = None,
    ) -> EventStream:
        """A request's stream: of its events if it is to be told them, or must be to have its links decided."""
        events: list[Any] = []
        if told or on_link is not None:
            request = replace(request, listener=events.append)
        start = partial(submit or self.runtime._generator.submit, request, priority)
        return EventStream(self._engine, Ticket(start, check_priority(priority), wait, events), on_link)
