"""The requests of event loops at a worker: who waits for a place in the engine's queue, and who is told what."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import insort
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ds2ds.engine.engine import Engine
from ds2ds.engine.job import Job
from ds2ds.errors import Ds2dsError, RuntimeClosedError, WorkerError


class Started(Protocol):
    """A request that is in the engine."""

    @property
    def job(self) -> Job: ...

    def result(self) -> Any: ...


@dataclass(eq=False)
class Ticket:
    """A request between the event loop that reads it and the worker that runs it.

    Attributes:
        submit: queues it in the engine.
        priority: as in the engine.
        wait: for a place in the engine's queue; else it fails where there is none.
        outbox: the worker's: what has happened since the last delivery.
        loop: where it is read; None before it is accepted.
        inbox: the loop's: what has been delivered and is not read yet; an exception or the result comes last.
        reader: the loop's: who waits for the next delivery.
    """

    submit: Callable[[], Started]
    priority: int
    wait: bool
    outbox: list[Any]
    loop: asyncio.AbstractEventLoop | None = None
    inbox: deque[Any] = field(default_factory=deque)
    reader: asyncio.Future[None] | None = None

    def deliver(self, items: list[Any]) -> None:
        """In the event loop: put items into the inbox and wake the reader."""
        self.inbox.extend(items)
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)


class Desk:
    """Lets tickets into the engine in their turn, and brings back what happens to them. All in the worker's thread.

    Attributes:
        closed: what to answer with from now on; None while all is well.
    """

    def __init__(self, engine: Engine) -> None:
        self.closed: Callable[[], Ds2dsError] | None = None
        self._engine = engine
        self._waiting: list[Ticket] = []
        self._running: dict[Ticket, Started] = {}
        self._outgoing: list[Ticket] = []

    @property
    def waiting(self) -> int:
        """How many wait for a place in the engine's queue."""
        return len(self._waiting)

    def accept(self, ticket: Ticket) -> None:
        """Let a new ticket into the engine, or wait for a place there, or send it back."""
        if self.closed is not None:
            self._send_back(ticket, self.closed())
            return
        insort(self._waiting, ticket, key=lambda ticket: -ticket.priority)
        self._admit()
        if ticket in self._waiting and not ticket.wait:
            self._waiting.remove(ticket)
            self._send_back(ticket, self._engine.queue.full_error())

    def drop(self, ticket: Ticket) -> None:
        """Nobody reads it any more: free what it holds. No effect on one that has ended."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        started = self._running.pop(ticket, None)
        if started is not None:
            self._engine.cancel(started.job)

    def answer(self, ticket: Ticket, answer: Any) -> None:
        """Answer what a ticket's request asks. No effect on one that has ended."""
        started = self._running.get(ticket)
        if started is not None:
            self._engine.answer(started.job, answer)

    def after(self) -> None:
        """Deliver what has happened, with one call into each event loop, and let more tickets in."""
        self._admit()
        for ticket, started in list(self._running.items()):
            if started.job.done:
                del self._running[ticket]
                ticket.outbox.append(started.job.error or _result(started))
            if ticket.outbox:
                self._outgoing.append(ticket)
        parcels: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, list[Any]]]] = defaultdict(list)
        for ticket in self._outgoing:
            if ticket.loop is not None:
                parcels[ticket.loop].append((ticket, [*ticket.outbox]))
            ticket.outbox.clear()
        self._outgoing.clear()
        for loop, parcel in parcels.items():
            try:
                loop.call_soon_threadsafe(_deliver, parcel)
            except RuntimeError:  # the loop is closed
                for ticket, _ in parcel:
                    self.drop(ticket)

    def end(self, failure: BaseException | None) -> None:
        """Send all tickets back, with what the worker failed of, if it did."""
        self.closed = answer = closed if failure is None else _failed(failure)
        for ticket in [*self._running, *self._waiting]:
            # After a failure nothing is certain of the engine; what can be freed is.
            with contextlib.suppress(Exception) if failure is not None else contextlib.nullcontext():
                self.drop(ticket)
            self._send_back(ticket, answer())
        self._running.clear()
        self._waiting.clear()

    def _admit(self) -> None:
        while self._waiting and self._engine.has_room():
            ticket = self._waiting.pop(0)
            try:
                self._running[ticket] = ticket.submit()
            except Exception as error:
                self._send_back(ticket, error)

    def _send_back(self, ticket: Ticket, error: Exception) -> None:
        ticket.outbox.append(error)
        self._outgoing.append(ticket)


def _result(started: Started) -> Any:
    try:
        return started.result()
    except Exception as error:
        # A tokenizer that cannot decode, say: this request's failure, and no one else's.
        return error


def _deliver(parcel: list[tuple[Ticket, list[Any]]]) -> None:
    for ticket, items in parcel:
        ticket.deliver(items)


def closed() -> Ds2dsError:
    """The answer to everyone who comes after the end."""
    return RuntimeClosedError("the AsyncRuntime is closed: make a new one")


def _failed(failure: BaseException) -> Callable[[], Ds2dsError]:
    def make() -> Ds2dsError:
        error = WorkerError(
            f"the worker failed with {type(failure).__name__}: {failure}; it has ended all requests and takes no more: "
            "make a new Runtime and AsyncRuntime"
        )
        error.__cause__ = failure
        return error

    return make
