"""What is written to the arena is read back, before and after compaction."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compaction_kernel import DTYPES, SHAPES, Moves, filled, moves_within, out_of_place, same_bytes

from ds2ds.cache.arena import KVArena, move_slots
from ds2ds.cache.extents import Extent
from ds2ds.native import operations as native

LAYERS, HEADS, HEAD_DIM = 2, 3, 4


def arena(slots: int = 64, block: int = 16, dtype: torch.dtype = torch.float32) -> KVArena:
    made = KVArena(LAYERS, HEADS, HEAD_DIM, slots, block, dtype)
    made.data.fill_(torch.nan)  # whatever is read without having been written shows
    return made


def rows(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("slots", "block", "rounded"), [(1, 16, 16), (16, 16, 16), (17, 16, 32), (5, 1, 5)])
def test_slots_are_whole_blocks(slots: int, block: int, rounded: int) -> None:
    made = arena(slots, block, torch.bfloat16)
    assert made.slots == made.allocator.capacity == rounded
    assert made.data.shape == (LAYERS, 2, HEADS, rounded, HEAD_DIM)
    assert made.data.dtype == torch.bfloat16


@pytest.mark.parametrize("slots", [0, -5])
def test_an_arena_without_slots_is_refused(slots: int) -> None:
    with pytest.raises(ValueError, match=f"arena_tokens must be positive, got {slots}"):
        arena(slots)


def test_what_is_written_is_read_and_nothing_else_changes() -> None:
    made = arena()
    k, v = rows(5, 1), rows(5, 2)
    made.write(1, 20, k, v)
    keys, values = made.read(1, 20, 25)
    assert keys.shape == values.shape == (HEADS, 5, HEAD_DIM)
    assert torch.equal(keys, k.transpose(0, 1))
    assert torch.equal(values, v.transpose(0, 1))
    written = ~made.data.isnan()
    assert written[1, :, :, 20:25].all()
    assert written.sum() == 2 * k.numel()


def test_reading_copies_nothing() -> None:
    made = arena()
    keys, values = made.read(0, 3, 9)
    keys.fill_(1)
    values.fill_(2)
    assert (made.data[0, 0, :, 3:9] == 1).all()
    assert (made.data[0, 1, :, 3:9] == 2).all()


def test_keys_and_values_take_the_arenas_dtype() -> None:
    made = arena(dtype=torch.bfloat16)
    k, v = rows(2, 1), rows(2, 2)
    made.write(0, 0, k, v)
    keys, _ = made.read(0, 0, 2)
    assert torch.equal(keys, k.transpose(0, 1).bfloat16())


def test_an_extent_that_slides_onto_itself_keeps_its_content() -> None:
    """64 slots move down by 16: the destination covers three quarters of the source."""
    made = arena(80)
    first, second = made.allocator.allocate(16), made.allocator.allocate(64)
    assert first is not None
    assert second is not None
    content = rows(64, 3), rows(64, 4)
    for layer in range(LAYERS):
        made.write(layer, second.start, *content)
    made.allocator.release(first)
    assert made.compact() == 64
    assert second.start == 0
    for layer in range(LAYERS):
        for read, written in zip(made.read(layer, 0, 64), content, strict=True):
            assert torch.equal(read, written.transpose(0, 1))
    assert made.compact() == 0


def test_neighbours_that_move_together_and_one_behind_a_gap_keep_their_content() -> None:
    made = arena(80)
    extents = [made.allocator.allocate(16) for _ in range(5)]
    for seed, extent in enumerate(extents):
        assert extent is not None
        made.write(1, extent.start, rows(16, seed), rows(16, seed + 10))
    for gone in (0, 3):
        extent = extents[gone]
        assert extent is not None
        made.allocator.release(extent)
    assert made.compact() == 48
    for start, seed in ((0, 1), (16, 2), (32, 4)):
        keys, values = made.read(1, start, start + 16)
        assert torch.equal(keys, rows(16, seed).transpose(0, 1))
        assert torch.equal(values, rows(16, seed + 10).transpose(0, 1))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=12))
def test_compaction_keeps_every_extent(layout: list[tuple[int, bool]]) -> None:
    """Extents of random lengths, of which some are released again."""
    made = arena(sum(length for length, _ in layout) + 4 * len(layout), block=4)
    kept: list[tuple[Extent, int, int]] = []
    gone: list[Extent] = []
    for seed, (length, stays) in enumerate(layout):
        extent = made.allocator.allocate(length)
        assert extent is not None
        for layer in range(LAYERS):
            made.write(layer, extent.start, rows(length, 100 * seed + layer), rows(length, 100 * seed + 50 + layer))
        if stays:
            kept.append((extent, length, seed))
        else:
            gone.append(extent)
    before = {id(extent): extent.start for extent, _, _ in kept}
    for extent in gone:
        made.allocator.release(extent)
    moved = made.compact()
    assert moved == sum(extent.length for extent, _, _ in kept if extent.start != before[id(extent)])
    at = 0
    for extent, length, seed in kept:
        assert extent.start == at
        at = extent.stop
        for layer in range(LAYERS):
            keys, values = made.read(layer, extent.start, extent.start + length)
            assert torch.equal(keys, rows(length, 100 * seed + layer).transpose(0, 1))
            assert torch.equal(values, rows(length, 100 * seed + 50 + layer).transpose(0, 1))


COMPILED = [pytest.param(True, marks=pytest.mark.skipif(not native.available(), reason="no C compiler")), False]


@pytest.mark.parametrize("compiled", COMPILED)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(moves_within(), st.sampled_from(SHAPES), st.sampled_from(DTYPES))
def test_slots_move_in_compiled_code_and_without(
    compiled: bool, moves: Moves, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    data = filled(shape, dtype)
    expected = out_of_place(data, moves)
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(native, "available", lambda: False)
        move_slots(data, moves)
    assert same_bytes(data, expected)


@pytest.mark.parametrize("compiled", COMPILED)
def test_moves_that_would_lose_something_are_refused(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(native, "available", lambda: False)
    data = torch.randn(2, 32, 4)
    before = data.clone()
    for moves in ([(30, 3, 4)], [(3, 3, 4)], [(2, 5, 4)], [(8, 2, 4), (10, 5, 4)]):
        with pytest.raises(ValueError, match="move"):
            move_slots(data, moves)
    assert torch.equal(data, before)


@pytest.mark.parametrize("compiled", COMPILED)
def test_what_slots_hold_is_copied(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(native, "available", lambda: False)
    made = arena(dtype=torch.bfloat16)
    made.data.copy_(torch.randn(made.data.shape))
    expected = made.data.clone()
    expected[..., 40:47, :] = expected[..., 3:10, :]
    made.copy(3, 40, 7)
    assert torch.equal(made.data, expected)
