"""What the server serves with: a backend, which may still be loading, and how much may be asked of it at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.types import Receive

from ds2ds.backend import AsyncBackend
from ds2ds.errors import WorkerError
from ds2ds.server.errors import ApiError, too_many
from ds2ds.server.metrics import Metrics
from ds2ds.server.plan import Planner
from ds2ds.server.settings import ServerSettings

T = TypeVar("T")


class Disconnected(Exception):
    """The client has gone."""


class Service:
    """One backend for all requests.

    Args:
        source: the backend, or what loads it, called in a thread of its own.
        corpora: by the names under which requests ask for them; the first is the default.

    Attributes:
        state: "loading", "ok", "stopping", or "failed".
        failure: what it failed of.
        held: choices that run or wait.
    """

    def __init__(
        self,
        source: AsyncBackend | Callable[[], AsyncBackend],
        corpora: Mapping[str, Any],
        settings: ServerSettings,
    ) -> None:
        self.settings = settings
        self.corpora = dict(corpora)
        self.metrics = Metrics(self._usage)
        self.state = "loading"
        self.failure: Exception | None = None
        self.held = 0
        self._source = source
        self._planner: Planner | None = None
        self._cut = asyncio.Event()

    async def load(self) -> None:
        """Get the backend. What goes wrong is kept in `failure`."""
        try:
            source = self._source
            backend = await asyncio.to_thread(source) if not isinstance(source, AsyncBackend) else source
            self._planner = Planner(backend, self.corpora, self.settings)
        except Exception as error:
            self.state, self.failure = "failed", error
        else:
            if self.state == "loading":
                self.state = "ok"

    @property
    def planner(self) -> Planner:
        """Raises ApiError (503) while nothing can be served."""
        if self.state != "ok" or self._planner is None:
            raise ApiError(503, _WHY_NOT[self.state], code=self.state, headers={"Retry-After": str(self.retry_after)})
        return self._planner

    @property
    def retry_after(self) -> int:
        return self.settings.retry_after

    @contextmanager
    def admitted(self, choices: int) -> Iterator[None]:
        """Hold a place for each of a request's choices, all or none.

        Raises:
            ApiError: (429) there are not as many left; (400) there never are.
        """
        limits = self.planner.limits
        most = limits.max_running + limits.max_queue
        if choices > most:
            raise ApiError(400, f"prompts times n must be at most {most}, got {choices}", param="n")
        if self.held + choices > most:
            raise too_many(f"{self.held} texts are being written or wait, and {most} is the most", self.retry_after)
        self.held += choices
        try:
            yield
        finally:
            self.held -= choices

    async def supervise(self, work: Coroutine[Any, Any, T], receive: Receive) -> T:
        """Let a request's work end, unless its client goes first, its time is over, or the server must stop.

        Whatever happens, the work is over when this returns.

        Raises:
            Disconnected; ApiError: (504) its time is over, (503) the server stops; and what the work raises.
        """
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_until_disconnected(receive))
        cut = asyncio.ensure_future(self._cut.wait())
        try:
            seconds = self.settings.request_timeout
            await asyncio.wait({working, gone, cut}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if gone.done():
                raise Disconnected
            if cut.done():
                raise ApiError(503, "the server is stopping", code="stopping")
            raise ApiError(504, f"not done after {seconds:g} seconds", code="timeout")
        except WorkerError as error:
            # Nothing can be computed any more; whoever watches /health starts the server anew.
            self.state, self.failure = "failed", error
            raise
        finally:
            tasks = (working, gone, cut)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def drain(self) -> None:
        """Take no more requests; those that still run after `shutdown_timeout` are ended."""
        if self.state != "failed":
            self.state = "stopping"
        await asyncio.sleep(self.settings.shutdown_timeout)
        self._cut.set()

    async def aclose(self) -> None:
        """End what still runs, and close the backend."""
        self._cut.set()
        if self.state != "failed":
            self.state = "stopping"
        if self._planner is not None:
            await self._planner.backend.aclose(cancel=True)

    def _usage(self) -> Any:
        return None if self._planner is None else self._planner.backend.usage()


_WHY_NOT = {
    "loading": "the model is being loaded",
    "stopping": "the server is stopping",
    "failed": "the model cannot be served any more: the server must be started anew",
}


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
