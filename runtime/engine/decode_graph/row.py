"""What one row of a decode step computes, as the books of the host have it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NamedTuple

from ds2ds.attention.view import reads
from ds2ds.cache.document_store import DocumentStore
from ds2ds.cache.entry import Entry
from ds2ds.documents.document import Document, DocumentGrant
from ds2ds.engine.work import Sampling


@dataclass(eq=False, slots=True)
class Others:
    """What a row reads of other documents. Most rows read what the one before them did: they share this.

    Attributes:
        parts: (delta, first slot, keys) of each, see `decode_attention`. By these alone two are equal.
        grants: the document's, as they were.
        since, until: for its tokens [since, until) these grants give the same view.
        starts: the slots of the documents read, as they were.
        delta: of the document farthest away.
    """

    parts: tuple[tuple[int, int, int], ...]
    grants: list[DocumentGrant]
    since: int
    until: int
    starts: tuple[tuple[Document, int], ...]
    delta: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Others) and self.parts == other.parts

    def last(self, document: Document, position: int) -> bool:
        """Whether the document's token at this position reads the same, wherever that is now."""
        return self.since <= position < self.until and self.grants == document.grants

    def stand(self, store: DocumentStore) -> bool:
        """Whether all is where it was.

        Raises:
            KeyError: a document that is read is not resident.
        """
        for document, start in self.starts:  # noqa: SIM110 a generator takes as long as the rest
            if store.start(document) != start:
                return False
        return True


NO_OTHERS = Others((), [], 0, sys.maxsize, (), 0)


class Row(NamedTuple):
    """One token of a document in progress: its keys and values go into the arena, and the next token is drawn.

    Two rows are equal if and only if they compute the same, given the same token: they write the same slot of the same
    entry, read the same slots at the same distances, and draw alike.

    Attributes:
        entry: the document's; another one after the document was dropped and reserved again.
        position: in the document.
        slot: in the arena.
        others: what it reads of other documents.
    """

    entry: Entry
    position: int
    slot: int
    others: Others
    sampling: Sampling

    def following(self) -> Row:
        """The row of the next token, if its view is the same."""
        return Row(self.entry, self.position + 1, self.slot + 1, self.others, self.sampling)

    def precedes(self, row: Row) -> bool:
        """Whether that is the row that follows."""
        return (self.entry, self.position + 1, self.slot + 1, self.others, self.sampling) == row

    def parts(self, size: int) -> int:
        """How many parts of up to `size` keys it reads in all."""
        return self.position // size + 1 + len(self.others.parts)

    @property
    def farthest(self) -> int:
        """The position that its query is turned to for the document farthest away."""
        return self.position + self.others.delta


def row_at(
    store: DocumentStore, document: Document, position: int, sampling: Sampling, part: int, known: Row | None = None
) -> Row:
    """The row of a document's token at this position.

    Args:
        part: most keys of a part.
        known: a row of the document, which is returned if it is still this one. What it reads of other documents is
            used again if this one reads the same.

    Raises:
        KeyError: the document, or one that it reads, is not resident.
    """
    entry = store.entry(document)
    if entry is None:
        raise KeyError(document)
    others, slot = NO_OTHERS if known is None else known.others, entry.extent.start + position
    if not (others.last(document, position) and others.stand(store)):
        others = _others_at(store, document, position, part)
    row = Row(entry, position, slot, others, sampling)
    return known if known is not None and known.others is others and known == row else row


def _others_at(store: DocumentStore, document: Document, position: int, part: int) -> Others:
    parts: list[tuple[int, int, int]] = []
    starts: list[tuple[Document, int]] = []
    for read in reads(document, position, position + 1):
        start, length = store.start(read.target), len(read.target.tokens)
        starts.append((read.target, start))
        parts += [(read.delta, start + at, min(part, length - at)) for at in range(0, length, part)]
    changes = (at for grant in document.grants for at in (grant.position, grant.end) if at is not None)
    until = min((at for at in changes if at > position), default=sys.maxsize)
    delta = parts[-1][0] if parts else 0
    return Others(tuple(parts), list(document.grants), position, until, tuple(starts), delta)
