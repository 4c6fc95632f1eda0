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


@dataclass(frozen=True)
class Prefill:
    """Compute the tokens of a complete document, and first all that they read. The coroutine is sent None."""

    document: Document


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
    """A drawn token and its natural-log probability under the model's raw distribution."""

    token: int
    logprob: float


Work: TypeAlias = Generator[Compute | Prefill | Ask, Any, None]
"""A coroutine of generation; after Compute it is sent a Sampled, after Prefill None, after Ask the answer."""
