"""Sliding extents of an arena down over the gaps between them, in place: the interface, and what PyTorch does."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .backends import use_triton


def compact_arena(arena: torch.Tensor, moves: Sequence[tuple[int, int, int]], *, backend: str = "auto") -> None:
    """Move runs of slots down, all planes alike, in place.

    Args:
        arena: [..., slots, head_dim], any dtype and device; here [layers, 2, kv_heads, slots, head_dim].
        moves: (source, destination, length) in slots, ascending: each destination lies below its source, and at or
            above the end of the destination before it. A destination may cover its own source or earlier ones.
        backend: "triton" moves all in one launch, on a CUDA device; "torch" copies with PyTorch, on any device; "auto"
            is "triton" for a CUDA tensor and "torch" for any other.

    Raises:
        ValueError: a move leaves the arena, goes up, or is out of order, or the backend cannot be had: "triton" where
            the arena is not on a CUDA device (unless TRITON_INTERPRET=1 has its kernels interpreted) or is not
            contiguous. Nothing has moved then.
    """
    triton = use_triton(backend, arena)
    check_moves(moves, arena.shape[-2])
    if triton:
        from .compaction_triton import compact  # only here, as Triton takes long to import and is not everywhere

        compact(arena, moves)
    else:
        _compact_with_torch(arena, moves)


def _compact_with_torch(arena: torch.Tensor, moves: Sequence[tuple[int, int, int]]) -> None:
    for source, destination, length in moves:
        # In tiles as long as the way they go: a tile's destination ends where its source starts, so a copy may run
        # in any order, and the tile above has not been overwritten yet.
        step = source - destination
        for at in range(source, source + length, step):
            size = min(step, source + length - at)
            arena[..., at - step : at - step + size, :] = arena[..., at : at + size, :]


def check_moves(moves: Sequence[tuple[int, int, int]], slots: int) -> None:
    """Raise ValueError unless these moves, made in order and in place, lose nothing."""
    source_end = destination_end = 0
    for source, destination, length in moves:
        if length < 1 or destination < 0 or source + length > slots:
            raise ValueError(f"move {(source, destination, length)} is empty or leaves the arena's {slots} slots")
        if destination >= source:
            raise ValueError(f"move {(source, destination, length)} does not go down")
        if destination < destination_end or source < source_end:
            raise ValueError(f"move {(source, destination, length)} must lie above the one before it")
        source_end, destination_end = source + length, destination + length
