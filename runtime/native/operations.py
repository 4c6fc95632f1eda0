"""The functions of rows.c on tensors: float32, contiguous, on the CPU, without gradients. See there what they compute.

Each needs the library, so ask `available()` first. A row's result depends on that row alone, bit for bit.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from ds2ds.native.library import library

MOST_HEAD_DIM = 512
"""MOST_DIM of rows.c."""

EPSILON = torch.finfo(torch.float32).eps
"""Added to mean squares, as torch's rms_norm does unless told otherwise."""


def available() -> bool:
    return library() is not None


def takes(*tensors: Tensor) -> bool:
    """Whether these functions can work with such tensors, here and now."""
    if torch.is_grad_enabled():
        return False
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or not tensor.is_cpu:
            return False
    return available()


def linear_float(x: Tensor, weight: Tensor) -> Tensor:
    """x [rows, inputs] times weight [outputs, inputs], transposed."""
    x, weight, out = x.contiguous(), weight.contiguous(), x.new_empty(x.shape[0], weight.shape[0])
    _library().linear_float(
        *_sizes(x, out), x.data_ptr(), weight.data_ptr(), None, out.data_ptr(), torch.get_num_threads()
    )
    return out


def linear_int8(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    """x [rows, inputs] times int8 values [outputs, inputs], transposed, each output times its float32 scale."""
    x, out = x.contiguous(), x.new_empty(x.shape[0], values.shape[0])
    _library().linear_int8(
        *_sizes(x, out),
        x.data_ptr(),
        values.data_ptr(),
        scales.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def linear_int8_dynamic(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    """As linear_int8, each row of x being rounded to 127 steps either way of zero."""
    x, out = x.contiguous(), x.new_empty(x.shape[0], values.shape[0])
    rounded, by = torch.empty(x.shape, dtype=torch.uint8), x.new_empty(x.shape[0])
    _library().linear_int8_dynamic(
        *_sizes(x, out),
        x.data_ptr(),
        values.data_ptr(),
        scales.data_ptr(),
        out.data_ptr(),
        rounded.data_ptr(),
        by.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def gated_unit(x: Tensor) -> Tensor:
    """x [rows, 2 width], (up, gate), to up * silu(gate) [rows, width]."""
    x, width = x.contiguous(), x.shape[1] // 2
    out = x.new_empty(x.shape[0], width)
    _library().gated_unit(x.shape[0], width, x.data_ptr(), out.data_ptr(), torch.get_num_threads())
    return out


def rms_norm(x: Tensor) -> Tensor:
    """x [rows, ..., width], each of its last dimension divided by the root of its mean square; contiguous."""
    if not x[0].is_contiguous():
        x = x.contiguous()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, width = x.shape[0], x.shape[-1]
    groups = x.shape[1:-1].numel()
    _library().rms_norm(
        rows, groups, width, x.data_ptr(), x.stride(0), EPSILON, out.data_ptr(), torch.get_num_threads()
    )
    return out


@dataclass(frozen=True)
class RowReads:
    """Rows of any documents, and the stretches of slots that each reads.

    Attributes:
        slots: int64 [rows], where each row's own key and value go.
        first: int64 [rows + 1]; row r's reads are first[r] to first[r + 1], that of its own document first.
        starts, stops: int64 [reads], slots.
        cos, sin: float32 [reads, head_dim], the query's rotation for each read, as `Rotary` has them.
    """

    slots: Tensor
    first: Tensor
    starts: Tensor
    stops: Tensor
    cos: Tensor
    sin: Tensor


def attend_rows(qk: Tensor, v: Tensor, reads: RowReads, layer: Tensor, scale: float) -> Tensor:
    """Store the rows' keys and values in the arena, then read.

    Args:
        qk: [rows, 2, heads, head_dim], unrotated; v: [rows, heads, head_dim].
        layer: [2, heads, slots, head_dim], this layer's part of the arena, written to.
        scale: what scores are multiplied by.

    Returns:
        What each row reads, [rows, heads, head_dim].
    """
    rows, _, heads, dim = qk.shape
    if qk.stride()[1:] != (heads * dim, dim, 1):
        qk = qk.contiguous()
    if v.stride()[1:] != (dim, 1):
        v = v.contiguous()
    keys, values = layer[0], layer[1]
    out = v.new_empty(rows, heads, dim)
    _library().attend_rows(
        rows,
        heads,
        dim,
        qk.data_ptr(),
        qk.stride(0),
        v.data_ptr(),
        v.stride(0),
        *(
            t.data_ptr()
            for t in (reads.slots, reads.first, reads.starts, reads.stops, reads.cos, reads.sin, keys, values)
        ),
        keys.stride(0),
        scale,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _sizes(x: Tensor, out: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], out.shape[1]


def _library() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        raise RuntimeError("the compiled functions are not available: ask available() before calling them")
    return loaded
