"""backbone.c: all layers in one call."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ds2ds.native.operations import EPSILON, FLOAT_BYTES, RowReads, compiled, int8_room


class CWeight(ctypes.Structure):
    """`struct weight` of backbone.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "sums", "scale")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "digits")),
    ]


def backbone_rows(
    x: Tensor, weights: ctypes.Array[CWeight], skips: Tensor, reads: RowReads, arena: Tensor, scale: float
) -> Tensor:
    """All layers for rows of any documents; stores their keys and values in the arena.

    Args:
        x: token embeddings [rows, width], overwritten.
        weights: four for each layer, of qkv, out, up and gate, down.
        skips: [layers // 2].
        arena: [layers, 2, heads, slots, head_dim].
        scale: what scores are multiplied by.

    Returns:
        The final norm [rows, width].
    """
    rows, width = x.shape
    layers, _, heads, slots, dim = arena.shape
    wide = weights[3].inputs
    floats = 7 * width + 3 * wide + max(0, layers // 2 - 1) * width
    products = int8_room(rows, max(width, wide), 3)
    room = torch.empty(rows * FLOAT_BYTES * floats + products, dtype=torch.uint8, device="cpu")
    out = torch.empty_like(x)
    compiled().backbone_rows(
        layers,
        heads,
        dim,
        weights,
        skips.data_ptr(),
        EPSILON,
        x.data_ptr(),
        out.data_ptr(),
        reads.pointers,
        arena.data_ptr(),
        slots,
        scale,
        room.data_ptr(),
        torch.get_num_threads(),
    )
    return out
