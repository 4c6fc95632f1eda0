"""Views to block masks: which slots of the arena each tile of queries reads, built straight from extents (S2, S3).

FlexAttention runs over the whole arena, with one *row* of its batch for each (tile, document): a tile is one token
that is decoded, or up to 128 consecutive ones of a prefill. An extent is a contiguous run of blocks, so a row's list
of key blocks is its first block and a count, and what is visible inside them five integers. All of it lies in device
tensors of fixed shapes, edited in place: a new view is a small copy to the device, never a new compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ds2ds.attention.view import Chunk, reads
from ds2ds.documents.document import Document

QUERY_BLOCK = 128
"""Queries that share one list of key blocks: a tile has at most so many."""


@dataclass(frozen=True)
class Tile:
    """Tokens [start, stop) of a document, the first of them in row `token` of the flat batch."""

    document: Document
    start: int
    stop: int
    token: int

    def __len__(self) -> int:
        return self.stop - self.start


def tiles_of(chunk: Chunk, token: int, queries: int) -> Iterator[Tile]:
    """A chunk, whose first token is row `token` of the flat batch, cut into tiles of `queries` tokens."""
    for start in range(chunk.start, chunk.stop, queries):
        yield Tile(chunk.document, start, min(start + queries, chunk.stop), token + start - chunk.start)


class Row(NamedTuple):
    """What a tile reads of one document: query i sees slot j if start <= j < stop, j - i <= limit, low <= i < high.

    Attributes:
        block, blocks: the first key block and how many.
        position: query i is rotated to position + i.
    """

    start: int
    stop: int
    limit: int
    low: int
    high: int
    block: int
    blocks: int
    position: int


def rows_of(tile: Tile, slot: Callable[[Document], int], block: int) -> list[Row]:
    """One row for the tile's own document, then one for each Read of another.

    Args:
        slot: the slot of a document's first token.
        block: slots in a key block.

    Raises:
        ValueError: a document does not start where a block does.
    """

    def row(document: Document, tokens: int, limit: int | None, low: int, high: int, position: int) -> Row:
        start = slot(document)
        if start % block:
            raise ValueError(f"document {document.title!r} starts at slot {start}, not a multiple of block {block}")
        stop = start + tokens
        last = stop if limit is None else start + limit
        return Row(start, stop, last, low, high, start // block, -(-tokens // block), position)

    rows = [row(tile.document, tile.stop, tile.start, 0, len(tile), tile.start)]
    for read in reads(tile.document, tile.start, tile.stop):
        low, high = read.start - tile.start, read.stop - tile.start
        rows.append(row(read.target, len(read.target.tokens), None, low, high, tile.start + read.delta))
    return rows


@dataclass(frozen=True)
class Bucket:
    """The shapes of one launch, which one compilation serves.

    Attributes:
        queries: in a tile.
        rows: at most so many (tile, document) pairs, and no more tiles than rows.
        fan: at most so many rows for one tile.
    """

    queries: int
    rows: int
    fan: int


class BlockTable:
    """The rows of one launch, in device tensors of a bucket's shapes.

    Args:
        width: at most so many key blocks in a row.
        slots, block: of the arena; slots a multiple of block.

    Attributes:
        bucket: the shapes: R rows, Q queries.
        mask: for Q [R, heads, Q, head_dim] over keys and values [1, heads, slots, head_dim].
        tile: int32 [R], the tile of each row.
        position: int32 [R], see Row.
        first, count: int32 [R], the rows of each tile: [first, first + count).
        token: int64 [R, Q], for each query of each tile its row in the flat batch.

    A row or tile that is not in use has no block, no visible slot, a count of 0, and token 0.
    """

    def __init__(self, bucket: Bucket, width: int, slots: int, block: int, device: torch.device) -> None:
        if bucket.queries > QUERY_BLOCK:
            raise ValueError(f"a tile has at most {QUERY_BLOCK} queries, got {bucket.queries}")
        self.bucket = bucket
        self._table = torch.zeros(len(Row._fields) + 3, bucket.rows, dtype=torch.int32, device=device)
        start, stop, limit, low, high, self._block, blocks, self.position, self.tile, self.first, self.count = (
            self._table
        )
        self.token = torch.zeros(bucket.rows, bucket.queries, dtype=torch.int64, device=device)
        self._steps = torch.arange(width, dtype=torch.int32, device=device)
        self._indices = torch.zeros(bucket.rows, 1, 1, width, dtype=torch.int32, device=device)

        def visible(row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            inside = (j >= start[row]) & (j < stop[row]) & (j - i <= limit[row])
            return inside & (i >= low[row]) & (i < high[row])

        # All blocks are listed as partial ones: given full blocks too, flex-decode splits its work by the length of
        # the arena, not of the list. What lies beyond a row's count is undefined by contract, so lists can be
        # narrower than the arena, and are written without regard to their ends.
        self.mask = BlockMask.from_kv_blocks(
            blocks.view(bucket.rows, 1, 1),
            self._indices,
            BLOCK_SIZE=(QUERY_BLOCK, block),
            mask_mod=visible,
            seq_lengths=(bucket.queries, slots),
            compute_q_blocks=False,
        )

    def load(self, tiles: Sequence[tuple[Tile, Sequence[Row]]]) -> None:
        """Show these tiles with their rows, and nothing else.

        Raises:
            ValueError: they do not fit the bucket, or a row has more blocks than fit its list.
        """
        counts = [len(rows) for _, rows in tiles]
        rows = [row for _, rows in tiles for row in rows]
        sizes = Bucket(max((len(tile) for tile, _ in tiles), default=0), len(rows), max(counts, default=0))
        if sizes.queries > self.bucket.queries or sizes.rows > self.bucket.rows or sizes.fan > self.bucket.fan:
            raise ValueError(f"tiles of {sizes} do not fit {self.bucket}")
        longest = max((row.blocks for row in rows), default=0)
        if longest > len(self._steps):
            raise ValueError(f"a row of {longest} key blocks does not fit a list of {len(self._steps)}")
        table = torch.zeros(self._table.shape, dtype=torch.int32)
        token = torch.zeros(self.token.shape, dtype=torch.int64)
        if rows:
            count = torch.tensor(counts)
            table[: len(Row._fields), : len(rows)] = torch.tensor(rows).T
            table[-3, : len(rows)] = torch.arange(len(tiles)).repeat_interleave(count)
            table[-2, : len(tiles)] = count.cumsum(0) - count
            table[-1, : len(tiles)] = count
            # A short tile repeats its last token: queries that no row shows to anyone.
            last = torch.tensor([len(tile) - 1 for tile, _ in tiles])[:, None]
            steps = torch.arange(self.bucket.queries).minimum(last)
            token[: len(tiles)] = torch.tensor([tile.token for tile, _ in tiles])[:, None] + steps
        self._table.copy_(table)
        self.token.copy_(token)
        torch.add(self._block[:, None], self._steps, out=self._indices[:, 0, 0])
