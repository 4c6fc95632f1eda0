"""Where each document lies in a packed sequence, and which documents it may read from where."""

from __future__ import annotations

from dataclasses import dataclass


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
