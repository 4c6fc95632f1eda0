"""Block tables expanded to dense masks, against S2 and S3 read token by token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from ds2ds.attention.block_tables import BlockTable, Bucket, Row, Tile, rows_of, tiles_of
from ds2ds.attention.view import Chunk
from ds2ds.documents.document import Document, DocumentGrant

SOME = settings(max_examples=40, deadline=None, derandomize=True)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """Documents placed in an arena, chunks of some of them, and a table that shows the chunks' tiles."""

    starts: dict[Document, int]
    chunks: list[Chunk]
    tiles: list[tuple[Tile, list[Row]]]
    table: BlockTable
    slots: int
    block: int


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Up to four documents, some longer than a block, with gaps between; grants that end, and targets granted twice."""
    block = draw(st.sampled_from([16, 32, 64, 128, 256]))
    documents: list[Document] = []
    starts: dict[Document, int] = {}
    slots = 0
    for index in range(draw(st.integers(1, 4))):
        document = Document(f"d{index}", [0] * draw(st.integers(1, 40) | st.sampled_from([block, block + 1])))
        length = len(document.tokens)
        for position in sorted(draw(st.lists(st.integers(0, length), max_size=4 if documents else 0))):
            end = draw(st.none() | st.integers(position, length + 1))
            document.grants.append(DocumentGrant(position, draw(st.sampled_from(documents)), end))
        documents.append(document)
        slots += draw(st.integers(0, 1)) * block
        starts[document] = slots
        slots += -(-length // block) * block
    slots += draw(st.integers(0, 1)) * block
    some = draw(st.lists(st.sampled_from(documents), min_size=1, unique=True))
    chunks = []
    for document in some:
        start = draw(st.integers(0, len(document.tokens) - 1))
        chunks.append(Chunk(document, start, draw(st.integers(start + 1, min(len(document.tokens), start + 30)))))
    queries = draw(st.sampled_from([1, 7, 128]))
    return Batch(starts, chunks, *show(chunks, starts, queries, slots, block, draw(st.integers(0, 3))), slots, block)


def show(
    chunks: Sequence[Chunk], starts: dict[Document, int], queries: int, slots: int, block: int, spare: int
) -> tuple[list[tuple[Tile, list[Row]]], BlockTable]:
    """Tiles with their rows, and a table with `spare` unused rows, in which something else was shown before."""
    tiles, token = [], 0
    for chunk in chunks:
        tiles += [(tile, rows_of(tile, starts.__getitem__, block)) for tile in tiles_of(chunk, token, queries)]
        token += len(chunk)
    counts = [len(rows) for _, rows in tiles]
    table = BlockTable(Bucket(queries, sum(counts) + spare, max(counts)), slots // block, slots, block, CPU)
    table.load(tiles[::-1])
    table.load(tiles)
    return tiles, table


def expected(tile: Tile, starts: dict[Document, int], slots: int) -> dict[int, Tensor]:
    """For each distance delta that a key may be read at: int [queries, slots], how often each query reads each slot."""
    seen: dict[int, Tensor] = defaultdict(lambda: torch.zeros(tile.stop - tile.start, slots, dtype=torch.int64))
    for i, token in enumerate(range(tile.start, tile.stop)):
        own = starts[tile.document]
        seen[0][i, own : own + token + 1] += 1
        delta = 0
        for grant in tile.document.grants:
            if grant.position <= token and (grant.end is None or token < grant.end):
                delta += len(grant.target.tokens)
                at = starts[grant.target]
                seen[delta][i, at : at + len(grant.target.tokens)] += 1
    return dict(seen)


def listed(table: BlockTable) -> Tensor:
    """bool [R, blocks of the arena]: the key blocks that each row lists. Each at most once."""
    mask = table.mask
    found = torch.zeros(table.bucket.rows, mask.seq_lengths[1] // mask.BLOCK_SIZE[1], dtype=torch.bool)
    for row in range(table.bucket.rows):
        blocks = mask.kv_indices[row, 0, 0, : int(mask.kv_num_blocks[row, 0, 0])].tolist()
        assert len(blocks) == len(set(blocks))
        found[row, blocks] = True
    return found


def visible(table: BlockTable) -> Tensor:
    """bool [R, Q, slots]: the mask function by itself, every element."""
    rows, queries = torch.arange(table.bucket.rows), torch.arange(table.bucket.queries)
    slots = torch.arange(table.mask.seq_lengths[1])
    return table.mask.mask_mod(rows[:, None, None], torch.tensor(0), queries[:, None], slots)


@SOME
@given(batches())
def test_the_expanded_masks_are_the_views(batch: Batch) -> None:
    table = batch.table
    blocks = listed(table).repeat_interleave(batch.block, dim=1)
    dense = visible(table) & blocks[:, None]
    for index, (tile, _) in enumerate(batch.tiles):
        rows = (table.tile == index).nonzero().flatten().tolist()
        first, count = int(table.first[index]), int(table.count[index])
        ours: dict[int, Tensor] = defaultdict(lambda: torch.zeros(table.bucket.queries, batch.slots, dtype=torch.int64))
        for row in range(first, first + count):
            assert row in rows
            ours[int(table.position[row]) - tile.start] += dense[row]
        theirs = expected(tile, batch.starts, batch.slots)
        assert ours.keys() == theirs.keys()
        for delta, seen in theirs.items():
            assert torch.equal(ours[delta][: len(tile)], seen)
            assert not ours[delta][len(tile) :].any(), "queries beyond the tile's end read"


@SOME
@given(batches())
def test_the_listed_blocks_hold_every_visible_slot_and_are_the_documents_own(batch: Batch) -> None:
    blocks = listed(batch.table)
    seen = visible(batch.table).any(dim=1).view(batch.table.bucket.rows, -1, batch.block).any(dim=-1)
    assert not (seen & ~blocks).any(), "a visible slot is in no listed block"
    owner = torch.full((batch.slots // batch.block,), -1)
    for index, (document, start) in enumerate(batch.starts.items()):
        owner[start // batch.block : (start + len(document.tokens) - 1) // batch.block + 1] = index
    for row in blocks[: sum(len(rows) for _, rows in batch.tiles)]:
        owners = set(owner[row].tolist())
        assert len(owners) == 1 and -1 not in owners, "a row's blocks are not one document's"


@settings(SOME, max_examples=15)
@given(batches())
def test_torch_expands_them_alike(batch: Batch) -> None:
    """The lists are as wide as the arena here, which is what BlockMask.to_dense takes for granted."""
    table = batch.table
    assert torch.equal(table.mask.to_dense()[:, 0, 0].bool(), listed(table))
    dense = create_mask(table.mask.mask_mod, table.bucket.rows, 1, table.bucket.queries, batch.slots, "cpu")
    assert torch.equal(dense[:, 0], visible(table))


@SOME
@given(batches())
def test_what_is_not_in_use_shows_nothing(batch: Batch) -> None:
    rows = sum(len(rows) for _, rows in batch.tiles)
    assert not batch.table.mask.kv_num_blocks[rows:].any()
    assert not visible(batch.table)[rows:].any()
    assert not batch.table.count[len(batch.tiles) :].any()
    assert not batch.table.token[len(batch.tiles) :].any()


@SOME
@given(batches())
def test_every_token_of_the_batch_is_a_query_of_one_tile(batch: Batch) -> None:
    tokens = [
        int(token)
        for index, (tile, _) in enumerate(batch.tiles)
        for token in batch.table.token[index, : len(tile)].tolist()
    ]
    assert tokens == list(range(sum(len(chunk) for chunk in batch.chunks)))
    assert int(batch.table.token.max()) == tokens[-1]
    positions = [t for tile, _ in batch.tiles for t in range(tile.start, tile.stop)]
    assert positions == [t for chunk in batch.chunks for t in range(chunk.start, chunk.stop)]


def pair() -> tuple[Document, Document, dict[Document, int]]:
    """A document of 20 tokens that reads one of 40 from token 3 on, in an arena of blocks of 16."""
    target = Document("target", [0] * 40)
    reader = Document("reader", [0] * 20, grants=[DocumentGrant(3, target)])
    return reader, target, {target: 16, reader: 64}


def test_lists_need_only_be_as_wide_as_the_longest_document() -> None:
    reader, _, starts = pair()
    (tile,) = tiles_of(Chunk(reader, 0, 20), 0, 128)
    rows = rows_of(tile, starts.__getitem__, 16)
    tables = [BlockTable(Bucket(128, 4, 8), width, 96, 16, CPU) for width in (3, 6)]
    for table in tables:
        table.load([(tile, rows)])
    narrow, wide = tables
    assert narrow.mask.kv_indices.shape == (4, 1, 1, 3)
    assert torch.equal(listed(narrow), listed(wide))
    with pytest.raises(ValueError, match="a row of 3 key blocks does not fit a list of 2"):
        BlockTable(Bucket(128, 4, 8), 2, 96, 16, CPU).load([(tile, rows)])


def test_a_new_view_edits_the_tensors_that_the_mask_holds() -> None:
    reader, target, starts = pair()
    table = BlockTable(Bucket(1, 4, 8), 6, 96, 16, CPU)
    tensors = (table.mask.kv_num_blocks, table.mask.kv_indices, table.position, table.token)
    addresses = [tensor.data_ptr() for tensor in tensors]
    for chunk in (Chunk(target, 5, 6), Chunk(reader, 2, 3), Chunk(reader, 3, 4)):
        table.load([(tile, rows_of(tile, starts.__getitem__, 16)) for tile in tiles_of(chunk, 0, 1)])
    assert [tensor.data_ptr() for tensor in tensors] == addresses
    assert table.mask.kv_num_blocks.flatten().tolist() == [1, 3, 0, 0]
    assert table.mask.kv_indices[:2, 0, 0, 0].tolist() == [4, 1]
    assert table.position.tolist() == [3, 43, 0, 0]


def test_errors() -> None:
    reader, target, starts = pair()
    (tile,) = tiles_of(Chunk(reader, 0, 20), 0, 128)
    with pytest.raises(ValueError, match="document 'target' starts at slot 8, not a multiple of block 16"):
        rows_of(tile, {**starts, target: 8}.__getitem__, 16)
    with pytest.raises(KeyError):
        rows_of(tile, {reader: 64}.__getitem__, 16)
    with pytest.raises(ValueError, match="a tile has at most 128 queries, got 129"):
        BlockTable(Bucket(129, 4, 8), 6, 96, 16, CPU)
    rows = rows_of(tile, starts.__getitem__, 16)
    for bucket in (Bucket(128, 1, 8), Bucket(128, 4, 1), Bucket(19, 4, 8)):
        with pytest.raises(ValueError, match=r"do not fit Bucket\(queries="):
            BlockTable(bucket, 6, 96, 16, CPU).load([(tile, rows)])
