"""Attention over the KV arena through FlexAttention: the GPU path. On a CPU it runs too, slowly, to be tested.

Each row of a launch is a tile of queries, rotated to where one document sees them, over that document's key blocks;
the rows of a tile are then merged by log-sum-exp. Shapes are padded to buckets, each compiled once; views live in
device tensors (`BlockTable`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds2ds.attention.block_tables import BlockTable, Bucket, Row, Tile, rows_of, tiles_of
from ds2ds.attention.flex_kernel import DECODE, FAN, PREFILL, Compiler, Kernel, Kind, check_gpu, powers
from ds2ds.attention.rotary import Rotary, rotate
from ds2ds.attention.view import Chunk
from ds2ds.cache.document_store import DocumentStore

Group = list[tuple[Tile, list[Row]]]
"""Tiles that are launched together, with their rows."""

MOST_SLOTS_UNCOMPILED = 2**16


class FlexPath:
    """What lasts from step to step: compiled kernels and device tables, by bucket. One for each engine.

    Args:
        store: whose arena is read. Values in it are made finite: a masked one counts 0 times, and 0 * NaN is NaN.
        compiler: None: "inductor" on a GPU; on a CPU, nothing is compiled.
        prefill: tiles for chunks of more than one token.

    Raises:
        ValueError: see `check_gpu`.
    """

    def __init__(
        self, store: DocumentStore, rotary: Rotary, *, compiler: Compiler | None = None, prefill: Kind = PREFILL
    ) -> None:
        self.store, self.rotary, self.arena = store, rotary, store.arena
        self.kinds = (DECODE, prefill)
        data = self.arena.data
        if data.is_cuda:
            check_gpu(data, self.arena.allocator.block)
            compiler = compiler or "inductor"
        elif data.shape[-2] > MOST_SLOTS_UNCOMPILED:
            raise ValueError(
                f"FlexAttention on a CPU, which is for tests, makes a score for each slot: of an arena of at most "
                f"{MOST_SLOTS_UNCOMPILED:,} tokens, got {data.shape[-2]:,}; pass fewer arena_tokens, or no attention"
            )
        self.compiler = compiler
        self.latest: FlexAttention | None = None
        self._kernels: dict[Bucket, Kernel] = {}
        with torch.inference_mode():
            data[:, 1].nan_to_num_()

    @torch.inference_mode()
    def __call__(self, chunks: Sequence[Chunk]) -> FlexAttention:
        """Attention for one step. It ends the one before, whose tables it edits.

        Every document that a chunk reads must be computed as far as it is read.

        Raises:
            KeyError: a document that is read is not resident.
            ValueError: a view is longer than the rotary tables.
        """
        launches: list[_Launch] = []
        for kind, group in self._groups(chunks):
            bucket = kind.bucket(sum(len(rows) for _, rows in group), max(len(rows) for _, rows in group))
            kernel = self._kernel(kind, bucket)
            table = kernel.table(sum(launch.kernel is kernel for launch in launches))
            table.load(group)
            launches.append(_Launch(kernel, table, [tile for tile, _ in group]))
        self.latest = FlexAttention(self, chunks, launches)
        return self.latest

    @torch.inference_mode()
    def warm_up(self, decode_rows: int = DECODE.most, prefill_rows: int = PREFILL.most) -> None:
        """Compile every bucket of up to so many rows (0: none), FAN for one tile. Ends the step before."""
        self.latest = None
        for kind, most in zip(self.kinds, (decode_rows, prefill_rows), strict=True):
            sizes = powers(most) if most else []
            for bucket in {kind.bucket(rows, FAN) for rows in sizes}:
                kernel = self._kernel(kind, bucket)
                table = kernel.table(0)
                table.load([])
                data = self.arena.data
                kernel(0, data.new_zeros(*table.token.shape, data.shape[2], data.shape[-1]), table)

    def _groups(self, chunks: Sequence[Chunk]) -> Iterator[tuple[Kind, Group]]:
        decode, prefill = self.kinds
        tiles: dict[Kind, list[Tile]] = {decode: [], prefill: []}
        token = 0
        for chunk in chunks:
            kind = decode if len(chunk) == 1 else prefill
            tiles[kind] += tiles_of(chunk, token, kind.queries)
            token += len(chunk)
        for kind in self.kinds:
            group: Group = []
            total = 0
            for tile in tiles[kind]:
                rows = self._rows(tile)
                if group and total + len(rows) > kind.most:
                    yield kind, group
                    group, total = [], 0
                group.append((tile, rows))
                total += len(rows)
            if group:
                yield kind, group

    def _rows(self, tile: Tile) -> list[Row]:
        rows = rows_of(tile, self.store.start, self.arena.allocator.block)
        last = max(rows, key=lambda row: row.position + row.high)
        start, stop = last.position + last.low, last.position + last.high
        if stop > len(self.rotary.cos):
            raise ValueError(f"positions {start} to {stop} exceed the table's {len(self.rotary.cos)}")
        return rows

    def _kernel(self, kind: Kind, bucket: Bucket) -> Kernel:
        if bucket not in self._kernels:
            self._kernels[bucket] = Kernel(self.arena, self.rotary, kind, bucket, self.compiler)
        return self._kernels[bucket]


@dataclass(frozen=True)
class _Launch:
    kernel: Kernel
    table: BlockTable
    tiles: list[Tile]


class FlexAttention:
    """What the backbone calls for each layer of one step: stores the new keys and values, then reads."""

    def __init__(self, path: FlexPath, chunks: Sequence[Chunk], launches: Sequence[_Launch]) -> None:
        self.path, self.launches = path, launches
        device = path.arena.data.device
        positions: list[int] = []
        slots: list[int] = []
        for chunk in chunks:
            base = path.store.start(chunk.document)
            positions += range(chunk.start, chunk.stop)
            slots += range(base + chunk.start, base + chunk.stop)
        at, self.slots = torch.tensor([positions, slots]).to(device)
        self.cos, self.sin = path.rotary.at(at)
        # Where the launches' outputs, one after the other, have each row of the flat batch; None: where it is itself.
        found = [0] * len(positions)
        base = 0
        for launch in launches:
            queries, rows = launch.kernel.bucket.queries, launch.kernel.bucket.rows
            for index, tile in enumerate(launch.tiles):
                at_tile = base + index * queries
                found[tile.token : tile.token + len(tile)] = range(at_tile, at_tile + len(tile))
            base += rows * queries
        self.found = None if found == list(range(len(found))) else torch.tensor(found).to(device)

    @torch.inference_mode()
    def __call__(self, layer: int, qk: Tensor, v: Tensor) -> Tensor:
        """qk [rows, 2, heads, head_dim], unrotated, v [rows, heads, head_dim]; returns what each row reads, like v.

        Raises:
            RuntimeError: another step has begun.
        """
        if self.path.latest is not self:
            raise RuntimeError("attention of a step that has ended: the tables show a later one")
        data = self.path.arena.data[layer]
        keys = rotate(qk[:, 1], self.cos, self.sin)
        # A row that is NaN is noticed through its key; as a value it would reach whoever has this slot masked.
        data.index_copy_(2, self.slots, torch.stack([keys, v.nan_to_num()]).transpose(1, 2).to(data.dtype))
        outs = [launch.kernel(layer, qk[:, 0][launch.table.token], launch.table) for launch in self.launches]
        out = outs[0].flatten(0, 1) if len(outs) == 1 else torch.cat([out.flatten(0, 1) for out in outs])
        return out[: len(v)] if self.found is None else out[self.found]
