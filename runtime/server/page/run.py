"""One run of the page: the request's events, as they come, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

from starlette.types import Receive

from ds2ds.generation.events import Done
from ds2ds.server.errors import as_api_error
from ds2ds.server.metrics import TokenClock
from ds2ds.server.page.protocol import SessionRequest
from ds2ds.server.page.sessions import Session, Sessions
from ds2ds.server.page.telling import Telling
from ds2ds.server.plan import ChoicePlan
from ds2ds.server.service import Disconnected, Service
from ds2ds.server.sse import EventSender, encode


class Run:
    """Sends `session`, then what `Telling` makes of the events, the last of them `done`."""

    def __init__(self, service: Service, sessions: Sessions, body: SessionRequest) -> None:
        self.service, self.sessions, self.body = service, sessions, body
        self._started = time.perf_counter()

    async def stream(self, sender: EventSender, receive: Receive) -> None:
        """A client that goes ends its request.

        Raises:
            ApiError: it cannot go on.
        """
        try:
            await self.service.supervise(self._write(sender), receive)
        except Disconnected:
            self.service.metrics.disconnects.inc()
        except Exception as error:
            raise as_api_error(error, self.service.retry_after) from error
        finally:
            self.service.metrics.whole.observe(time.perf_counter() - self._started)

    async def _write(self, sender: EventSender) -> None:
        planner = self.service.planner
        (plan,) = await planner.plan(self.body)
        with self.service.admitted(1), self._session(Telling(planner.backend.link_format)) as session:
            self.service.metrics.prompt_tokens.inc(len(plan.prompt))
            interactive: dict[str, Any] = {"interactive": True} if self.body.interactive else {}
            stream = planner.backend.stream(
                prompt_tokens=plan.prompt, corpus=plan.corpus, config=self._config(plan), **interactive
            )
            session.stream = stream
            await self._send(stream, session, sender)

    async def _send(self, stream: Any, session: Session, sender: EventSender) -> None:
        clock = TokenClock(self.service.metrics, self._started)
        async with aclosing(stream) as events:
            async for event in events:
                if not sender.started:
                    # Not before: what is wrong with a request is told by its status.
                    await sender.send(encode({"session": session.id}, "session"))
                clock.tick(event)
                if isinstance(event, Done):
                    session.result = event.result
                    self.service.metrics.ended(event.result)
                name, data = session.telling.tell(event)
                await sender.send(encode(data, name), last=isinstance(event, Done))
                # Neither waits while there are events and the socket takes them: only here can the loop tell that the
                # client has gone.
                await asyncio.sleep(0)
        clock.stop()

    def _config(self, plan: ChoicePlan) -> Any:
        """Without links the planner leaves no room for documents, and none is taken."""
        given = self.body.overrides()
        if plan.config.max_link_depth == 0:
            given.pop("max_auxiliary_documents", None)
        return plan.config.with_overrides(**given)

    @contextlib.contextmanager
    def _session(self, telling: Telling) -> Iterator[Session]:
        session = self.sessions.start(telling)
        try:
            yield session
        finally:
            self.sessions.end(session)
