"""What a generation coroutine asks of the engine, and what it gets back."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

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
class Compute:
    """Compute the tokens of the document that are not computed yet (first, all that they read), and draw the next.

    The coroutine is sent a Sampled. The document's last token must not be computed yet.
    """

    document: Document
    sampling: Sampling

    @property
    def stop(self) -> int:
        """How many of the document's tokens are to be computed."""
        return len(self.document.tokens)


@dataclass(frozen=True)
class Prefill:
    """Compute the tokens of a complete document, and first all that they read. The coroutine is sent None."""

    document: Document

    @property
    def stop(self) -> int:
        return len(self.document.tokens)


@dataclass(frozen=True)
class Ask:
    """Ask whoever reads the request. The coroutine is sent the answer, whenever it comes; others go on meanwhile.

    Attributes:
        document: the one that cannot go on without the answer.
        question: what the reader is shown; anything but None, the engine does not look at it.
    """

    document: Document
    question: Any


@dataclass(frozen=True)
class Sampled:
    """A token and its natural-log probability under the model's raw distribution.

    Attributes:
        top: the likeliest tokens and their log-probabilities, likeliest first, as many as were asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Score:
    """Compute the document's tokens but for the last one (first, all that they read), and say how likely they were.

    The coroutine is sent a list[Sampled], one for each token from `start` on, given those before it. The tokens from
    `start - 1` on must not be computed yet (`Document.fresh_from`).

    Attributes:
        start: at least 1: nothing comes before the first token.
        top: as for Sampling.
        found: the engine's: what it has computed so far, by position.
    """

    document: Document
    start: int
    top: int = 0
    found: dict[int, Sampled] = field(default_factory=dict, compare=False)

    @property
    def stop(self) -> int:
        return len(self.document.tokens) - 1


Computation: TypeAlias = Compute | Prefill | Score

Item: TypeAlias = Computation | Ask

Work: TypeAlias = Generator[Item, Any, None]
"""A coroutine of generation; after Compute it is sent a Sampled, after Score a list of them, after Prefill None, after
Ask the answer."""
