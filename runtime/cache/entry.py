"""One document's keys and values in the arena."""

from __future__ import annotations

from dataclasses import dataclass, field

from ds2ds.cache.extents import Extent
from ds2ds.documents.content import Content
from ds2ds.documents.document import Document


@dataclass(eq=False)
class Entry:
    """Where the keys and values of a document are. Documents of one content, of any request, share one entry.

    Attributes:
        extent: the slots; token t is in slot extent.start + t.
        computed: how many tokens have their keys and values there.
        documents: who uses it now.
        content: what it holds; None while it is being written, or where documents are not shared.
        key: what it is found by; None as for content, and once other weights are in use.
        prompt: of roots alone, their start or all of one: for requests of this process to find, but nothing to write
            into a file.
        stale: begun before the weights that are in use now: never shared.
        uses: how many documents have used it.
        cost: seconds that computing it anew would take, as measured.
        worth: what retention thought of it last.
    """

    extent: Extent
    computed: int = 0
    documents: set[Document] = field(default_factory=set)
    content: Content | None = None
    key: bytes | None = None
    prompt: bool = False
    stale: bool = False
    uses: int = 0
    cost: float = 0.0
    worth: float = 0.0
