"""The masks of the full pass as FlexAttention asks for them: may token q read token kv?

Each builder puts what its rule needs into tensors and returns a ``mask_mod(b, h, q, kv)`` that does nothing but index
them, so that masks of other spans run in the same compiled kernel. Row b of the batch takes row ``b % rows`` of the
tables: one list of spans serves a whole batch. Tokens from the sequence's end to `padded` are in no document; no
token reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ds2ds.attention.granted import granted_areas
from ds2ds.documents.spans import DocSpan

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch row, head, query's token, key's token) -> bool: FlexAttention's mask_mod."""

Rows = Sequence[Sequence[DocSpan]]
"""The spans of each row of a batch, or one list of them for all rows."""

PADDING = -1
WORD = 32


def causal(rows: Rows, padded: int, device: torch.device) -> MaskMod:
    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return kv <= q

    return mask_mod


def full(rows: Rows, padded: int, device: torch.device) -> MaskMod:
    documents = _documents(rows, padded, device)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return documents[b % len(documents), kv] != PADDING

    return mask_mod


def doc_bidirectional(rows: Rows, padded: int, device: torch.device) -> MaskMod:
    documents = _documents(rows, padded, device)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        row = b % len(documents)
        return documents[row, q] == documents[row, kv]

    return mask_mod


def doc_causal(rows: Rows, padded: int, device: torch.device) -> MaskMod:
    documents = _documents(rows, padded, device)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        row = b % len(documents)
        return (documents[row, q] == documents[row, kv]) & (kv <= q)

    return mask_mod


def cross_doc_link(rows: Rows, padded: int, device: torch.device) -> MaskMod:
    """`doc_causal`, or the bit of (the query's view, the key's document).

    A *view* is a run of tokens between two changes of what their document has been granted. All of its tokens read
    the same documents: a bit for each granted document. With G grants that is at most 2 G views of G bits, far
    below T x T: 4,000 grants in 32,768 tokens need 4 MB.
    """
    documents = _documents(rows, padded, device)
    views = np.zeros((len(rows), padded), np.int32)
    columns = np.zeros((len(rows), padded), np.int32)
    words, at = [], 0
    for row, spans in enumerate(rows):
        bits, view, columns[row] = _grant_bits(spans, padded)
        views[row] = at + view * bits.shape[1]
        words.append(bits.ravel())
        at += bits.size
    # FlexAttention compiles once for each shape: a floor that few sequences exceed, then powers of two.
    room = max(4 * padded, 1 << (at - 1).bit_length())
    view_of = torch.from_numpy(views).to(device)
    column_of = torch.from_numpy(columns).to(device)
    granted = torch.from_numpy(np.pad(np.concatenate(words), (0, room - at))).to(device)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        row = b % len(documents)
        own = (documents[row, q] == documents[row, kv]) & (kv <= q)
        column = column_of[row, kv]
        word = granted[view_of[row, q] + (column >> 5)]
        return own | (((word >> (column & 31)) & 1) == 1)

    return mask_mod


TOKEN_MASKS: dict[str, Callable[[Rows, int, torch.device], MaskMod]] = {
    "doc_causal": doc_causal,
    "causal": causal,
    "full": full,
    "doc_bidirectional": doc_bidirectional,
    "cross_doc_link": cross_doc_link,
}
"""Builders by mask type: (checked spans of each row, length with padding, device) -> mask_mod."""


def _documents(rows: Rows, padded: int, device: torch.device) -> Tensor:
    """int32 [rows, padded]: the index of each token's document."""
    documents = np.full((len(rows), padded), PADDING, np.int32)
    for row, spans in enumerate(rows):
        for index, span in enumerate(spans):
            documents[row, span.start : span.end] = index
    return torch.from_numpy(documents).to(device)


def _grant_bits(spans: Sequence[DocSpan], padded: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The grants of one sequence: which bit says whether q reads kv.

    Returns:
        int32 words [views, columns / 32], in which view 0 reads nothing and nobody reads column 0; and for each of the
        `padded` tokens, as int64, its view and its column.
    """
    areas = granted_areas(spans)
    first, last, low, high = areas.T
    bounds = np.unique(areas[:, :2])
    targets, column = np.unique(low, return_inverse=True)
    bits = np.zeros((len(bounds) + 1, -(-(len(targets) + 1) // WORD) * WORD), bool)
    columns = np.zeros(padded, np.int64)
    starts, stops = np.searchsorted(bounds, first) + 1, np.searchsorted(bounds, last) + 1
    for start, stop, begin, end, bit in zip(starts, stops, low, high, column + 1, strict=True):
        bits[start:stop, bit] = True
        columns[begin:end] = bit
    words = np.packbits(bits, axis=1, bitorder="little").view("<i4").astype(np.int32)
    return words, np.searchsorted(bounds, np.arange(padded), side="right"), columns
