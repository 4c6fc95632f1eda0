"""How a row of decode steps computes the tokens of a document, as the books of the host have it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import NamedTuple

from ds2ds.attention.view import reads
from ds2ds.cache.document_store import DocumentStore
from ds2ds.cache.entry import Entry
from ds2ds.documents.document import Document, DocumentGrant
from ds2ds.engine.work import Sampling


@dataclass(eq=False, slots=True)
class Others:
    """What a row reads of other documents.

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

    def stand(self, store: DocumentStore) -> bool:
        """Whether all is where it was.

        Raises:
            KeyError: a document that is read is not resident.
        """
        for document, start in self.starts:  # noqa: SIM110 a generator takes as long as the rest
            if store.start(document) != start:
                return False
        return True


class Room(NamedTuple):
    """What there is for a row.

    Attributes:
        part: most keys of a part.
        parts: most parts of a row.
        positions: how many positions a query may be turned to.
    """

    part: int
    parts: int
    positions: int


@dataclass(slots=True)
class Row:
    """How a document's tokens are computed, and the next ones drawn: the same for all until its view changes.

    Keys and values of a token go into the arena at `start` plus its position. Two rows are equal if and only if they
    compute the same, given the same token and position: they write the same slots of the same entry, read the same
    slots at the same distances, and draw alike.

    Attributes:
        entry: the document's; another one after the document was dropped and reserved again.
        start: the slot of the document's first token.
        others: what it reads of other documents.
        until: the first position that it is not for: the view changes there, or it has no room there.
    """

    entry: Entry
    start: int
    others: Others
    sampling: Sampling
    until: int = field(compare=False)

    def stands(self, store: DocumentStore, document: Document, position: int, sampling: Sampling) -> bool:
        """Whether it is still the row of the document's token at this position.

        Raises:
            KeyError: a document that is read is not resident.
        """
        others = self.others
        return (
            others.since <= position < self.until
            and store.entry(document) is self.entry
            and self.entry.extent.start == self.start
            and (self.sampling is sampling or self.sampling == sampling)
            and others.grants == document.grants
            and (not others.starts or others.stand(store))
        )


def row_at(store: DocumentStore, document: Document, position: int, sampling: Sampling, room: Room) -> Row | None:
    """The row of a document's token at this position; None where there is no room for it.

    Raises:
        KeyError: the document, or one that it reads, is not resident.
    """
    entry = store.entry(document)
    if entry is None:
        raise KeyError(document)
    others = _others_at(store, document, position, room.part)
    until = min(
        others.until,
        entry.extent.length,
        (room.parts - len(others.parts)) * room.part,
        room.positions - others.delta,
    )
    return Row(entry, entry.extent.start, others, sampling, until) if position < until else None


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
