"""One request in the engine: its coroutine, its window, and what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ds2ds.documents.document import Document
from ds2ds.documents.generation_result import Trace
from ds2ds.engine.work import AnyWork, Item, Rank


@dataclass(eq=False)
class Job:
    """Attributes:
    window: the documents that it needs in the arena; it may change at any time.
    need: slots of the arena that the request may come to fill, at most.
    suspended: it found the arena full, and had to give up what it had.
    priority: higher ones go first.
    width: most documents that one step decodes for it.
    number: how many were submitted before it.
    waiting: the work it asked for last; None before it starts and once it is done.
    question: what it asks its reader and has no answer to; None: nothing.
    answer: to its last question, from when it is given until it runs again.
    narrow: compute no tokens together that read different documents, as there is no room for all of these at a time.
    error: what ended the request early; None while it runs and after it ended well.
    drawn: what was drawn for the documents of that work so far.
    touched: the documents that use entries of the store for it; they are released when it is done.
    """

    coroutine: AnyWork
    window: list[Document]
    trace: Trace
    need: int
    priority: int = 0
    width: int = 1
    number: int = 0
    waiting: Item | Rank | None = None
    question: Any = None
    answer: Any = None
    suspended: bool = False
    narrow: bool = False
    done: bool = False
    error: Exception | None = None
    drawn: dict[Document, Any] = field(default_factory=dict)
    touched: dict[Document, None] = field(default_factory=dict)

    @property
    def pending(self) -> Sequence[Document]:
        """The documents that are to be computed for it now."""
        if self.waiting is None:
            raise RuntimeError("a running job waits for nothing")
        documents = self.waiting.documents
        return [document for document in documents if document not in self.drawn] if self.drawn else documents


def turn(job: Job) -> tuple[int, int]:
    """Sorts jobs into the order in which they are served: by priority, then first come first served."""
    return -job.priority, job.number
