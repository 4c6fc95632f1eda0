"""Which complete documents go, so that there is room for another."""

from __future__ import annotations

from collections.abc import Set
from contextlib import closing

from ds2ds.cache.entry import Entry
from ds2ds.cache.extents import ExtentAllocator
from ds2ds.cache.retention import Retention
from ds2ds.documents.document import Document
from ds2ds.errors import ArenaFullError


def cheapest(allocator: ExtentAllocator, retention: Retention, need: int, pinned: Set[Document]) -> list[Entry]:
    """The entries to drop so that `need` slots are free, or all that may go if they do not suffice."""
    free = allocator.free
    going: list[Entry] = []
    with closing(retention.cheapest_first()) as entries:
        while free < need and (entry := next(entries, None)) is not None:
            if entry.documents.isdisjoint(pinned):
                going.append(entry)
                free += entry.extent.length
    return going


def cheapest_for(
    document: Document, allocator: ExtentAllocator, retention: Retention, need: int, pinned: Set[Document]
) -> list[Entry]:
    """The entries to drop so that a document finds the `need` slots it takes.

    Raises:
        ArenaFullError: they would not suffice.
    """
    going = cheapest(allocator, retention, need, pinned)
    most = allocator.free + sum(entry.extent.length for entry in going)
    if most < need:
        raise ArenaFullError(
            f"document {document.title or 'root'!r} needs {need} slots of the KV arena; {most} of "
            f"{allocator.capacity} can be had: give the runtime more arena_tokens, or lower "
            "max_tokens_per_document or max_context_length"
        )
    return going
