"""EventStream: the events of one request, for the task that reads them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator

from ds2ds.documents.generation_result import GenerationResult
from ds2ds.engine.async_engine import AsyncEngine
from ds2ds.engine.desk import Ticket
from ds2ds.errors import ConfigError, RuntimeClosedError, WorkerError
from ds2ds.generation.choices import Answer, AsyncOnLink, LinkQuestion, check_answer
from ds2ds.generation.events import Done, Event, LinkAsked


class EventStream(AsyncIterator[Event]):
    """The events of one request, as `AsyncRuntime.stream` gives them; one task reads them.

    What is not read yet is kept, without a bound of its own: a request has a few small events per token, and a bound
    could only stop the request, with all that it holds of the arena, for as long as its reader is slow.

    Where the stream is interactive, or has an on_link, nothing comes after LinkAsked until its question is answered.
    There is no time limit but the reader's own: `asyncio.timeout` around what it waits for.

    The request is cancelled when its reader is, when the stream is closed (`async with runtime.stream(...) as events`),
    and when nothing refers to the stream any more, as after a `break` out of `async for event in runtime.stream(...)`.
    """

    def __init__(self, engine: AsyncEngine, ticket: Ticket, on_link: AsyncOnLink | None = None) -> None:
        self._engine = engine
        self._ticket = ticket
        self._on_link = on_link
        self._asked: LinkQuestion | None = None  # what was read, and is not answered yet
        self._deciding = False  # whether on_link is being asked about it
        self._over = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        ticket = self._ticket
        if ticket.loop is None:
            ticket.loop = asyncio.get_running_loop()
            self._engine.accept(ticket)
        self._check_loop()
        if self._deciding or ticket.reader is not None:
            raise RuntimeError("two tasks read one stream: let one of them read it")
        if self._on_link is not None and self._asked is not None:
            await self._decide(self._on_link, self._asked)
        while not (ticket.inbox or self._over):
            ticket.reader = ticket.loop.create_future()
            try:
                await ticket.reader
            except BaseException:
                self._cancel()
                raise
            finally:
                ticket.reader = None
        if self._over:
            raise StopAsyncIteration  # closed in the meantime
        item = ticket.inbox.popleft()
        if isinstance(item, Exception):
            self._over = True
            raise item
        if isinstance(item, GenerationResult):
            self._over = True
            return Done(item)
        if isinstance(item, LinkAsked):
            self._asked = item.question
        event: Event = item
        return event

    async def answer(self, question: LinkQuestion | int, answer: Answer) -> None:
        """Answer a question that was read as LinkAsked; the request goes on in its turn.

        Args:
            question: it, or its number.

        Raises:
            ConfigError: this is no answer, or the question is not open: it was answered, or the stream has ended;
                RuntimeClosedError, WorkerError: the runtime was closed, or its worker failed, in the meantime.
        """
        self._check_loop()
        check_answer(answer)
        asked = self._asked
        if self._over or asked is None or question not in (asked, asked.number):
            is_open = "none is" if self._over or asked is None else f"number {asked.number} is"
            number = question.number if isinstance(question, LinkQuestion) else question
            raise ConfigError(f"question {number!r} is not open, {is_open}: it was answered, or the stream has ended")
        self._asked = None
        await self._engine.answer(self._ticket, answer)

    async def result(self) -> GenerationResult:
        """Read to the end, and return the result.

        Raises:
            RuntimeError: the stream was read to its end, or closed, before; or it asks about a link, which nobody would
                answer.
        """
        while self._over or self._asked is None or self._on_link is not None:
            event = await anext(self, None)
            if event is None:
                break
            if isinstance(event, Done):
                return event.result
        else:
            raise RuntimeError("the stream asks about a link: read its events and answer them, or give it an on_link")
        raise RuntimeError("the stream has ended or was closed: there is no result to wait for")

    async def aclose(self) -> None:
        """Cancel the request, unless it has ended; returns once what it held is free."""
        if self._over:
            return
        self._over = True
        if self._ticket.loop is not None:
            self._ticket.deliver([])  # whoever is reading stops
            with contextlib.suppress(RuntimeClosedError, WorkerError):
                await self._engine.dropped(self._ticket)

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._over:
            self._cancel()

    def _check_loop(self) -> None:
        if self._ticket.loop not in (None, asyncio.get_running_loop()):
            raise RuntimeError("the stream is read in another event loop than the one that began it")

    async def _decide(self, on_link: AsyncOnLink, question: LinkQuestion) -> None:
        """Have a question answered; what that raises ends the request."""
        self._deciding = True
        try:
            answer = on_link(question)
            if inspect.isawaitable(answer):
                answer = await answer
            if not self._over:  # or it was closed in the meantime
                await self.answer(question, answer)
        except BaseException:
            self._cancel()
            raise
        finally:
            self._deciding = False

    def _cancel(self) -> None:
        self._over = True
        if self._ticket.loop is not None:
            self._engine.drop(self._ticket)
