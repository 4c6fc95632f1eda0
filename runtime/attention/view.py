"""Views: which documents each token of a document reads, and at which distance (S2, S3)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ds2ds.documents.document import Document


@dataclass(slots=True)
class Chunk:
    """Tokens [start, stop) of a document, to be computed now; all before are computed."""

    document: Document
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass
class Read:
    """Tokens [start, stop) of a document read all of `target`, the one at t as a query at t + delta would."""

    target: Document
    start: int
    stop: int
    delta: int

    def __len__(self) -> int:
        return self.stop - self.start


def reads(document: Document, start: int, stop: int) -> list[Read]:
    """What tokens [start, stop) read besides their own document.

    The target of the first grant in view ends where the document starts, the next one's where that one starts: delta
    is the total length of the targets in view up to and including this one. A grant gives one Read, or several where
    a nearer document leaves the view (S4) and it moves closer.
    """
    bounds = {start, stop}
    if stop - start > 1:
        for grant in document.grants:
            bounds.update(at for at in (grant.position, grant.end) if at is not None and start < at < stop)
    found: list[Read] = []
    latest: dict[int, Read] = {}
    for low, high in pairwise(sorted(bounds)):
        delta = 0
        for index, grant in enumerate(document.grants):
            if not grant.covers(low):
                continue
            delta += len(grant.target.tokens)
            read = latest.get(index)
            if read is not None and (read.stop, read.delta) == (low, delta):
                read.stop = high
            else:
                latest[index] = read = Read(grant.target, low, high, delta)
                found.append(read)
    return found


def targets(document: Document, start: int, stop: int) -> list[Document]:
    """The documents that tokens [start, stop) read besides their own, each once."""
    found: dict[Document, None] = {}
    for grant in document.grants:
        last = stop if grant.end is None else min(stop, grant.end)
        if max(start, grant.position) < last:
            found[grant.target] = None
    return list(found)
