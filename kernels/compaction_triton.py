"""Compaction on a GPU: all moves, over all planes, in one launch and in place.

A plane is what one layer, one head and keys or values have, [slots, head_dim]. Planes are independent, and so are the
columns of a plane; slots are not, as a destination may cover another move's source. So a program takes some columns
of one plane and walks up the slots. Moves are cut into chunks of up to so many slots, and a program's tile is several
chunks, of one move or of many: load the tile, wait for all threads, store it, take the next.

Why one barrier is needed, and no other. Chunks ascend: the sources do not overlap, nor do the destinations, and each
destination lies below its source. Of any two chunks, with a below b,

- a's destination ends below the end of a's source, so at or below the start of b's source. What has been stored never
  touches what is still to be loaded: a load may be ahead of any earlier store, and nothing stands between the
  store of one tile and the load of the next.
- b's destination may cover a's source, and its own. So all threads must have loaded all chunks up to b before any
  thread stores b. The barrier between a tile's load and its store does that, for this tile and for all before it. It
  orders memory accesses, so that they may still be on their way when threads pass it.
- no two stores touch the same slot, so their order does not matter.

Bytes in flight. To be as fast as a copy, an H100 has to read 1.5 TB/s while it writes as much. A load takes about 1 us
under such traffic, so 1.5 MB have to be on their way at any time: 11 KB for each of 132 SMs. A tile is 32 KiB: 128
bytes, eight 128-bit loads, for each of 256 threads. It is on its way for most of a program's time, as what follows is
a store, which nothing waits for; so to load the next tile before that store would be allowed, but gain little. One
program on an SM has about three times what is needed on its way, two have six times. Chunks are as small as 64 slots,
so that short moves fill a tile together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from .build import Build

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_UNIT = 16
"""Bytes that a thread loads at once. Where rows are no multiple of it, units are words of 8, 4, 2 or 1 bytes."""

_ENOUGH = 264
"""Programs: two for each SM of an H100."""

_OPTIONS = {"num_warps": 8, "num_stages": 1, "enable_fp_fusion": False}


class Tile(NamedTuple):
    """What a program moves at once: `chunks` of up to `slots` slots each, `columns` units wide; powers of two."""

    columns: int
    slots: int
    chunks: int = 4


LINES, HALF_LINES, SECTORS = Tile(8, 64), Tile(4, 128), Tile(2, 256)
"""Columns of 128, 64 and 32 bytes: a line of the caches, half of one, and the least that memory moves at once."""

WORDS = Tile(32, 16)
"""Where units are words: 32 bytes or more."""


def compact(arena: Tensor, moves: Sequence[tuple[int, int, int]], tile: Tile | None = None) -> None:
    """Make these moves in place. They are copied to the GPU; nothing waits for it.

    Args:
        arena: contiguous [..., slots, head_dim], any dtype.
        moves: (source, destination, length) in slots, which `check_moves` has passed.
        tile: for tests; None is the one that suits the arena.

    Raises:
        ValueError: the arena is not contiguous.
    """
    _check_contiguous(arena)
    if not moves or not arena.numel():
        return
    tile = tile or tile_for(arena)
    table = torch.from_numpy(chunk_table(moves, tile.slots))
    if arena.is_cuda:
        table = table.pin_memory().to(arena.device, non_blocking=True)
    move_chunks(arena, table, tile)


def move_chunks(arena: Tensor, table: Tensor, tile: Tile | None = None) -> None:
    """One launch, which a CUDA graph can capture; what it replays is what the table holds then.

    Args:
        arena: contiguous [..., slots, head_dim], any dtype, not empty.
        table: contiguous int32 [chunks, 3] on the arena's device, as `chunk_table` makes it for `tile.slots`. Chunks of
            size 0 are padding.
        tile: None is `tile_for(arena)`.

    Raises:
        ValueError: the arena is not contiguous.
    """
    _check_contiguous(arena)
    tile, unit = tile or tile_for(arena), unit_of(arena)
    *outer, slots, _ = arena.shape
    row = arena.shape[-1] * arena.itemsize // unit
    parts = triton.cdiv(row, tile.columns)
    words = arena.view(-1).view(_WORDS[min(unit, 8)])
    with torch.cuda.device_of(arena):
        _move_chunks[(math.prod(outer) * parts,)](
            words,
            table,
            table.shape[0],
            slots,
            row,
            parts,
            **_constants(unit, tile),
            **_OPTIONS,
        )


def chunk_table(moves: Sequence[tuple[int, int, int]], slots: int) -> NDArray[np.int32]:
    """Moves cut into chunks of up to so many slots: int32 [chunks, 3], source, destination and size of each."""
    table = np.array(moves, dtype=np.int32).reshape(-1, 3)
    cuts = -(-table[:, 2] // slots)
    # How far into its move each chunk starts: its number less that of the move's first chunk.
    ahead = (np.arange(cuts.sum()) - np.repeat(cuts.cumsum() - cuts, cuts)) * slots
    source, destination, length = np.repeat(table, cuts, axis=0).T
    cut = (source + ahead, destination + ahead, np.minimum(length - ahead, slots))
    return np.stack(cut, axis=1).astype(np.int32)


def unit_of(arena: Tensor) -> int:
    """Bytes: the largest power of two, up to 16, of which all rows are multiples and at which they all start."""
    return math.gcd(_UNIT, arena.shape[-1] * arena.itemsize, arena.storage_offset() * arena.itemsize, arena.data_ptr())


def tile_for(arena: Tensor) -> Tile:
    """The widest that rows fill and that leaves enough programs."""
    if unit_of(arena) < _UNIT:
        return WORDS
    *outer, _, head_dim = arena.shape
    row = head_dim * arena.itemsize // _UNIT
    if row <= SECTORS.columns:
        return SECTORS
    few = math.prod(outer) * triton.cdiv(row, LINES.columns) < _ENOUGH
    return HALF_LINES if few or row <= HALF_LINES.columns else LINES


def builds() -> Iterator[Build]:
    """All that can be launched; those of words are for rows that are no multiple of 16 bytes."""
    from .build import Build

    tiles = [(_UNIT, LINES), (_UNIT, HALF_LINES), (_UNIT, SECTORS), *((word, WORDS) for word in _WORDS)]
    for unit, tile in tiles:
        word = min(unit, 8)
        yield Build(
            kernel=_move_chunks,
            name=f"compaction[columns={tile.columns} unit={unit}]",
            signature={
                "arena": f"*i{8 * word}",
                "table": "*i32",
                **dict.fromkeys(("count", "slots", "row", "parts"), "i32"),
            },
            constexprs=_constants(unit, tile),
            attrs={"arena": 16, "table": 16} if unit == _UNIT else {"table": 16},
            options=_OPTIONS,
            default=unit == _UNIT,
        )


def _constants(unit: int, tile: Tile) -> dict[str, int]:
    return {"LANES": unit // min(unit, 8), "COLUMNS": tile.columns, "SLOTS": tile.slots, "CHUNKS": tile.chunks}


def _check_contiguous(arena: Tensor) -> None:
    if not arena.is_contiguous():
        raise ValueError(
            f"backend 'triton' compacts contiguous arenas, got strides {arena.stride()} for shape {tuple(arena.shape)}"
        )


@triton.jit(do_not_specialize=["count", "slots", "row", "parts"])
def _move_chunks(
    arena: tl.tensor,  # words [planes, slots, row * LANES], int8 to int64
    table: tl.tensor,  # int32 [count, 3]: source, destination, size, in slots
    count: tl.int32,
    slots: tl.int32,
    row: tl.int32,  # units in a slot of a plane
    parts: tl.int32,  # programs that share a plane
    LANES: tl.constexpr,  # words in a unit
    COLUMNS: tl.constexpr,  # the rest is Tile
    SLOTS: tl.constexpr,
    CHUNKS: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    words = row.to(tl.int64) * LANES
    plane = arena + (program // parts).to(tl.int64) * slots * words
    # Columns of one plane are neighbours in time too: together they take whole lines of the L2 cache.
    column = (program % parts) * (COLUMNS * LANES) + tl.arange(0, COLUMNS * LANES)[None, None, :]
    slot = tl.arange(0, SLOTS)[None, :, None]
    within = slot * words + column
    for first in range(0, count, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)[:, None, None]
        entry, there = table + 3 * chunk, chunk < count
        source = tl.load(entry, mask=there, other=0).to(tl.int64)
        destination = tl.load(entry + 1, mask=there, other=0).to(tl.int64)
        size = tl.load(entry + 2, mask=there, other=0)
        mask = (slot < size) & (column < words)
        # Past the L1 cache, which is of no use to what is read once, and so keeps the table.
        tile = tl.load(plane + (source * words + within), mask=mask, cache_modifier=".cg")
        tl.debug_barrier()
        tl.store(plane + (destination * words + within), tile, mask=mask)
