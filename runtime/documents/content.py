"""What a document's keys and values are a function of, besides the weights (S5), as one hash: a Merkle DAG."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ds2ds.documents.document import Document

DIGEST_BYTES = 16


@dataclass(frozen=True, eq=False)
class ContentGrant:
    """As DocumentGrant, of contents."""

    position: int
    target: Content
    end: int | None


@dataclass(frozen=True, eq=False)
class Content:
    """A complete document without name and origin.

    Attributes:
        tokens: int32 [n].
        digest: over the tokens and, recursively, the grants with their positions and ends.
    """

    tokens: NDArray[np.int32]
    grants: tuple[ContentGrant, ...]
    digest: bytes

    def __len__(self) -> int:
        return len(self.tokens)


def make_content(tokens: NDArray[np.int32], grants: tuple[ContentGrant, ...]) -> Content:
    """A content with its digest."""
    # Fixed-width parts with their counts in front: no two contents give the same bytes.
    table = np.array([(g.position, -1 if g.end is None else g.end) for g in grants], dtype="<i8").reshape(-1, 2)
    hashed = hashlib.blake2b(digest_size=DIGEST_BYTES)
    hashed.update(np.array([len(tokens), len(grants)], dtype="<i8").tobytes())
    hashed.update(tokens.astype("<i4", copy=False).tobytes())
    hashed.update(table.tobytes())
    for grant in grants:
        hashed.update(grant.target.digest)
    return Content(tokens, grants, hashed.digest())


def content_of(document: Document) -> Content:
    """The content of a complete document, which no longer changes; computed once.

    Raises:
        ValueError: the document, or one that it reads, is still being written.
    """
    # Not by recursion: a chain of documents may be longer than Python's stack is deep.
    pending = [document]
    while document.content is None:
        one = pending.pop()
        if one.in_progress:
            raise ValueError(f"document {one.title!r} is still being written: its content may change")
        length = len(one.tokens)
        unknown = [grant.target for grant in one.grants if grant.is_read(length) and grant.target.content is None]
        if unknown:
            pending += [one, *unknown]
        elif one.content is None:
            one.content = prefix_content(one, length)
    return document.content


def prefix_content(document: Document, length: int) -> Content:
    """The content of a document that ended after the first `length` tokens; whoever these read must be complete.

    The keys and values of these tokens are those of that document: no token reads what comes after it.
    """
    grants = [
        ContentGrant(
            grant.position, content_of(grant.target), None if grant.end is None or grant.end >= length else grant.end
        )
        for grant in document.grants
        # What no token reads (a link that closes in the last token) makes no difference.
        if grant.is_read(length)
    ]
    return make_content(np.array(document.tokens[:length], dtype=np.int32), tuple(grants))
