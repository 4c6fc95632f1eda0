"""A request that the engine has, and its result as it stands."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from ds2ds.documents.generation_result import GenerationResult
from ds2ds.engine.engine import Engine
from ds2ds.engine.job import Job
from ds2ds.errors import QueueFullError
from ds2ds.generation.beam_search import BeamSearch
from ds2ds.generation.request import Request

T = TypeVar("T")


def queued(engine: Engine, submit: Callable[[], T]) -> T:
    """What `submit` gives, which queues a request: once there is a place for it. Until then steps are taken."""
    while True:
        engine.make_way()
        with suppress(QueueFullError):  # another thread took the place
            return submit()


@dataclass(frozen=True)
class Running:
    """A request given to the engine. `search` is what writes it where it has beams."""

    request: Request
    job: Job
    started: float
    search: BeamSearch | None = None

    def result(self) -> GenerationResult:
        """The documents as they stand, of a search those of what is finished; complete once the job is done."""
        trace = self.request.trace
        trace.seconds["total"] = time.perf_counter() - self.started
        if self.search is None:
            return _result(self.request)
        best, *others = (
            replace(result, score=score, trace=trace.of_hypothesis(result.trace))
            for result, score in ((_result(one.request), self.search.score(one)) for one in self.search.best)
        )
        return replace(best, alternatives=others)


def _result(request: Request) -> GenerationResult:
    root, *rest = (request.record(document) for document in request.context.get_all_documents())
    request.trace.evictions = request.context.evictions
    return GenerationResult(root, rest, request.config, request.trace, link_format=request.link_format)
