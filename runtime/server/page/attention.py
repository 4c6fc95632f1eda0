"""What tokens of a session's result read, as the page shows it: means over layers and heads."""

from __future__ import annotations

from typing import Any

import numpy as np

from ds2ds.analysis.attention_map import AttentionMap
from ds2ds.backend import AsyncTellsAttention
from ds2ds.server.errors import ApiError
from ds2ds.server.page.sessions import Session

MAX_BYTES = 2**28
"""Most that one answer may take while it is made."""

_DIGITS = 4


async def overview(backend: AsyncTellsAttention, session: Session, document: int) -> dict[str, Any]:
    """Of each token of a document which share of its attention each document in view received; and all their tokens.

    Raises:
        ApiError: there is no such document; and what `Runtime.attention` raises.
    """
    found = await backend.attention(
        session.result,  # type: ignore[arg-type]
        _place(session, document),
        slice(None),
        max_bytes=MAX_BYTES,
    )
    return {
        "documents": [
            {"document": number, "tokens": list(texts), "shares": _plain(shares)}
            for number, texts, shares in zip(
                _numbers(session, document, found), found.token_texts, found.by_document().T, strict=True
            )
        ]
    }


async def of_token(backend: AsyncTellsAttention, session: Session, document: int, token: int) -> dict[str, Any]:
    """What one token read: of each document its share, and what each of its tokens received.

    Raises:
        ApiError: there is no such document or token; and what `Runtime.attention` raises.
    """
    found = await backend.attention(
        session.result,  # type: ignore[arg-type]
        _place(session, document),
        token,
        per_token=True,
        max_bytes=MAX_BYTES,
    )
    weights = [array.mean((0, 1, 2), dtype=np.float32) for array in found.weights or ()]
    return {
        "documents": [
            {"document": number, "share": round(float(share), _DIGITS), "weights": _plain(received)}
            for number, share, received, seen in zip(
                _numbers(session, document, found), found.by_document()[0], weights, found.in_view[0], strict=True
            )
            if seen
        ]
    }


def _place(session: Session, document: int) -> int:
    """The document's index in the result."""
    by_number = {number: title for title, number in session.telling.numbers.items()}
    title = by_number.get(document)
    documents = session.result.get_all_documents() if session.result else []
    for place, one in enumerate(documents):
        if (place == 0) if document == 0 else (place > 0 and one.title == title):
            return place
    raise ApiError(404, f"the session has no document {document}", param="document")


def _numbers(session: Session, document: int, found: AttentionMap) -> list[int]:
    return [document, *(session.telling.numbers[title] for title in found.titles[1:])]


def _plain(values: Any) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]
