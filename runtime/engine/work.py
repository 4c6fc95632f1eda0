"""What a generation coroutine asks of the engine, and what it gets back."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from ds2ds.documents.document import Document


@dataclass(frozen=True)
class Sampling:
    """How the next token of a document is drawn. The noise is keyed by (seed, position in the document, token id).

    `top` of the likeliest tokens are told beside the drawn one.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    top: int = 0


@dataclass(frozen=True)
class _OfOne:
    """Work on one document."""

    document: Document

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        return (self.document,)


@dataclass(frozen=True)
class Compute(_OfOne):
    """Compute the tokens of the document that are not computed yet (first, all that they read), and draw the next.

    The coroutine is sent a Sampled. The document's last token must not be computed yet.
    """

    sampling: Sampling


@dataclass(frozen=True)
class Prefill(_OfOne):
    """Compute the tokens of a complete document, and first all that they read. The coroutine is sent None."""


@dataclass(frozen=True)
class Rank:
    """Compute several documents in progress, each as for Compute, and find the `most` likeliest next tokens of each.

    The coroutine is sent for each document a list of Sampled, the likeliest first and ties by the lower id. It is
    shorter where fewer tokens have a probability above 0. Documents that have left the job's window are not needed any
    more: what is being written gives up its room.
    """

    documents: tuple[Document, ...]
    most: int


class Sampled(NamedTuple):
    """A token, drawn, ranked or scored, and its natural-log probability under the model's raw distribution.

    Attributes:
        top: the likeliest tokens and their log-probabilities, likeliest first, as many as were asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Score(_OfOne):
    """Compute the document's tokens but for the last one (first, all that they read), and say how likely they were.

    The coroutine is sent a list[Sampled], one for each token from `start` on, given those before it. The tokens from
    `start - 1` on must not be computed yet (`Document.fresh_from`).

    Attributes:
        start: at least 1: nothing comes before the first token.
        top: as for Sampling.
        found: the engine's: what it has computed so far, by position.
    """

    start: int
    top: int = 0
    found: dict[int, Sampled] = field(default_factory=dict, compare=False)

    @property
    def stop(self) -> int:
        """How many of the document's tokens are to be computed."""
        return len(self.document.tokens) - 1


@dataclass(frozen=True)
class Ask(_OfOne):
    """Ask whoever reads the request. The coroutine is sent the answer, whenever it comes; others go on meanwhile.

    Attributes:
        document: the one that cannot go on without the answer.
        question: what the reader is shown; anything but None, the engine does not look at it.
    """

    question: Any


Item: TypeAlias = Compute | Prefill | Score | Ask

Work: TypeAlias = Generator[Item, Any, None]
"""A coroutine of generation; after Compute it is sent a Sampled, after Score a list of them, after Prefill None, after
Ask the answer."""

AnyWork: TypeAlias = Generator[Item | Rank, Any, None]
"""The same, or one that searches; after Rank it is sent list[list[Sampled]]."""
