"""Block masks of the full pass, built straight from the spans: no mask of token pairs is ever made.

A block of `block` queries and `block` keys is listed where any of its queries reads any of its keys, and listed as
*full*, to be computed without the token mask, where all of them read all. How many pairs a block holds is a sum over
documents and grants of (rows of it in the query block) x (columns of it in the key block): two small matrices of
overlaps and their product, in whole numbers that float64 holds exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ds2ds.attention.granted import granted_areas
from ds2ds.attention.token_masks import TOKEN_MASKS, Rows
from ds2ds.documents.spans import DocSpan

BLOCK = 128


def padded_length(length: int, block: int = BLOCK) -> int:
    """A power of two of whole blocks, for FlexAttention compiles once for each length: to 32,768 tokens nine times."""
    blocks = -(-length // block)
    return block << (blocks - 1).bit_length()


def block_mask(mask_type: str, length: int, rows: Rows, device: torch.device, block: int = BLOCK) -> BlockMask:
    """The BlockMask of a packed sequence, for queries and keys padded to `padded_length`.

    Args:
        rows: checked spans of each row of the batch, or of one that serves all.
        block: tokens in a block of queries and of keys; the CUDA kernels ask for a multiple of 128.

    Returns:
        A BlockMask [rows, 1, padded, padded] for the forward pass alone (it lists no query blocks for the backward
        pass). Rows of padding read nothing.
    """
    padded = padded_length(length, block)
    counts = np.stack([_visible_pairs(mask_type, length, spans, block, padded // block) for spans in rows])
    # Rows of padding may read anything, their output is cut off; keys of padding must not be read.
    real = np.clip(length - block * np.arange(padded // block), 0, block)
    visible = counts > 0
    complete = visible & (counts == real[:, None] * block)
    return BlockMask.from_kv_blocks(
        *_listed(visible & ~complete, device),
        *_listed(complete, device),
        BLOCK_SIZE=block,
        mask_mod=TOKEN_MASKS[mask_type](rows, padded, device),
        seq_lengths=(padded, padded),
        compute_q_blocks=False,
    )


def _visible_pairs(mask_type: str, length: int, spans: Sequence[DocSpan], block: int, blocks: int) -> np.ndarray:
    """float64 [query blocks, key blocks]: how many pairs of tokens each block of the mask lets through."""
    across = mask_type in ("causal", "full")
    bounds = np.array([(0, length)] if across else [(span.start, span.end) for span in spans])
    own = _overlaps(bounds, block, blocks)
    pairs = own.T @ own
    if mask_type not in ("full", "doc_bidirectional"):
        # On the diagonal n tokens of a document read n (n + 1) / 2 of themselves.
        pairs = np.tril(pairs, -1) + np.diag((own * (own + 1) / 2).sum(0))
    if mask_type == "cross_doc_link":
        areas = granted_areas(spans)
        pairs += _overlaps(areas[:, :2], block, blocks).T @ _overlaps(areas[:, 2:], block, blocks)
    return pairs


def _overlaps(bounds: np.ndarray, block: int, blocks: int) -> np.ndarray:
    """float64 [intervals, blocks]: the tokens of each interval [start, stop) in each block."""
    edges = block * np.arange(blocks)
    inside = np.minimum(bounds[:, 1:], edges + block) - np.maximum(bounds[:, :1], edges)
    return np.maximum(inside, 0).astype(np.float64)


def _listed(flags: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """bool [rows, query blocks, key blocks] as counts and indices, int32 with a head in between, true blocks first."""
    counts = torch.from_numpy(flags.sum(-1, dtype=np.int32))
    indices = torch.from_numpy(np.argsort(~flags, axis=-1, kind="stable").astype(np.int32))
    # torch's unsqueeze, not numpy's: the CUDA kernel finds a row by the stride of the head, where numpy puts 0.
    return counts.unsqueeze(1).to(device), indices.unsqueeze(1).to(device)
