"""Dense masks of the full pass: which token of a packed sequence may read which.

Each function returns bool [T, T], True where the row's token reads the column's. They are the plain
definitions; ``MASKS`` names them as a checkpoint's ``mask_type`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ds2ds.documents.spans import DocSpan


def document_ids(length: int, spans: Sequence[DocSpan]) -> Tensor:
    """int64 [T]: the index of each token's document.

    Raises:
        ValueError: the spans do not cover [0, length) in order, without gap or overlap.
    """
    ids = torch.empty(length, dtype=torch.int64)
    at = 0
    for index, span in enumerate(spans):
        if span.start != at or span.end < span.start:
            raise ValueError(f"doc_spans[{index}] is [{span.start}, {span.end}), expected it to start at {at}")
        ids[span.start : span.end] = index
        at = span.end
    if at != length:
        raise ValueError(f"doc_spans end at {at}, but there are {length} tokens")
    return ids


def causal(length: int, spans: Sequence[DocSpan]) -> Tensor:
    """Every token reads all tokens up to itself, across documents."""
    return torch.ones(length, length, dtype=torch.bool).tril()


def full(length: int, spans: Sequence[DocSpan]) -> Tensor:
    """Every token reads every token."""
    return torch.ones(length, length, dtype=torch.bool)


def doc_bidirectional(length: int, spans: Sequence[DocSpan]) -> Tensor:
    """A token reads all of its own document."""
    ids = document_ids(length, spans)
    return ids[:, None] == ids[None, :]


def doc_causal(length: int, spans: Sequence[DocSpan]) -> Tensor:
    """A token reads its own document up to itself."""
    return doc_bidirectional(length, spans) & causal(length, spans)


def cross_doc_link(length: int, spans: Sequence[DocSpan]) -> Tensor:
    """`doc_causal`, and from each grant's position up to its end all of the granted document (S2)."""
    mask = doc_causal(length, spans)
    for index, span in enumerate(spans):
        for grant in span.grants:
            end = len(span) if grant.end is None else min(grant.end, len(span))
            if not 0 <= grant.target < len(spans) or grant.target == index or grant.position < 0 or end < 0:
                raise ValueError(f"doc_spans[{index}] ({span.title!r}) has a grant that cannot be: {grant}")
            target = spans[grant.target]
            mask[span.start + grant.position : span.start + end, target.start : target.end] = True
    return mask


MASKS: dict[str, Callable[[int, Sequence[DocSpan]], Tensor]] = {
    "doc_causal": doc_causal,
    "causal": causal,
    "full": full,
    "doc_bidirectional": doc_bidirectional,
    "cross_doc_link": cross_doc_link,
}
