"""Which documents are resident in the arena, and where: reserve, trim, free, and make room."""

from __future__ import annotations

from ds2ds.cache.arena import KVArena
from ds2ds.cache.extents import Extent
from ds2ds.documents.document import Document
from ds2ds.errors import ArenaFullError


class DocumentCache:
    """Each resident document owns one extent.

    A document in progress reserves room for its capacity and gives the rest back when it completes. A complete one
    that is not pinned stays until its room is needed; it is then computed anew when it is read again.
    """

    def __init__(self, arena: KVArena) -> None:
        self.arena = arena
        self._extents: dict[Document, Extent] = {}

    def start(self, document: Document) -> int:
        """The slot of the document's first token.

        Raises:
            KeyError: the document is not resident.
        """
        return self._extents[document].start

    def is_resident(self, document: Document) -> bool:
        return document in self._extents

    def reserve(self, document: Document, pinned: set[Document]) -> None:
        """Give the document an extent, if it has none, at the cost of unpinned documents; oldest go first.

        Raises:
            ArenaFullError: even without all unpinned documents there is no room.
        """
        if document in self._extents:
            return
        allocator = self.arena.allocator
        tokens = document.capacity if document.capacity is not None else len(document.tokens)
        need = allocator.rounded(tokens)
        spare = [held for held in self._extents if held not in pinned and not held.in_progress]
        most = allocator.free + sum(self._extents[held].length for held in spare)
        if need > most:
            raise ArenaFullError(
                f"document {document.title!r} needs {need} slots of the KV arena; {most} of {allocator.capacity} can "
                f"be had: give the runtime more arena_tokens, or lower max_tokens_per_document or max_context_length"
            )
        while allocator.free < need:
            self.free(spare.pop(0))
        extent = allocator.allocate(tokens)
        if extent is None:
            self.arena.compact()
            extent = allocator.allocate(tokens)
        if extent is None:
            raise RuntimeError(f"no gap of {need} slots in a compacted arena with {allocator.free} free")
        self._extents[document] = extent

    def trim(self, document: Document) -> None:
        """Give back what a completed document reserved and did not use. No effect on one in progress."""
        if document in self._extents and not document.in_progress:
            self.arena.allocator.trim(self._extents[document], len(document.tokens))

    def free(self, document: Document) -> None:
        """Forget a document's keys and values. No effect on one that is not resident."""
        extent = self._extents.pop(document, None)
        if extent is not None:
            self.arena.allocator.release(extent)
            document.computed = 0

    def check_integrity(self) -> None:
        """Raise RuntimeError unless documents and extents match one to one and every document fits its extent."""
        self.arena.allocator.check_integrity()
        extents = self.arena.allocator.extents
        if sorted(map(id, self._extents.values())) != sorted(map(id, extents)):
            raise RuntimeError(f"{len(extents)} extents for {len(self._extents)} documents, not one for each")
        for document, extent in self._extents.items():
            if document.computed > extent.length:
                raise RuntimeError(
                    f"document {document.title!r} has {document.computed} tokens in {extent.length} slots"
                )
