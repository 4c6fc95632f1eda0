"""The KV arena: one allocation that holds every document's keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ds2ds.cache.extents import ExtentAllocator
from ds2ds.kernels import compact_arena
from ds2ds.kernels.compaction import check_moves
from ds2ds.native import operations as native


class KVArena:
    """Keys and values [layers, 2, kv_heads, slots, head_dim], keys rotated at their document-local position (S3).

    Args:
        slots: tokens the arena can hold, rounded up to a multiple of block.
        block: alignment of extents, in slots.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        slots: int,
        block: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if slots < 1:
            raise ValueError(f"arena_tokens must be positive, got {slots}")
        slots = -(-slots // block) * block
        self.data: Tensor = torch.empty(layers, 2, kv_heads, slots, head_dim, dtype=dtype, device=device)
        self.allocator = ExtentAllocator(slots, block)

    @property
    def slots(self) -> int:
        return self.allocator.capacity

    def write(self, layer: int, start: int, k: Tensor, v: Tensor) -> None:
        """Store rotated keys and values [n, kv_heads, head_dim] in slots start..start+n-1."""
        stop = start + k.shape[0]
        self.data[layer, 0, :, start:stop] = k.transpose(0, 1)
        self.data[layer, 1, :, start:stop] = v.transpose(0, 1)

    def read(self, layer: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Views of the keys and the values of slots start..stop-1, each [kv_heads, n, head_dim]."""
        return self.data[layer, 0, :, start:stop], self.data[layer, 1, :, start:stop]

    def compact(self) -> int:
        """Slide all extents down, in place; returns the number of slots moved."""
        moves = self.allocator.compact()
        move_slots(self.data, moves)
        return sum(move.length for move in moves)

    def copy(self, source: int, destination: int, length: int) -> None:
        """What `length` slots hold to others, which do not overlap these."""
        if _compiled(self.data):
            native.move_slots(self.data, [(source, destination, length)])
        else:
            self.data[..., destination : destination + length, :] = self.data[..., source : source + length, :]


def move_slots(data: Tensor, moves: Sequence[tuple[int, int, int]]) -> None:
    """As `ds2ds.kernels.compact_arena`, in compiled code where there is such for the device.

    torch's copies would do, but what its threads spin after each is taken from the step that follows.
    """
    if _compiled(data):
        check_moves(moves, data.shape[-2])
        native.move_slots(data, moves)
    else:
        compact_arena(data, moves)


def _compiled(data: Tensor) -> bool:
    return data.is_cpu and data.is_contiguous() and native.available()
