"""What a stream tells while documents are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ds2ds.documents.generation_result import GeneratedDocument, GenerationResult
from ds2ds.generation.choices import LinkQuestion


@dataclass(frozen=True)
class DocumentOpened:
    """A document starts: the root, one from the corpus, or one that is about to be written.

    Attributes:
        text: what it starts with: the prompt, the layout's heading, or all of a document that was there.
    """

    title: str
    source: str
    depth: int
    parent: str | None
    text: str


@dataclass(frozen=True)
class TokenWritten:
    """A token was drawn. `text` is what can be shown now: a character split between tokens comes with its last.

    Attributes:
        top: the likeliest tokens in its place and their log-probabilities, as many as the request asked for.
    """

    title: str
    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class LinkAsked:
    """The request waits for an answer to this; its LinkClosed comes after the answer."""

    question: LinkQuestion


@dataclass(frozen=True)
class LinkClosed:
    """A link closed in `title`; tokens from `position` on read its target, where it has one.

    Attributes:
        target: as written; of a link with candidates the one that was chosen.
        outcome: "corpus", "generated", "in_view", "supplied", "skipped" (by who was asked), or "not_followed".
        reason: why it was not followed, or is followed but not read (the model's mask_type is not cross_doc_link).
        resolved_by: the resolver that found the target in the corpus; None: none did.
        score: how sure it was, in [0, 1].
    """

    title: str
    text: str
    target: str
    position: int
    outcome: str
    reason: str = ""
    resolved_by: str | None = None
    score: float | None = None


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


Event: TypeAlias = DocumentOpened | TokenWritten | LinkAsked | LinkClosed | DocumentClosed | Done
