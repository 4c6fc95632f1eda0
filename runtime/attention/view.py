"""Views: which documents each token of a document reads, and at which distance (S2, S3)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ds2ds.documents.document import Document


@dataclass(frozen=True)
class Read:
    """A query at local position t reads `target` as a query at t + delta would."""

    target: Document
    delta: int


@dataclass(frozen=True)
class Segment:
    """Tokens [start, stop) of a document, all with the same view besides their own document."""

    start: int
    stop: int
    reads: tuple[Read, ...]


def view_at(document: Document, token: int) -> tuple[Read, ...]:
    """What the token at this index reads besides its own document, nearest document first.

    The first grant's target ends where the document starts, the next one's where that one starts: delta is the
    total length of the targets in view up to and including this one.
    """
    reads = []
    delta = 0
    for grant in document.grants:
        if grant.covers(token):
            delta += len(grant.target.tokens)
            reads.append(Read(grant.target, delta))
    return tuple(reads)


def segments(document: Document, start: int, stop: int) -> list[Segment]:
    """Cut tokens [start, stop) wherever the view changes."""
    bounds = {start, stop}
    for grant in document.grants:
        bounds.update(at for at in (grant.position, grant.end) if at is not None and start < at < stop)
    edges = sorted(bounds)
    return [Segment(lo, hi, view_at(document, lo)) for lo, hi in pairwise(edges)]


def targets(document: Document, start: int, stop: int) -> list[Document]:
    """The documents that tokens [start, stop) read besides their own, each once."""
    found = {read.target: None for segment in segments(document, start, stop) for read in segment.reads}
    return list(found)
