"""Compaction on a GPU, where a race would show: over and over, to the bit, against a copy out of place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_compaction_kernel import GOOD, Moves, same_bytes
from torch import Tensor

from ds2ds.kernels import compact_arena

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

POISON = 0xA5


def filled(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Random bytes, others each time."""
    *outer, last = shape
    return torch.randint(0, 256, (*outer, last * dtype.itemsize), dtype=torch.uint8, device="cuda").view(dtype)


def out_of_place(arena: Tensor, moves: Moves) -> Tensor:
    slots = torch.arange(arena.shape[-2])
    for source, destination, length in moves:
        slots[destination : destination + length] = torch.arange(source, source + length)
    return arena.view(torch.uint8).index_select(-2, slots.cuda()).view(arena.dtype)


def spread(slots: int, length: int, gap: int) -> list[tuple[int, int, int]]:
    """Extents of this length with gaps between: the first moves down by one gap, the last by all of them."""
    starts = range(gap, slots - length + 1, length + gap)
    return [(start, number * length, length) for number, start in enumerate(starts)]


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    torch.manual_seed(7)
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("step", [1, 16, 128])
def test_an_extent_slides_over_itself(step: int) -> None:
    """200 times: what a program stores it has loaded just before, so a store that is too early is seen."""
    slots = 8192
    moves = [(step, 0, slots - step)]
    for _ in range(200):
        arena = filled((12, 2, 4, slots, 64))
        expected = out_of_place(arena, moves)
        compact_arena(arena, moves)
        assert same_bytes(arena, expected)


@pytest.mark.parametrize("columns", [8, 4, 2])
@pytest.mark.parametrize("planes", [8, 288])
def test_each_tile_slides_over_itself(columns: int, planes: int) -> None:
    """With one program on an SM, and with several that slow each other down."""
    from ds2ds.kernels import compaction_triton as kernel

    (tile,) = (tile for tile in (kernel.LINES, kernel.HALF_LINES, kernel.SECTORS) if tile.columns == columns)
    for turn in range(60):
        moves = [(1 + turn % 5, 0, 4000)] if turn % 2 else spread(4096, 1 + turn, 1)
        arena = filled((planes, 4096, 64))
        expected = out_of_place(arena, moves)
        kernel.compact(arena, moves, tile)
        assert same_bytes(arena, expected)


@pytest.mark.parametrize(("length", "gap"), [(1, 1), (1, 3), (63, 1), (64, 64), (65, 2), (128, 128), (500, 12)])
def test_extents_slide_over_earlier_ones(length: int, gap: int) -> None:
    """Up to thousands of moves: the later ones go where many others have been."""
    moves = spread(8192, length, gap)
    for _ in range(50):
        arena = filled((12, 2, 4, 8192, 64))
        expected = out_of_place(arena, moves)
        compact_arena(arena, moves)
        assert same_bytes(arena, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float32])
@pytest.mark.parametrize("shape", [(12, 2, 12, 2048, 64), (6, 2, 6, 2048, 64), (1, 2, 1, 2048, 128), (3, 2048, 5)])
def test_it_equals_a_copy_out_of_place(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for moves in (spread(2048, 100, 28), spread(2048, 7, 1), [(3, 0, 2045)], GOOD):
        arena = filled(shape, dtype)
        expected = out_of_place(arena, moves)
        compact_arena(arena, moves, backend="triton")
        assert same_bytes(arena, expected)


@pytest.mark.parametrize("offset", [4096, 24, 2])
def test_poison_around_the_arena_and_in_its_gaps_stays(offset: int) -> None:
    """At addresses that are multiples of 16, 8 and 2 bytes only."""
    shape = (6, 2, 6, 1024, 64)
    size = 2 * torch.Size(shape).numel()
    memory = torch.full((offset + size + 4096,), POISON, dtype=torch.uint8, device="cuda")
    arena = memory[offset : offset + size].view(torch.int16).view(shape)
    moves = [(300, 20, 130), (700, 150, 257)]
    for source, _, length in moves:
        arena[..., source : source + length, :] = filled((*shape[:3], length, 64), torch.int16)
    expected = memory.clone()
    expected[offset : offset + size] = out_of_place(arena, moves).view(torch.uint8).flatten()
    compact_arena(arena, moves)
    assert torch.equal(memory, expected)


def test_a_large_arena() -> None:
    """12 layers of 12 heads, 131,072 slots: 4.8 GB."""
    moves = spread(131072, 384, 128)
    arena = filled((12, 2, 12, 131072, 64))
    expected = out_of_place(arena, moves)
    compact_arena(arena, moves)
    assert same_bytes(arena, expected)


def test_offsets_beyond_two_to_the_31st() -> None:
    arena = torch.empty(3, 2**30, 1, dtype=torch.int8, device="cuda")
    arena[:, -5000:] = filled((3, 5000, 1), torch.int8)
    end = arena[:, -5000:].clone()
    expected = out_of_place(end, [(10, 3, 4990)])
    compact_arena(arena, [(2**30 - 4990, 2**30 - 4997, 4990)])
    assert same_bytes(arena[:, -5000:], expected)


def test_a_graph_replays_what_the_table_holds() -> None:
    """Of a fixed number of chunks; those of size 0 are padding."""
    from ds2ds.kernels.compaction_triton import chunk_table, move_chunks, tile_for

    arena = filled((12, 2, 4, 4096, 64))
    table = torch.zeros(4096, 3, dtype=torch.int32, device="cuda")
    move_chunks(arena, table)  # compiled before the capture; moves nothing
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        move_chunks(arena, table)
    for moves in (spread(4096, 100, 28), [(1, 0, 4095)], spread(4096, 9, 7), []):
        arena.copy_(filled(arena.shape))
        expected = out_of_place(arena, moves)
        chunks = torch.from_numpy(chunk_table(moves, tile_for(arena).slots))
        table.zero_()[: len(chunks)] = chunks.cuda()
        graph.replay()
        assert same_bytes(arena, expected)


def test_nothing_waits_for_it() -> None:
    """The moves are copied without synchronising, behind what is queued already."""
    arena = filled((2, 2, 2, 1024, 64))
    moves = spread(1024, 100, 28)
    expected = out_of_place(arena, moves)
    torch.cuda.set_sync_debug_mode("error")
    try:
        compact_arena(arena, moves)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same_bytes(arena, expected)
