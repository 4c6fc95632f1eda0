"""What a stream tells while documents are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ds2ds.documents.generation_result import GeneratedDocument, GenerationResult


@dataclass(frozen=True)
class DocumentOpened:
    """A document starts: the root, one from the corpus, or one that is about to be written.

    Attributes:
        text: what it starts with: the prompt, the layout's heading, or all of a corpus document.
    """

    title: str
    source: str
    depth: int
    parent: str | None
    text: str


@dataclass(frozen=True)
class TokenWritten:
    """A token was drawn. `text` is what can be shown now: a character split between tokens comes with its last."""

    title: str
    token: int
    text: str
    logprob: float


@dataclass(frozen=True)
class LinkClosed:
    """A link closed in `title`; tokens from `position` on read its target, where it has one.

    Attributes:
        target: as written; of a link with candidates the one that was chosen.
        outcome: "corpus", "generated", "in_view", or "not_followed".
        reason: why it was not followed; else empty.
    """

    title: str
    text: str
    target: str
    position: int
    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class DocumentClosed:
    """A document is complete."""

    title: str
    finish_reason: str | None
    document: GeneratedDocument


@dataclass(frozen=True)
class Done:
    """The request is done."""

    result: GenerationResult


Event: TypeAlias = DocumentOpened | TokenWritten | LinkClosed | DocumentClosed | Done
