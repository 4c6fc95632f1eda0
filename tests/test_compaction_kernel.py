"""Compaction in place against a copy out of place: every moved slot has what it had, and no other slot changes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ds2ds.kernels import compact_arena

Moves = Sequence[tuple[int, int, int]]

SHAPES = [(2, 2, 3, 64, 4), (1, 2, 1, 64, 16), (3, 64, 2), (64, 5)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.float8_e4m3fn]


def filled(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random bytes, NaN and infinity among them: moving is no arithmetic."""
    generator = torch.Generator().manual_seed(seed)
    *outer, last = shape
    raw = torch.randint(0, 256, (*outer, last * dtype.itemsize), dtype=torch.uint8, generator=generator)
    return raw.view(dtype)


def same_bytes(ours: Tensor, theirs: Tensor) -> bool:
    return torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))


def out_of_place(arena: Tensor, moves: Moves) -> Tensor:
    moved = arena.clone()
    for source, destination, length in moves:
        for slot in range(length):
            moved[..., destination + slot, :] = arena[..., source + slot, :]
    return moved


@st.composite
def moves_within(draw: st.DrawFn, slots: int = 64) -> list[tuple[int, int, int]]:
    """Any that go down in order; gaps may stay, between sources and between destinations."""
    moves: list[tuple[int, int, int]] = []
    source_end = destination_end = 0
    while len(moves) < 6:
        source = max(source_end, destination_end + 1) + draw(st.integers(0, 9))
        if source >= slots:
            break
        destination = draw(st.integers(destination_end, source - 1))
        length = draw(st.integers(1, min(20, slots - source)))
        moves.append((source, destination, length))
        source_end, destination_end = source + length, destination + length
    return moves


@settings(max_examples=200, deadline=None, derandomize=True)
@given(moves_within(), st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.sampled_from(["auto", "torch"]))
def test_random_moves(moves: Moves, shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    arena = filled(shape, dtype)
    expected = out_of_place(arena, moves)
    address = arena.data_ptr()
    compact_arena(arena, moves, backend=backend)
    assert same_bytes(arena, expected)
    assert arena.data_ptr() == address


@pytest.mark.parametrize("step", [1, 2, 15, 16, 17, 31, 32, 40])
def test_a_destination_may_cover_its_own_source(step: int) -> None:
    """Down by one slot up to by the whole length and more: 32 slots over themselves."""
    arena = filled((2, 2, 2, 80, 3), torch.float32)
    moves = [(step, 0, 32)]
    expected = out_of_place(arena, moves)
    compact_arena(arena, moves)
    assert same_bytes(arena, expected)


def test_a_destination_may_cover_earlier_sources() -> None:
    """Each takes the slots that the one before it has left."""
    arena = filled((2, 2, 2, 80, 3), torch.float32)
    moves = [(16, 0, 16), (32, 16, 16), (48, 32, 32)]
    expected = out_of_place(arena, moves)
    compact_arena(arena, moves)
    assert same_bytes(arena, expected)


def test_all_planes_move_alike() -> None:
    arena = torch.arange(8).expand(3, 2, 2, 8)[..., None].repeat(1, 1, 1, 1, 2)
    compact_arena(arena, [(2, 0, 3), (7, 5, 1)])
    assert (arena == torch.tensor([2, 3, 4, 3, 4, 7, 6, 7])[:, None]).all()


def test_a_whole_arena_may_slide_to_its_start_and_end_at_its_last_slot() -> None:
    arena = filled((2, 2, 2, 64, 4), torch.bfloat16)
    expected = out_of_place(arena, [(1, 0, 63)])
    compact_arena(arena, [(1, 0, 63)])
    assert same_bytes(arena, expected)


def test_no_moves_change_nothing() -> None:
    arena = filled((2, 2, 2, 64, 4), torch.float32)
    before = arena.clone()
    compact_arena(arena, [])
    assert same_bytes(arena, before)


GOOD = [(4, 0, 4), (12, 6, 3)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((60, 50, 5), r"\(60, 50, 5\) is empty or leaves the arena's 64 slots"),
        ((70, 50, 1), r"\(70, 50, 1\) is empty or leaves the arena's 64 slots"),
        ((20, 10, 0), r"\(20, 10, 0\) is empty or leaves"),
        ((20, 10, -1), r"\(20, 10, -1\) is empty or leaves"),
        ((20, -1, 2), r"\(20, -1, 2\) is empty or leaves"),
        ((20, 20, 2), r"\(20, 20, 2\) does not go down"),
        ((20, 21, 2), r"\(20, 21, 2\) does not go down"),
        ((14, 9, 2), r"\(14, 9, 2\) must lie above the one before it"),  # its source ends in the last one's source
        ((20, 8, 2), r"\(20, 8, 2\) must lie above the one before it"),  # the last one's destination ends at 9
        ((8, 4, 2), r"\(8, 4, 2\) must lie above the one before it"),
    ],
)
def test_nothing_moves_where_a_move_is_wrong(wrong: tuple[int, int, int], message: str) -> None:
    arena = filled((2, 2, 2, 64, 4), torch.float32)
    before = arena.clone()
    with pytest.raises(ValueError, match=message):
        compact_arena(arena, [*GOOD, wrong])
    assert same_bytes(arena, before)
    if "above the one before" not in message:
        with pytest.raises(ValueError, match=message):
            compact_arena(arena, [wrong])
        assert same_bytes(arena, before)
    compact_arena(arena, GOOD)
    assert same_bytes(arena, out_of_place(before, GOOD))


def test_limits_of_order_are_allowed() -> None:
    """A source right after the last one's, a destination right after the last one's."""
    arena = filled((2, 2, 2, 64, 4), torch.float32)
    moves = [*GOOD, (15, 9, 49)]
    expected = out_of_place(arena, moves)
    compact_arena(arena, moves)
    assert same_bytes(arena, expected)


@pytest.mark.parametrize(
    ("backend", "error", "message"),
    [
        ("cuda", ValueError, "backend must be 'auto', 'triton' or 'torch', got 'cuda'"),
        ("triton", NotImplementedError, "backend 'triton' is not built yet; use backend='torch'"),
    ],
)
def test_an_unknown_backend_moves_nothing(backend: str, error: type[Exception], message: str) -> None:
    arena = filled((2, 2, 2, 64, 4), torch.float32)
    before = arena.clone()
    with pytest.raises(error, match=message):
        compact_arena(arena, GOOD, backend=backend)
    assert same_bytes(arena, before)
