"""Compaction in place against a copy out of place: every moved slot has what it had, and no other slot changes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ds2ds.kernels import compact_arena

Moves = Sequence[tuple[int, int, int]]

# Where there is a GPU kernels are compiled for it, and test_compaction_gpu.py runs them.
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter")
BACKENDS = ["auto", "torch", pytest.param("triton", marks=interpreted)]
TILES = [(1, 1, 1), (1, 4, 2), (1, 8, 4), (2, 4, 1), (2, 16, 2), (4, 2, 8), (16, 32, 1)]  # columns, slots, chunks

GOOD = [(4, 0, 4), (12, 6, 3)]
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


@interpreted
@settings(max_examples=25, deadline=None, derandomize=True)
@given(moves_within(), st.sampled_from(SHAPES), st.sampled_from(DTYPES))
def test_random_moves_by_triton(moves: Moves, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    arena = filled(shape, dtype)
    expected = out_of_place(arena, moves)
    address = arena.data_ptr()
    compact_arena(arena, moves, backend="triton")
    assert same_bytes(arena, expected)
    assert arena.data_ptr() == address


@interpreted
@settings(max_examples=40, deadline=None, derandomize=True)
@given(moves_within(), st.sampled_from([(2, 64, 64), (3, 64, 24), (2, 64, 5)]), st.sampled_from(TILES))
def test_random_moves_of_many_tiles(moves: Moves, shape: tuple[int, ...], tile: tuple[int, int, int]) -> None:
    """Tiles smaller than a move, of several moves, and of some of the columns."""
    from ds2ds.kernels import compaction_triton as kernel

    arena = filled(shape, torch.uint8)
    expected = out_of_place(arena, moves)
    kernel.compact(arena, moves, kernel.Tile(*tile))
    assert same_bytes(arena, expected)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(moves_within(), st.sampled_from([1, 2, 4, 16]))
def test_what_is_stored_is_not_loaded_later(moves: Moves, slots: int) -> None:
    """Which the kernel's single barrier rests on; that it is enough, and needed, is for test_ptx_kernels.py."""
    kernel = pytest.importorskip("ds2ds.kernels.compaction_triton")
    table = kernel.chunk_table(moves, slots)
    assert table.dtype == np.int32
    source, destination, size = table.T
    assert (size >= 1).all() and (size <= slots).all() and (destination < source).all()
    assert ((source + size)[:-1] <= source[1:]).all()
    assert ((destination + size)[:-1] <= destination[1:]).all()
    assert ((destination + size)[:-1] <= source[1:]).all()
    cut, whole = (
        [(s + i, d + i) for s, d, n in rows for i in range(n)]  # slot by slot
        for rows in (table.tolist(), moves)
    )
    assert cut == whole


def test_one_barrier_stands_between_loads_and_stores(tmp_path: Path) -> None:
    """In the code for a GPU, which also has to load and store 16 bytes at once."""
    pytest.importorskip("triton")
    code = (
        "import json; from ds2ds.kernels import build as b; from ds2ds.kernels.compaction_triton import builds;"
        "print(json.dumps([b.compile_build(build, 90).ptx for build in builds() if build.default]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    codes = json.loads(run.stdout)
    assert len(codes) == 3
    for ptx in codes:
        found = re.findall(r"ld\.global\S*\.v2\.b64|st\.global\S+|bar\S*\.sync", ptx)
        assert found == ["ld.global.cg.v2.b64"] * 8 + ["bar.sync"] + ["st.global.v2.b64"] * 8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [1, 2, 15, 16, 17, 31, 32, 40])
def test_a_destination_may_cover_its_own_source(step: int, backend: str) -> None:
    """Down by one slot up to by the whole length and more: 32 slots over themselves."""
    arena = filled((2, 2, 2, 80, 3), torch.float32)
    moves = [(step, 0, 32)]
    expected = out_of_place(arena, moves)
    compact_arena(arena, moves, backend=backend)
    assert same_bytes(arena, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_destination_may_cover_earlier_sources(backend: str) -> None:
    """Each takes the slots that the one before it has left."""
    arena = filled((2, 2, 2, 80, 3), torch.float32)
    moves = [(16, 0, 16), (32, 16, 16), (48, 32, 32)]
    expected = out_of_place(arena, moves)
    compact_arena(arena, moves, backend=backend)
    assert same_bytes(arena, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_planes_move_alike(backend: str) -> None:
    arena = torch.arange(8).expand(3, 2, 2, 8)[..., None].repeat(1, 1, 1, 1, 2)
    compact_arena(arena, [(2, 0, 3), (7, 5, 1)], backend=backend)
    assert (arena == torch.tensor([2, 3, 4, 3, 4, 7, 6, 7])[:, None]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_arena_may_slide_to_its_start_and_end_at_its_last_slot(backend: str) -> None:
    arena = filled((2, 2, 2, 64, 4), torch.bfloat16)
    expected = out_of_place(arena, [(1, 0, 63)])
    compact_arena(arena, [(1, 0, 63)], backend=backend)
    assert same_bytes(arena, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_moves_change_nothing(backend: str) -> None:
    arena = filled((2, 2, 2, 64, 4), torch.float32)
    before = arena.clone()
    compact_arena(arena, [], backend=backend)
    assert same_bytes(arena, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_arena_of_no_planes_is_compacted(backend: str) -> None:
    compact_arena(torch.empty(0, 2, 3, 64, 4), [(4, 0, 4)], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lies_beside_the_arena_stays(backend: str) -> None:
    """An arena amid others' memory, at addresses that are multiples of 8, 4, 2 and 1 bytes only."""
    for gap in (8, 4, 2, 1):
        memory = filled((gap + 2 * 64 * 16 + 40,), torch.int8)
        before = memory.clone()
        arena = memory[gap : gap + 2 * 64 * 16].view(2, 64, 16)
        expected = out_of_place(arena, GOOD)
        compact_arena(arena, GOOD, backend=backend)
        assert same_bytes(arena, expected)
        arena.copy_(before[gap : gap + 2 * 64 * 16].view(2, 64, 16))
        assert same_bytes(memory, before)


def strided() -> list[Tensor]:
    """Keys without values, some of the head's columns, every second slot, and heads inside of slots."""
    whole = filled((2, 2, 3, 64, 8), torch.float32)
    return [whole[:, 0], whole[..., :4], filled((2, 128, 4), torch.int16)[:, ::2], whole.transpose(-3, -2)[0]]


def test_pytorch_compacts_arenas_with_gaps() -> None:
    for arena in strided():
        moves = [(1, 0, 2)]
        expected = out_of_place(arena, moves)
        compact_arena(arena, moves, backend="torch")
        assert same_bytes(arena, expected)


@interpreted
def test_triton_refuses_arenas_with_gaps() -> None:
    for arena in strided():
        before = arena.clone()
        with pytest.raises(ValueError, match="backend 'triton' compacts contiguous arenas, got strides"):
            compact_arena(arena, [(1, 0, 2)], backend="triton")
        assert same_bytes(arena, before)


@interpreted
def test_offsets_beyond_two_to_the_31st() -> None:
    """Bytes are moved as words of one byte where a slot has one; memory that is never touched is never taken."""
    arena = torch.empty(3, 2**30, 1, dtype=torch.int8)
    end = arena[:, -16:]
    end.copy_(filled((3, 16, 1), torch.int8))
    expected = out_of_place(end, [(3, 1, 13)])
    compact_arena(arena, [(2**30 - 13, 2**30 - 15, 13)], backend="triton")
    assert same_bytes(end, expected)


@interpreted
@pytest.mark.parametrize(
    ("planes", "head_dim", "dtype", "columns"),
    [
        (288, 64, torch.bfloat16, 8),  # 12 layers of 12 heads: a program for each plane
        (72, 64, torch.bfloat16, 4),  # 6 layers of 6 heads: two
        (72, 128, torch.float32, 8),  # four
        (16, 80, torch.bfloat16, 4),
        (288, 64, torch.float8_e4m3fn, 4),
        (288, 16, torch.bfloat16, 2),
        (288, 4, torch.float32, 2),
        (288, 6, torch.float32, 32),  # no multiples of 16 bytes
    ],
)
def test_a_program_takes_whole_lines_unless_there_are_few(
    planes: int, head_dim: int, dtype: torch.dtype, columns: int
) -> None:
    from ds2ds.kernels.compaction_triton import tile_for

    assert tile_for(torch.empty(planes, 64, head_dim, dtype=dtype)).columns == columns


def test_pytorch_needs_no_triton() -> None:
    """Neither to be imported nor to compact."""
    code = (
        "import sys, torch; from ds2ds.kernels import compact_arena; compact_arena(torch.ones(8, 4), [(4, 0, 2)]);"
        "sys.exit('ds2ds.kernels.compaction_triton' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_moves_where_a_move_is_wrong(wrong: tuple[int, int, int], message: str, backend: str) -> None:
    arena = filled((2, 2, 2, 64, 4), torch.float32)
    before = arena.clone()
    with pytest.raises(ValueError, match=message):
        compact_arena(arena, [*GOOD, wrong], backend=backend)
    assert same_bytes(arena, before)
    if "above the one before" not in message:
        with pytest.raises(ValueError, match=message):
            compact_arena(arena, [wrong], backend=backend)
        assert same_bytes(arena, before)
    compact_arena(arena, GOOD, backend=backend)
    assert same_bytes(arena, out_of_place(before, GOOD))


@pytest.mark.parametrize("backend", BACKENDS)
def test_limits_of_order_are_allowed(backend: str) -> None:
    """A source right after the last one's, a destination right after the last one's."""
    arena = filled((2, 2, 2, 64, 4), torch.float32)
    moves = [*GOOD, (15, 9, 49)]
    expected = out_of_place(arena, moves)
    compact_arena(arena, moves, backend=backend)
    assert same_bytes(arena, expected)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("cuda", "backend must be 'auto', 'triton' or 'torch', got 'cuda'"),
        ("triton", "backend 'triton' needs tensors on a CUDA device, got cpu"),
    ],
)
def test_a_backend_that_cannot_be_had_moves_nothing(
    backend: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arena = filled((2, 2, 2, 64, 4), torch.float32)
    before = arena.clone()
    with pytest.raises(ValueError, match=message):
        compact_arena(arena, GOOD, backend=backend)
    assert same_bytes(arena, before)
