"""Runs that the page may still ask about: those that go on, and for a while those that have ended."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ds2ds.backend import EventIterator
from ds2ds.documents.generation_result import GenerationResult
from ds2ds.server.errors import ApiError, shown
from ds2ds.server.page.telling import Telling

MOST_KEPT = 64
SECONDS_KEPT = 1800.0


@dataclass
class Session:
    """One run.

    Attributes:
        id: known to nobody but who started it.
        stream: while it goes on.
        result: once it has ended well.
        ended: when, by `time.monotonic`.
    """

    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    telling: Telling = field(default_factory=Telling)
    stream: EventIterator | None = None
    result: GenerationResult | None = None
    ended: float = 0.0


class Sessions:
    """Sessions by id. Results are kept for `seconds`, at most `most` of them: the oldest go first."""

    def __init__(
        self, most: int = MOST_KEPT, seconds: float = SECONDS_KEPT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.most, self.seconds = most, seconds
        self._clock = clock
        self._running: dict[str, Session] = {}
        self._ended: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._running) + len(self._ended)

    def start(self, telling: Telling | None = None) -> Session:
        session = Session(telling=telling or Telling())
        self._running[session.id] = session
        return session

    def end(self, session: Session) -> None:
        """It is over; its result, if it has one, is kept."""
        session.stream = None
        self._running.pop(session.id, None)
        if session.result is not None:
            session.ended = self._clock()
            self._ended[session.id] = session
        self._forget()

    def running(self, id: str) -> Session:
        """Raises ApiError: (404) it is not, or not any more."""
        return self._get(self._running, id, "goes on")

    def ended(self, id: str) -> Session:
        """Raises ApiError: (404) it has no result, or it is not kept any more."""
        self._forget()
        return self._get(self._ended, id, "has a result that is still kept")

    def _get(self, among: dict[str, Session], id: str, what: str) -> Session:
        if id not in among:
            raise ApiError(404, f"no session {shown(id)} {what}", param="session", code="no_session")
        return among[id]

    def _forget(self) -> None:
        oldest = self._clock() - self.seconds
        for id, session in list(self._ended.items()):
            if len(self._ended) > self.most or session.ended < oldest:
                del self._ended[id]
