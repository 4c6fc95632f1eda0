"""An engine in a worker's thread, as event loops use it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from ds2ds.engine.desk import Desk, Ticket, closed
from ds2ds.engine.engine import Engine
from ds2ds.engine.worker import Worker
from ds2ds.errors import Ds2dsError

T = TypeVar("T")


class AsyncEngine:
    """Runs tickets, any number at a time, and tells the event loops where they are read.

    Nobody else may touch the engine before this one is closed.
    """

    def __init__(self, engine: Engine) -> None:
        self._desk = Desk(engine)
        self._worker = Worker(engine, self._desk)
        # Called when this is forgotten, and when the interpreter exits: a thread in the midst of a step would not
        # survive that.
        self._finalizer = weakref.finalize(self, _stop, self._worker)

    @property
    def waiting(self) -> int:
        """Tickets that wait for a place in the engine's queue."""
        return self._desk.waiting

    def accept(self, ticket: Ticket) -> None:
        """Run a ticket; what becomes of it comes into its inbox.

        Raises:
            RuntimeClosedError: this is closed; WorkerError: the worker has failed.
        """
        self.require_open()
        if not self._worker.post(partial(self._desk.accept, ticket)):
            raise self._closed()

    def drop(self, ticket: Ticket) -> None:
        """Cancel a ticket's request before the next step begins. No effect on one that has ended."""
        self._worker.post(partial(self._desk.drop, ticket))

    async def answer(self, ticket: Ticket, answer: Any) -> None:
        """Answer what a ticket's request asks; returns once that is settled. No effect on one that has ended.

        Raises:
            RuntimeClosedError, WorkerError: as for `accept`.
        """
        await self.between_steps(partial(self._desk.answer, ticket, answer))

    async def dropped(self, ticket: Ticket) -> None:
        """Cancel a ticket's request; returns once what it held is free."""
        await self.between_steps(partial(self._desk.drop, ticket))

    async def between_steps(self, function: Callable[[], T]) -> T:
        """Run a function in the worker's thread, between two steps. Whoever waits may be cancelled, the function not.

        Raises:
            RuntimeClosedError, WorkerError: as for `accept`; and whatever the function raises.
        """
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()
        desk = self._desk

        def run() -> None:
            try:
                if desk.closed is not None:
                    raise desk.closed()
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        if not self._worker.post(run):
            raise self._closed()
        return await asyncio.wrap_future(done)

    async def aclose(self, cancel: bool) -> None:
        """Take no more tickets, let all end, or cancel them, and stop the worker; returns once its thread is gone."""
        self._worker.stop(at_once=cancel)
        await asyncio.wrap_future(self._worker.stopped)
        self._worker.join()
        self._finalizer.detach()

    def require_open(self) -> None:
        """Raise RuntimeClosedError once this is being closed, WorkerError once the worker has failed."""
        if self._worker.stopping:
            raise self._closed()

    def _closed(self) -> Ds2dsError:
        return (self._desk.closed or closed)()


def _stop(worker: Worker) -> None:
    worker.stop(at_once=True)
    worker.join()
