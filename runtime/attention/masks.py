"""Dense masks of the full pass: which token of a packed sequence may read which.

Each function returns bool [T, T], True where the row's token reads the column's. They are the plain
definitions, and what the full pass runs where it does not run FlexAttention; ``MASKS`` names them as a checkpoint's
``mask_type`` does. ``token_masks`` and ``block_masks`` say the same for FlexAttention, and are held to these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ds2ds.documents.spans import DocSpan


def check_spans(length: int, spans: Sequence[DocSpan], name: str = "doc_spans") -> None:
    """Whether spans describe a packed sequence of `length` tokens; `name` is what errors call them.

    Raises:
        ValueError: they do not cover [0, length) in order, without gap or overlap, or a grant cannot be.
    """
    at = 0
    for index, span in enumerate(spans):
        if not isinstance(span, DocSpan) or not isinstance(span.grants, tuple):
            raise ValueError(f"{name}[{index}] must be a DocSpan with a tuple of grants, got {span!r}")
        if span.start != at or span.end < span.start:
            raise ValueError(f"{name}[{index}] is [{span.start}, {span.end}), expected it to start at {at}")
        for grant in span.grants:
            before = grant.position < 0 or (grant.end is not None and grant.end < 0)
            if before or not 0 <= grant.target < len(spans) or grant.target == index:
                raise ValueError(f"{name}[{index}] ({span.title!r}) has a grant that cannot be: {grant}")
        at = span.end
    if at != length:
        raise ValueError(f"{name} end at {at}, but there are {length} tokens")


def document_ids(length: int, spans: Sequence[DocSpan]) -> Tensor:
    """int64 [T]: the index of each token's document."""
    check_spans(length, spans)
    return torch.repeat_interleave(torch.tensor([len(span) for span in spans]))


def causal(length: int, spans: Sequence[DocSpan]) -> Tensor:
    """Every token reads all tokens up to itself, across documents."""
    return full(length, spans).tril_()


def full(length: int, spans: Sequence[DocSpan]) -> Tensor:
    """Every token reads every token."""
    check_spans(length, spans)
    return torch.ones(length, length, dtype=torch.bool)


def doc_bidirectional(length: int, spans: Sequence[DocSpan]) -> Tensor:
    """A token reads all of its own document."""
    ids = document_ids(length, spans)
    return ids[:, None] == ids[None, :]


def doc_causal(length: int, spans: Sequence[DocSpan]) -> Tensor:
    """A token reads its own document up to itself."""
    return doc_bidirectional(length, spans).tril_()


def cross_doc_link(length: int, spans: Sequence[DocSpan]) -> Tensor:
    """`doc_causal`, and from each grant's position up to its end all of the granted document (S2)."""
    mask = doc_causal(length, spans)
    for span in spans:
        for grant in span.grants:
            end = len(span) if grant.end is None else min(grant.end, len(span))
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
"""The definitions. Each raises ValueError where `check_spans` does."""

BIDIRECTIONAL = ("full", "doc_bidirectional")
"""Under these a token reads what comes after it, so nothing can be written token by token."""

READS_LINKS = "cross_doc_link"
"""The one under which a document reads what it links to."""
