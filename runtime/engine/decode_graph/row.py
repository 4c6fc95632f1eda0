"""What one row of a decode step computes, as the books of the host have it."""

from __future__ import annotations

from typing import NamedTuple

from ds2ds.attention.view import reads
from ds2ds.cache.document_store import DocumentStore
from ds2ds.cache.entry import Entry
from ds2ds.documents.document import Document
from ds2ds.engine.work import Sampling


class Row(NamedTuple):
    """One token of a document in progress: its keys and values go into the arena, and the next token is drawn.

    Two rows are equal if and only if they compute the same, given the same token: they write the same slot of the same
    entry, read the same slots at the same distances, and draw alike.

    Attributes:
        entry: the document's; another one after the document was dropped and reserved again.
        position: in the document.
        slot: in the arena.
        others: (delta, first slot, keys) of each part of another document that it reads, see `decode_attention`.
    """

    entry: Entry
    position: int
    slot: int
    others: tuple[tuple[int, int, int], ...]
    sampling: Sampling

    def following(self) -> Row:
        """The row of the next token, if its view is the same."""
        return self._replace(position=self.position + 1, slot=self.slot + 1)

    def parts(self, size: int) -> int:
        """How many parts of up to `size` keys it reads in all."""
        return self.position // size + 1 + len(self.others)

    @property
    def farthest(self) -> int:
        """The position that its query is turned to for the document farthest away."""
        return self.position + (self.others[-1][0] if self.others else 0)


def row_at(store: DocumentStore, document: Document, position: int, sampling: Sampling, part: int) -> Row:
    """The row of a document's token at this position.

    Args:
        part: most keys of a part.

    Raises:
        KeyError: the document, or one that it reads, is not resident.
    """
    others: list[tuple[int, int, int]] = []
    if document.grants:
        for read in reads(document, position, position + 1):
            start, length = store.start(read.target), len(read.target.tokens)
            others += [(read.delta, start + at, min(part, length - at)) for at in range(0, length, part)]
    entry = store.entry(document)
    if entry is None:
        raise KeyError(document)
    return Row(entry, position, entry.extent.start + position, tuple(others), sampling)
