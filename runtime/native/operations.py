"""The C functions on tensors: float32, contiguous, on the CPU, without gradients. See there what they compute.

Each needs the library, so ask `available()` first. A row's result depends on that row alone, bit for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ds2ds.native.library import library

MOST_HEAD_DIM = 512
"""MOST_DIM of attention.c."""

_BLOCK, _GROUP = 16, 4
"""BLOCK and GROUP of int8.c."""

FLOAT_BYTES = 4

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
    pointers = (x.data_ptr(), weight.data_ptr(), out.data_ptr())
    compiled().linear_float(*_sizes(x, out), *pointers, torch.get_num_threads())
    return out


class PackedInt8(NamedTuple):
    """Weights of 8 bits as `linear_int8` reads them, see int8.c.

    Attributes:
        blocks: int8 [blocks, groups, 16, 4], of 16 outputs each and 4 inputs each, filled up with zeros.
        sums: int32 [blocks, 16], of each output's weights.
        scales: float32 [outputs].
    """

    blocks: Tensor
    sums: Tensor
    scales: Tensor


def pack_int8(values: Tensor, scales: Tensor) -> PackedInt8:
    """values int8 [outputs, inputs], above -128; scales float32 [outputs]."""
    outputs, inputs = values.shape
    filled = F.pad(values, (0, -inputs % _GROUP, 0, -outputs % _BLOCK))
    blocks = filled.view(len(filled) // _BLOCK, _BLOCK, -1, _GROUP).transpose(1, 2).contiguous()
    return PackedInt8(blocks, filled.sum(1, dtype=torch.int32).view(-1, _BLOCK), scales)


def unpack_int8(blocks: Tensor, outputs: int, inputs: int) -> Tensor:
    """The values that were packed, int8 [outputs, inputs]."""
    return blocks.transpose(1, 2).reshape(len(blocks) * _BLOCK, -1)[:outputs, :inputs].contiguous()


def weight_digits(dynamic: bool) -> int:
    """How many bytes the rows are rounded to that are multiplied with int8 weights."""
    return 1 if dynamic else 3


def linear_int8(x: Tensor, weight: PackedInt8, dynamic: bool = False) -> Tensor:
    """x [rows, inputs] times int8 weights, each output times its scale: [rows, outputs].

    Computed in integers, so that a row's bits are the same on every machine: each row is rounded to 8,388,600 steps
    either way of zero, about as many as a float of its largest magnitude has, or, where `dynamic`, to 127.
    """
    blocks, sums, scales = weight
    x, out = x.contiguous(), x.new_empty(len(x), len(scales))
    digits = weight_digits(dynamic)
    rows, inputs, outputs = _sizes(x, out)
    room = torch.empty(int8_room(rows, inputs, digits), dtype=torch.uint8, device="cpu")
    compiled().linear_int8(
        rows,
        inputs,
        outputs,
        digits,
        x.data_ptr(),
        blocks.data_ptr(),
        sums.data_ptr(),
        scales.data_ptr(),
        out.data_ptr(),
        room.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def gated_unit(x: Tensor) -> Tensor:
    """x [rows, 2 width], (up, gate), to up * silu(gate) [rows, width]."""
    x, width = x.contiguous(), x.shape[1] // 2
    out = x.new_empty(x.shape[0], width)
    compiled().gated_unit(x.shape[0], width, x.data_ptr(), out.data_ptr(), torch.get_num_threads())
    return out


def rms_norm(x: Tensor) -> Tensor:
    """x [rows, ..., width], each of its last dimension divided by the root of its mean square; contiguous."""
    if not x[0].is_contiguous():
        x = x.contiguous()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, width = x.shape[0], x.shape[-1]
    groups = x.shape[1:-1].numel()
    compiled().rms_norm(
        rows, groups, width, x.data_ptr(), x.stride(0), EPSILON, out.data_ptr(), torch.get_num_threads()
    )
    return out


@dataclass(frozen=True)
class RowReads:
    """Rows of any documents, and the stretches of slots that each reads; see native.h.

    Attributes:
        chunks: int64 [chunks, 5]: row, rows, slot, first and last read.
        reads: int64 [reads, 6]: row within the chunk, rows, start, stop, grows, position.
        cos, sin: float32 [positions, head_dim], as `Rotary` has them.
    """

    chunks: Tensor
    reads: Tensor
    cos: Tensor
    sin: Tensor

    @cached_property
    def rows(self) -> int:
        return int(self.chunks[:, 1].sum())

    @cached_property
    def pointers(self) -> ctypes.Array[ctypes.c_int64]:
        """`struct reads` of native.h: valid as long as this is."""
        tables = (self.chunks, self.reads, self.cos, self.sin)
        return (ctypes.c_int64 * 6)(self.rows, len(self.chunks), *(table.data_ptr() for table in tables))


def attend_rows(qk: Tensor, v: Tensor, reads: RowReads, layer: Tensor, scale: float) -> Tensor:
    """Store the rows' keys and values in the arena, then read.

    Args:
        qk: [rows, 2, heads, head_dim], unrotated; v: [rows, heads, head_dim].
        layer: [2, heads, slots, head_dim], this layer's part of the arena, written to.
        scale: what scores are multiplied by.

    Returns:
        What each row reads, [rows, heads, head_dim].
    """
    heads, dim = qk.shape[2:]
    if qk.stride()[1:] != (heads * dim, dim, 1):
        qk = qk.contiguous()
    if v.stride()[1:] != (dim, 1):
        v = v.contiguous()
    keys, values = layer[0], layer[1]
    out = v.new_empty(len(v), heads, dim)
    compiled().attend_rows(
        heads,
        dim,
        qk.data_ptr(),
        qk.stride(0),
        v.data_ptr(),
        v.stride(0),
        reads.pointers,
        keys.data_ptr(),
        values.data_ptr(),
        keys.stride(0),
        scale,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def move_slots(arena: Tensor, moves: Sequence[tuple[int, int, int]]) -> None:
    """Copy runs of slots to other places, one after the other, in place.

    Args:
        arena: [..., slots, head_dim], contiguous, on the CPU, of any dtype.
        moves: (source, destination, length) in slots, within the arena; a run may overlap where it goes.
    """
    slots, dim = arena.shape[-2:]
    row = dim * arena.itemsize
    table = torch.tensor(moves, dtype=torch.int64, device="cpu").view(-1, 3) * row
    planes = arena.shape[:-2].numel()
    compiled().move_slots(planes, slots * row, arena.data_ptr(), table.data_ptr(), len(table), torch.get_num_threads())


def int8_room(rows: int, inputs: int, digits: int) -> int:
    """Bytes of room that linear_int8 needs."""
    return rows * (FLOAT_BYTES + (digits + 1) * -(-inputs // _GROUP) * _GROUP)


def _sizes(x: Tensor, out: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], out.shape[1]


def compiled() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        raise RuntimeError("the compiled functions are not available: ask available() before calling them")
    return loaded
