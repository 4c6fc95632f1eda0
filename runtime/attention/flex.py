"""Attention over the KV arena through FlexAttention: the GPU path. On a CPU it runs too, slowly, to be tested.

Each row of a launch is a tile of queries, rotated to where one document sees them, over that document's key blocks;
the rows of a tile are then merged by log-sum-exp. Shapes are padded to buckets, each compiled once; views live in
device tensors (`BlockTable`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, FlexKernelOptions, flex_attention

from ds2ds.attention.block_tables import QUERY_BLOCK, BlockTable, Bucket, Row, Tile, rows_of, tiles_of
from ds2ds.attention.rotary import Rotary, rotate
from ds2ds.attention.view import Chunk
from ds2ds.cache.document_store import DocumentStore

Compiler = str | Callable[..., Any]
"""A backend of torch.compile."""

FAN = 8
"""Every bucket has room for so many rows of one tile: a document and seven that it reads."""


@dataclass(frozen=True)
class Kind:
    """Tiles that one Triton template serves.

    Attributes:
        queries: in a tile.
        least, most: rows in a launch; a single tile may have more.
        backend: FlexAttention's, named so that what it cannot do is an error and not a slower kernel.
    """

    queries: int
    least: int
    most: int
    backend: Literal["TRITON", "TRITON_DECODE"]

    def bucket(self, rows: int, fan: int) -> Bucket:
        return Bucket(self.queries, _power(max(rows, self.least)), _power(max(fan, FAN)))


DECODE = Kind(1, 4, 1024, "TRITON_DECODE")
PREFILL = Kind(QUERY_BLOCK, 8, 64, "TRITON")

Group = list[tuple[Tile, list[Row]]]
"""Tiles that are launched together, with their rows."""


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
            check_gpu(data.shape[-1], self.arena.allocator.block, data.dtype)
            compiler = compiler or "inductor"
        self.compiler = compiler
        self.latest: FlexAttention | None = None
        self._kernels: dict[Bucket, _Kernel] = {}
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
    def warm_up(self, decode_rows: int = DECODE.most, prefill_rows: int = PREFILL.most, fan: int = FAN) -> None:
        """Compile every bucket of up to so many rows (0: none), and so many for one tile. Ends the step before."""
        self.latest = None
        for kind, most in zip(self.kinds, (decode_rows, prefill_rows), strict=True):
            sizes = _powers(most) if most else []
            for bucket in {kind.bucket(rows, width) for rows in sizes for width in _powers(min(fan, rows))}:
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

    def _kernel(self, kind: Kind, bucket: Bucket) -> _Kernel:
        if bucket not in self._kernels:
            self._kernels[bucket] = _Kernel(self, kind, bucket)
        return self._kernels[bucket]


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


class _Kernel:
    """The compiled function of one bucket, and the tables to call it with: one for each launch of it in a step."""

    def __init__(self, path: FlexPath, kind: Kind, bucket: Bucket) -> None:
        self.path, self.bucket = path, bucket
        self.options = _options(kind, path.arena.data, path.arena.allocator.block)
        self.tables: list[BlockTable] = []
        self.read = read_rows
        if path.compiler is not None:
            # Compilations are kept, and limited in number, by code object: each bucket has its own.
            code = read_rows.__code__.replace(co_name=f"read_{bucket.queries}_{bucket.rows}_{bucket.fan}")
            own = FunctionType(code, read_rows.__globals__)
            self.read = torch.compile(own, backend=path.compiler, dynamic=False, fullgraph=True)

    def table(self, index: int) -> BlockTable:
        """The table for a step's launch number `index` of this kernel."""
        if index == len(self.tables):
            arena = self.path.arena
            # No document that can be read is longer than the rotary tables.
            longest = min(arena.slots, len(self.path.rotary.cos))
            width = -(-longest // arena.allocator.block)
            self.tables.append(BlockTable(self.bucket, width, arena.slots, arena.allocator.block, arena.data.device))
        return self.tables[index]

    def __call__(self, layer: int, queries: Tensor, table: BlockTable) -> Tensor:
        keys, values = self.path.arena.data[layer]
        rotary = self.path.rotary
        where = (table.position, table.tile, table.first, table.count)
        return self.read(
            queries, keys, values, table.mask, *where, rotary.cos, rotary.sin, self.bucket.fan, self.options
        )


@dataclass(frozen=True)
class _Launch:
    kernel: _Kernel
    table: BlockTable
    tiles: list[Tile]


def read_rows(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: BlockMask,
    position: Tensor,
    tile: Tensor,
    first: Tensor,
    count: Tensor,
    cos: Tensor,
    sin: Tensor,
    fan: int,
    options: FlexKernelOptions,
) -> Tensor:
    """What each tile reads: a row for every document, then merged.

    Args:
        queries: [R, Q, heads, head_dim], by tile, not rotated.
        keys, values: [heads, slots, head_dim].
        mask, position, tile, first, count: see BlockTable.
        cos, sin: the rotary tables.
        options: FlexAttention's kernel_options.

    Returns:
        [R, Q, heads, head_dim], by tile; zeros where a query sees nothing.
    """
    rows, length = queries.shape[:2]
    # A query that a row does not show may lie beyond the tables.
    at = position[:, None] + torch.arange(length, device=queries.device)
    at = at.clamp(max=cos.shape[0] - 1)
    q = rotate(queries[tile], cos[at][:, :, None], sin[at][:, :, None]).transpose(1, 2)
    out, aux = flex_attention(
        q, keys[None], values[None], block_mask=mask, return_aux=AuxRequest(lse=True), kernel_options=options
    )
    lse = cast(Tensor, aux.lse)
    step = torch.arange(fan, device=queries.device)
    row = (first[:, None] + step).clamp(max=rows - 1)
    lse = torch.where((step < count[:, None])[:, :, None, None], lse[row], -torch.inf)
    most = lse.amax(dim=1, keepdim=True)
    weight = (lse - torch.where(most == -torch.inf, 0.0, most)).exp()
    # The greatest weight is 1, unless there is no visible key at all, where all are 0.
    merged = (weight[..., None] * out[row]).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)[..., None]
    return merged.transpose(1, 2).to(queries.dtype)


def check_gpu(head_dim: int, block: int, dtype: torch.dtype) -> None:
    """Raise ValueError unless the GPU kernels can do with such an arena."""
    if head_dim < 16:
        raise ValueError(f"FlexAttention on a GPU needs a head_dim of at least 16, got {head_dim}")
    if block < 16 or block & (block - 1):
        raise ValueError(f"FlexAttention on a GPU needs a block of 16 slots or a higher power of two, got {block}")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"FlexAttention on a GPU needs float32, bfloat16 or float16, got {dtype}")


def _options(kind: Kind, data: Tensor, block: int) -> FlexKernelOptions:
    """FlexAttention's kernel_options for tiles of this kind over an arena."""
    if not data.is_cuda:
        return {}
    # A row's blocks follow one another, which saves the kernel a look at the list for each.
    options: FlexKernelOptions = {"BACKEND": kind.backend, "BLOCKS_ARE_CONTIGUOUS": True}
    bytes_per_key = data.shape[-1] * data.element_size()
    if kind.backend == "TRITON" and block < QUERY_BLOCK:
        # The template refuses blocks below the number of keys that it chooses: here 16 KiB of them.
        options["BLOCK_N"] = max(16, min(block, _power(2**14 // bytes_per_key)))
    if kind.backend == "TRITON_DECODE" and bytes_per_key <= 512:
        # torch 2.11 to 2.13 mean to choose three stages on these GPUs, and by a slip in their heuristics choose one.
        capability = torch.cuda.get_device_capability(data.device)
        if capability in ((9, 0), (10, 0), (10, 3)):
            options["num_stages"] = 3
    return options


def _power(number: int) -> int:
    """The least power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def _powers(most: int) -> list[int]:
    """Powers of two from 1 to the least that is not below `most`."""
    return [1 << i for i in range(_power(most).bit_length())]
