"""What a generation coroutine asks of the engine, and what it gets back."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

from ds2ds.documents.document import Document


@dataclass(frozen=True)
class Sampling:
    """How the next token of a document is drawn. The noise is keyed by (seed, position in the document, token id)."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int


@dataclass(frozen=True)
class Compute:
    """Compute the tokens of the document that are not computed yet (first, all that they read), and draw the next.

    The coroutine is sent a Sampled. The document's last token must not be computed yet.
    """

    document: Document
    sampling: Sampling

    @property
    def documents(self) -> tuple[Document, ...]:
        return (self.document,)


@dataclass(frozen=True)
class Prefill:
    """Compute the tokens of a complete document, and first all that they read. The coroutine is sent None."""

    document: Document

    @property
    def documents(self) -> tuple[Document, ...]:
        return (self.document,)


@dataclass(frozen=True)
class Rank:
    """Compute several documents in progress, each as for Compute, and find the `most` likeliest next tokens of each.

    The coroutine is sent for each document a list of Sampled, the likeliest first and ties by the lower id. It is
    shorter where fewer tokens have a probability above 0. Documents that have left the job's window are not needed any
    more: what is being written gives up its room.
    """

    documents: tuple[Document, ...]
    most: int


@dataclass(frozen=True)
class Sampled:
    """A token, drawn or ranked, and its natural-log probability under the model's raw distribution."""

    token: int
    logprob: float


Work: TypeAlias = Generator[Compute | Prefill, Any, None]
"""A coroutine of generation; after Compute it is sent a Sampled, after Prefill None."""

AnyWork: TypeAlias = Generator[Compute | Prefill | Rank, Any, None]
"""The same, or one that searches; after Rank it is sent list[list[Sampled]]."""
