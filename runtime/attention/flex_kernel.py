"""What FlexAttention computes in one launch: tiles of queries over the documents that they read, merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, FlexKernelOptions, flex_attention

from ds2ds.attention.block_tables import QUERY_BLOCK, BlockTable, Bucket
from ds2ds.attention.rotary import Rotary, rotate
from ds2ds.cache.arena import KVArena

Compiler = str | Callable[..., Any]
"""A backend of torch.compile."""

MOST_NUMBERS = 2**31 - 1
"""Of the keys of one layer. FlexAttention counts beyond that in 64 bits, and so its kernel for few queries does not
compile (torch 2.11 to 2.13: a conditional of an int64 and an int32)."""

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


class Kernel:
    """The compiled function of one bucket, and the tables to call it with: one for each launch of it in a step."""

    def __init__(self, arena: KVArena, rotary: Rotary, kind: Kind, bucket: Bucket, compiler: Compiler | None) -> None:
        self.arena, self.rotary, self.bucket = arena, rotary, bucket
        self.options = _options(kind, arena.data, arena.allocator.block)
        self.tables: list[BlockTable] = []
        self.read = read_rows
        if compiler is not None:
            # Compilations are kept, and limited in number, by code object: each bucket has its own.
            code = read_rows.__code__.replace(co_name=f"read_{bucket.queries}_{bucket.rows}_{bucket.fan}")
            own = FunctionType(code, read_rows.__globals__)
            self.read = torch.compile(own, backend=compiler, dynamic=False, fullgraph=True)

    def table(self, index: int) -> BlockTable:
        """The table for a step's launch number `index` of this kernel."""
        if index == len(self.tables):
            arena = self.arena
            # No document that can be read is longer than the rotary tables.
            longest = min(arena.slots, len(self.rotary.cos))
            width = -(-longest // arena.allocator.block)
            self.tables.append(BlockTable(self.bucket, width, arena.slots, arena.allocator.block, arena.data.device))
        return self.tables[index]

    def __call__(self, layer: int, queries: Tensor, table: BlockTable) -> Tensor:
        keys, values = self.arena.data[layer]
        where = (table.position, table.tile, table.first, table.count)
        return self.read(
            queries, keys, values, table.mask, *where, self.rotary.cos, self.rotary.sin, self.bucket.fan, self.options
        )


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


def check_gpu(data: Tensor, block: int) -> None:
    """Raise ValueError unless the GPU kernels can do with an arena's data, its extents aligned to `block`."""
    _, _, heads, slots, head_dim = data.shape
    dtype = data.dtype
    if head_dim < 16:
        raise ValueError(f"FlexAttention on a GPU needs a head_dim of at least 16, got {head_dim}")
    if block < 16 or block & (block - 1):
        raise ValueError(f"FlexAttention on a GPU needs a block of 16 slots or a higher power of two, got {block}")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"FlexAttention on a GPU needs float32, bfloat16 or float16, got {dtype}")
    if heads * slots * head_dim > MOST_NUMBERS:
        most = MOST_NUMBERS // (heads * head_dim) // block * block
        raise ValueError(f"FlexAttention on a GPU reads at most {most:,} slots of such keys, got an arena of {slots:,}")


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


def powers(most: int) -> list[int]:
    """Powers of two from 1 to the least that is not below `most`."""
    return [1 << i for i in range(_power(most).bit_length())]
