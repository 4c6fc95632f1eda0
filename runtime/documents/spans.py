"""Where each document lies in a packed sequence, and which documents it may read from where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ds2ds.documents.document import Document


@dataclass(frozen=True)
class SpanGrant:
    """From its own token `position` up to `end` (None: to its last), a document reads all of span `target`."""

    position: int
    target: int
    end: int | None = None


@dataclass(frozen=True)
class DocSpan:
    """One document in a packed sequence: tokens [start, end), and its grants (indices into the list of spans)."""

    title: str
    start: int
    end: int
    grants: tuple[SpanGrant, ...] = ()

    def __len__(self) -> int:
        return self.end - self.start


def spans_of(packed: Sequence[Document]) -> list[DocSpan]:
    """Where each of these documents lies, one behind the other. Grants of what is not among them are left out."""
    index = {document: i for i, document in enumerate(packed)}
    spans, at = [], 0
    for document in packed:
        grants = tuple(
            SpanGrant(grant.position, index[grant.target], grant.end)
            for grant in document.grants
            if grant.target in index
        )
        spans.append(DocSpan(document.title, at, at + len(document.tokens), grants))
        at += len(document.tokens)
    return spans
