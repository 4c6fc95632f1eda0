"""Which documents are in the arena: shared by content, kept until their room is needed, never more than there is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from torch import Tensor

from ds2ds.cache.arena import KVArena
from ds2ds.cache.beginnings import Beginning, beginning, in_common
from ds2ds.cache.entry import Entry
from ds2ds.cache.extents import Extent
from ds2ds.cache.integrity import check_store
from ds2ds.cache.retention import GreedyDualSizeFrequency, Retention
from ds2ds.cache.room import cheapest, cheapest_for
from ds2ds.documents.content import DIGEST_BYTES, Content, content_of, prefix_content
from ds2ds.documents.document import Document

SLACK = 16
"""Before a compaction, documents are dropped until one slot in so many is free, as far as they may be."""


class DocumentStore:
    """Every resident document's Entry.

    A document in progress has an entry of its own: it reserves room for its capacity, and gives the rest back when it
    completes. From then on its keys and values are a function of the weights and its content (S5), and it shares one
    entry with every other document of that content, in whichever request. Entries that no document uses stay until
    their room is needed; then the one worth least goes, and is computed anew if it is asked for again.

    Args:
        retention: decides which entries go first.
        share: off, every document has its own entry, which goes with the document.

    Attributes:
        weights: identity of the weights that compute; part of every key.
        dropped: complete documents that had to go for the room of others, so far.
        in_use: slots of entries that documents use, whatever may be dropped of them.
    """

    def __init__(self, arena: KVArena, retention: Retention | None = None, share: bool = True) -> None:
        self.arena = arena
        self.retention = retention or GreedyDualSizeFrequency()
        self.share = share
        self.weights = b""
        self._entries: dict[Document, Entry] = {}
        self._by_key: dict[bytes, Entry] = {}
        self.dropped = 0
        self.in_use = 0
        self._prefilled = 0
        self._prefill_seconds = 0.0

    # Looking up

    def start(self, document: Document) -> int:
        """The slot of the document's first token.

        Raises:
            KeyError: the document is not resident.
        """
        return self._entries[document].extent.start

    def computed(self, document: Document) -> int:
        """How many of the document's tokens have their keys and values in the arena."""
        entry = self._entries.get(document)
        return 0 if entry is None else entry.computed

    def entry(self, document: Document) -> Entry | None:
        """None: it is not resident."""
        return self._entries.get(document)

    def slots(self, entry: Entry) -> Tensor:
        """A view of the entry's keys and values, as far as computed: [layers, 2, kv_heads, computed, head_dim]."""
        return self.arena.data[..., entry.extent.start : entry.extent.start + entry.computed, :]

    def documents(self) -> list[Document]:
        """All that use an entry."""
        return list(self._entries)

    def shared(self) -> list[Entry]:
        """All entries that can be found by their content: complete documents under the present weights."""
        return list(self._by_key.values())

    @property
    def shared_count(self) -> int:
        return len(self._by_key)

    def holds(self, content: Content) -> bool:
        """Whether a document of this content is in the arena."""
        return self.key(content) in self._by_key

    def key(self, content: Content) -> bytes:
        """The cache key: a hash over the weights' identity and the content's digest."""
        return hashlib.blake2b(self.weights + content.digest, digest_size=DIGEST_BYTES).digest()

    # A document's life

    def attach(self, document: Document) -> int | None:
        """Let a complete document use the entry of its content, if there is one.

        Returns:
            How many of its tokens are computed there; None if there is none, or it has an entry already.
        """
        if document in self._entries or not self.share or document.in_progress:
            return None
        entry = self._find(content_of(document))
        if entry is None:
            return None
        self._use(entry, document)
        return entry.computed

    def found(self, document: Document) -> int:
        """How many tokens of a document that has no entry yet `reserve` would find computed.

        They are what it starts with a copy of, see `beginning`.
        """
        start = self._beginning(document)
        return 0 if start is None else start.tokens

    def reserve(self, document: Document, pinned: Callable[[], set[Document]]) -> Entry:
        """Give the document an entry, if it has none, at the cost of complete documents that are not pinned.

        It starts with a copy of what is `found`, unless just this had to go for it.

        Args:
            pinned: called if room must be made.

        Raises:
            ArenaFullError: even without all that may go there is no room; nothing has gone then.
        """
        if document in self._entries:
            return self._entries[document]
        extent = self._allocate(document, pinned)
        start = self._beginning(document)  # not before room was made, which may have dropped it
        entry = Entry(extent, prompt=document.depth == 0)
        self._use(entry, document)
        if start is not None:
            self._count_use(start.entry)
            entry.computed, entry.stale = start.tokens, start.entry.stale
            self.arena.copy(start.entry.extent.start, extent.start, start.tokens)
            document.settled = max(document.settled, start.tokens)
        document.origin = None
        if not document.in_progress:
            self._publish(entry, content_of(document))
        return entry

    def inherit(self, document: Document) -> bool:
        """Let a document have the place of its origin, which is given up for it: nothing need be copied.

        Returns:
            Whether it has it; not where others use that too, or may find it, or it is gone.
        """
        entry = self._entries.get(document.origin) if document.origin is not None else None
        if entry is None or entry in self.retention or document in self._entries:
            return False
        for origin in entry.documents:
            del self._entries[origin]
        self._entries[document], entry.documents = entry, {document}
        entry.computed = in_common(document, entry)
        document.origin = None
        return True

    def advance(self, document: Document, stop: int, prefill_seconds: float | None = None) -> None:
        """Note that the document's tokens up to `stop` are computed now.

        Args:
            prefill_seconds: what it took; None: they were decoded, which says nothing of what a prefill would take.
        """
        entry = self._entries[document]
        if prefill_seconds is not None:
            self._prefilled += stop - entry.computed
            self._prefill_seconds += prefill_seconds
            entry.cost += prefill_seconds
        entry.computed = stop
        document.settled = max(document.settled, stop)
        if entry in self.retention:
            self.retention.note(entry)

    def advance_written(self, documents: Iterable[Document]) -> None:
        """Note that all tokens of these documents in progress are computed now: each one's last was written."""
        for document in documents:
            self._entries[document].computed = document.settled = len(document.tokens)

    def complete(self, document: Document) -> None:
        """A document that was in progress takes no more tokens: give back what it did not use, and share the rest.

        No effect on one that is not resident, or was complete when it came.
        """
        entry = self._entries.get(document)
        if entry is None or document.in_progress or entry in self.retention:
            return
        self.in_use -= self.arena.allocator.trim(entry.extent, len(document.tokens))
        if self._prefilled:
            entry.cost = self._prefill_seconds / self._prefilled * len(document.tokens)
        known = None if entry.stale else self._find(content_of(document))
        if known is not None and known.computed >= entry.computed:
            self._drop(entry)
            self._use(known, document)
        else:
            self._publish(entry, content_of(document))

    def release(self, document: Document) -> None:
        """The document is no longer used. Its entry stays if it is complete and shared; of a root, the prompt stays."""
        entry = self._entries.pop(document, None)
        if entry is None:
            return
        entry.documents.remove(document)
        if not entry.documents:
            self.in_use -= entry.extent.length
        is_root = self.share and document.parent is None and entry.key is None and not entry.documents
        if is_root and entry.computed >= document.given:
            self.arena.allocator.trim(entry.extent, document.given)
            entry.computed = document.given
            entry.prompt = True
            self._publish(entry, prefix_content(document, document.given))
        if not entry.documents and (entry.key is None or not entry.computed):
            self._drop(entry)

    def use_weights(self, identity: bytes) -> None:
        """From now on, these weights compute. If they are others than before, nothing resident is found any more."""
        if identity == self.weights:
            return
        self.weights = identity
        for entry in self._entries.values():
            entry.stale = True
        for entry in self._by_key.values():
            entry.key = None
            if not entry.documents:
                self._drop(entry)
        self._by_key.clear()

    def clear(self) -> None:
        """Drop every entry that no document uses."""
        for entry in self.shared():
            if not entry.documents:
                self._drop(entry)

    def insert(self, content: Content, cost: float, uses: int) -> Entry | None:
        """Room for a document that was computed elsewhere, to be filled by the caller; None if none is free.

        Nothing is dropped for it. Where its content is there already, or nothing is shared, None too.
        """
        key = self.key(content)
        if key in self._by_key or not self.share:
            return None
        extent = self.arena.allocator.allocate(len(content))
        if extent is None and self.arena.allocator.free >= self.arena.allocator.rounded(len(content)):
            self.arena.compact()
            extent = self.arena.allocator.allocate(len(content))
        if extent is None:
            return None
        entry = Entry(extent, len(content), content=content, key=key, uses=uses, cost=cost)
        self._by_key[key] = entry
        self.retention.note(entry)
        return entry

    def check_integrity(self) -> None:
        """Raise RuntimeError unless entries, extents, documents and keys match and every document fits its extent."""
        check_store(self.arena, self.retention, self._entries, self._by_key, self.key)
        in_use = sum(entry.extent.length for entry in set(self._entries.values()))
        if in_use != self.in_use:
            raise RuntimeError(f"documents use {in_use} slots, but {self.in_use} count as in use")

    def _use(self, entry: Entry, document: Document) -> None:
        if not entry.documents:
            self.in_use += entry.extent.length
        self._entries[document] = entry
        entry.documents.add(document)
        entry.prompt &= document.depth == 0
        self._count_use(entry)

    def _count_use(self, entry: Entry) -> None:
        entry.uses += 1
        if entry in self.retention:
            self.retention.note(entry)

    def _beginning(self, document: Document) -> Beginning | None:
        return None if document in self._entries else beginning(document, self._entries, self._find)

    def _find(self, content: Content) -> Entry | None:
        return self._by_key.get(self.key(content)) if self.share else None

    def _allocate(self, document: Document, pinned: Callable[[], set[Document]]) -> Extent:
        """An extent for all that the document may come to hold; see `reserve`."""
        allocator = self.arena.allocator
        tokens = len(document.tokens) if document.capacity is None else document.capacity
        need = allocator.rounded(tokens)
        extent = allocator.allocate(tokens)
        if extent is None and allocator.free < need:
            self._drop_all(cheapest_for(document, allocator, self.retention, need, pinned()))
            extent = allocator.allocate(tokens)
        if extent is None:
            # A compaction moves up to the whole arena: the gap it leaves is to serve more than this document.
            self._drop_all(cheapest(allocator, self.retention, need + allocator.capacity // SLACK, pinned()))
            self.arena.compact()
            extent = allocator.allocate(tokens)
        if extent is None:
            raise RuntimeError(f"no gap of {need} slots in a compacted arena with {allocator.free} free")
        return extent

    def _publish(self, entry: Entry, content: Content) -> None:
        """Make the entry of this content one that may be found, and dropped."""
        if self.share and not entry.stale:
            key = self.key(content)
            if key not in self._by_key:
                entry.content, entry.key = content, key
                self._by_key[key] = entry
        self.retention.note(entry)

    def _drop_all(self, entries: list[Entry]) -> None:
        self.dropped += len(entries)
        for entry in entries:
            self.retention.drop(entry)
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        if entry.documents:
            self.in_use -= entry.extent.length
        for document in entry.documents:
            del self._entries[document]
        if entry.key is not None:
            del self._by_key[entry.key]
        entry.documents = set()
        self.retention.forget(entry)
        self.arena.allocator.release(entry.extent)
