"""What must hold of the document store's books at any time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ds2ds.cache.arena import KVArena
from ds2ds.cache.entry import Entry
from ds2ds.cache.retention import Retention
from ds2ds.documents.content import Content, content_of
from ds2ds.documents.document import Document


def check_store(
    arena: KVArena,
    retention: Retention,
    used: Mapping[Document, Entry],
    found: Mapping[bytes, Entry],
    key_of: Callable[[Content], bytes],
) -> None:
    """Raise RuntimeError unless entries, extents, documents and keys match and every document fits its extent.

    Args:
        used, found: the entry that each document uses, and the one of each cache key.
    """
    arena.allocator.check_integrity()
    entries = {*used.values(), *found.values()}
    extents = arena.allocator.extents
    if sorted(id(entry.extent) for entry in entries) != sorted(map(id, extents)):
        raise RuntimeError(f"{len(extents)} extents for {len(entries)} entries, not one for each")
    for document, entry in used.items():
        if document not in entry.documents:
            raise RuntimeError(f"document {document.title!r} has an entry that does not know it")
        if document.in_progress and len(entry.documents) > 1:
            raise RuntimeError(f"document {document.title!r} is in progress, and shared")
        if entry.computed > len(document.tokens):
            raise RuntimeError(
                f"document {document.title!r} has {entry.computed} tokens computed of {len(document.tokens)}"
            )
    for entry in entries:
        titles = sorted(document.title for document in entry.documents)
        if any(used.get(document) is not entry for document in entry.documents):
            raise RuntimeError(f"an entry names documents {titles} that do not use it")
        if entry.computed > entry.extent.length:
            raise RuntimeError(f"document {titles} has {entry.computed} tokens in {entry.extent.length} slots")
        if not entry.documents and entry.key is None:
            raise RuntimeError(f"an entry of {entry.extent.length} slots can never be found again")
        if entry.key is not None and found.get(entry.key) is not entry:
            raise RuntimeError(f"document {titles} is not found by its key")
        if any(document.in_progress for document in entry.documents) == (entry in retention):
            raise RuntimeError(f"document {titles} is in progress and may be dropped, or neither")
    for key, entry in found.items():
        titles = sorted(document.title for document in entry.documents)
        if entry.content is None or not key == entry.key == key_of(entry.content):
            raise RuntimeError(f"document {titles} is found by a key that is not its own")
        if any(content_of(document).digest != entry.content.digest for document in entry.documents):
            raise RuntimeError(f"one of documents {titles} is of another content than its entry")
    gone = set(retention.cheapest_first()) - entries
    if gone:
        raise RuntimeError(f"retention holds {len(gone)} entries that are gone")
