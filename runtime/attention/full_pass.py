"""Attention of the full pass: which kind of mask, masks kept while the structure stays, and the attention itself.

On CUDA compiled FlexAttention runs with a block mask, and skips what nobody reads. Elsewhere scaled dot-product
attention runs with the dense mask: eager FlexAttention would compute every score, and ignore the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ds2ds.attention.block_masks import block_mask
from ds2ds.attention.masks import MASKS, check_spans
from ds2ds.attention.token_masks import Rows
from ds2ds.documents.spans import DocSpan

Mask = Tensor | BlockMask

KEPT_MASKS = 4
LARGEST_KEPT = 64 * 2**20
"""Bytes. A larger dense mask (one row of more than 8,192 tokens) is built for each pass: there the pass takes far
longer than its mask, and masks that outlive it could fill the memory. Block masks are small, and always kept."""

COMPILED_SHAPES = 64
"""How many shapes FlexAttention is compiled for. torch's own limit of 8 is less than the lengths times batch sizes
of an ordinary evaluation, and beyond the limit stands an error."""


def takes_blocks(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether compiled FlexAttention runs such a model; it has no kernels for float64, nor for heads below 16."""
    return device.type == "cuda" and dtype != torch.float64 and head_dim >= 16


def full_mask(
    mask_type: str, length: int, rows: Sequence[Sequence[DocSpan]], device: torch.device, *, blocks: bool
) -> Mask:
    """The mask of a packed sequence; the one built before where mask type, length, spans and device are the same.

    Args:
        rows: the documents of each row of the batch, or of one that serves all.
        blocks: a BlockMask for padded queries and keys (``block_masks``), or bool [rows, 1, T, T] (``masks``).

    Raises:
        ValueError: the spans of a row do not cover the sequence, or a grant cannot be.
    """
    for index, spans in enumerate(rows):
        check_spans(length, spans, "doc_spans" if len(rows) == 1 else f"doc_spans[{index}]")
    keep = blocks or len(rows) * length**2 <= LARGEST_KEPT
    return (_kept if keep else _build)(mask_type, length, tuple(map(tuple, rows)), device, blocks)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Softmax attention with scale 1 / sqrt(head_dim), [B, heads, T, head_dim] in and out.

    Args:
        mask: bool, broadcastable to [B, heads, T, T]; or a BlockMask, whose queries and keys may reach beyond T.

    Raises:
        ValueError: a BlockMask is for fewer tokens.
    """
    if isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    length, padded = q.shape[2], mask.seq_lengths[0]
    if length > padded:
        raise ValueError(f"the block mask is for at most {padded} tokens, got {length}")
    # Contiguous whether padded or not: strides too are something to compile for.
    q, k, v = (F.pad(x, (0, 0, 0, padded - length)).contiguous() for x in (q, k, v))
    return (_compiled_flex if q.is_cuda else _flex)(q, k, v, mask)[:, :, :length]


def _build(mask_type: str, length: int, rows: Rows, device: torch.device, blocks: bool) -> Mask:
    # Tensors born in inference mode could not be used outside of it, and a kept mask does not know where it goes.
    with torch.inference_mode(False):
        if blocks:
            return block_mask(mask_type, length, rows, device)
        return torch.stack([MASKS[mask_type](length, spans) for spans in rows]).unsqueeze(1).to(device)


_kept = lru_cache(KEPT_MASKS)(_build)


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    # A function of our own, for torch counts compiled shapes by function.
    return flex_attention(q, k, v, block_mask=mask)


def _compiled_flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    with torch._dynamo.config.patch(recompile_limit=COMPILED_SHAPES):
        return _compiled()(q, k, v, mask)


@cache
def _compiled() -> Callable[[Tensor, Tensor, Tensor, BlockMask], Tensor]:
    # Static shapes give kernels without bounds checks. fullgraph: what cannot be compiled is an error, for eager
    # FlexAttention would answer after allocating every score.
    return torch.compile(_flex, dynamic=False, fullgraph=True)
