"""One request in the engine: its coroutine, its window, and what it waits for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ds2ds.documents.document import Document
from ds2ds.documents.generation_result import Trace
from ds2ds.engine.work import Item, Work


@dataclass(eq=False)
class Job:
    """Attributes:
    window: the documents that it needs in the arena; it may change at any time.
    need: slots of the arena that the request may come to fill; it starts when they are free.
    priority: higher ones go first.
    number: how many were submitted before it.
    waiting: the work it asked for last; None before it starts and once it is done.
    question: what it asks its reader and has no answer to; None: nothing.
    answer: to its last question, from when it is given until it runs again.
    narrow: compute no tokens together that read different documents, as there is no room for all of these at a time.
    error: what ended the request early; None while it runs and after it ended well.
    touched: the documents that use entries of the store for it; they are released when it is done.
    """

    coroutine: Work
    window: list[Document]
    trace: Trace
    need: int
    priority: int = 0
    number: int = 0
    waiting: Item | None = None
    question: Any = None
    answer: Any = None
    narrow: bool = False
    done: bool = False
    error: Exception | None = None
    touched: dict[Document, None] = field(default_factory=dict)


def turn(job: Job) -> tuple[int, int]:
    """Sorts jobs into the order in which they are served: by priority, then first come first served."""
    return -job.priority, job.number
