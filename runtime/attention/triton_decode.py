"""Attention through our own Triton kernels where a step only decodes, through FlexAttention where it does not.

No compilation depends on how many rows there are or what they read: the tables of a step are two small copies to the
device, of any length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ds2ds.attention.attend import Attend, AttentionPath
from ds2ds.attention.flex import FlexPath
from ds2ds.attention.rotary import Rotary
from ds2ds.attention.view import Chunk, reads
from ds2ds.cache.document_store import DocumentStore
from ds2ds.kernels.decode_attention import PART, read_parts, store_rows


class TritonPath:
    """What lasts from step to step. One for each engine.

    Args:
        prefill: what takes the chunks of more than one token; None: FlexAttention.
        part: keys that one program reads, a power of two.

    Raises:
        ValueError: the kernels cannot do with such an arena.
    """

    def __init__(
        self,
        store: DocumentStore,
        rotary: Rotary,
        prefill: AttentionPath | None = None,
        part: int = PART,
    ) -> None:
        data = store.arena.data
        check_arena(data)
        self.store, self.rotary, self.part = store, rotary, part
        self.prefill = prefill or FlexPath(store, rotary)

    @torch.inference_mode()
    def __call__(self, chunks: Sequence[Chunk]) -> Attend:
        """Attention for one step; see FlexPath."""
        decode = [chunk for chunk in chunks if len(chunk) == 1]
        if not decode:
            return self.prefill(chunks)
        ours = TritonDecode(self.store, self.rotary, decode, self.part)
        if len(decode) == len(chunks):
            return ours
        single = [len(chunk) == 1 for chunk in chunks for _ in range(len(chunk))]
        rows = torch.tensor(sorted(range(len(single)), key=single.__getitem__), device=self.store.arena.data.device)
        rest = self.prefill([chunk for chunk in chunks if len(chunk) > 1])
        return _Both(ours, rest, rows[-len(decode) :], rows[: -len(decode)])

    def warm_up(self, decode_rows: int = 0) -> None:
        """Compile what prefill needs. Our own kernels are compiled at their first call, in seconds, and never again."""
        if isinstance(self.prefill, FlexPath):
            self.prefill.warm_up(decode_rows=0)


class TritonDecode:
    """What the backbone calls for each layer of a step of chunks of one token each."""

    def __init__(self, store: DocumentStore, rotary: Rotary, chunks: Sequence[Chunk], part: int = PART) -> None:
        self.arena, self.rotary, self.part = store.arena, rotary, part
        rows: list[tuple[int, int, int, int]] = []
        parts: list[tuple[int, int, int, int]] = []
        for row, chunk in enumerate(chunks):
            base, first = store.start(chunk.document), len(parts)
            farthest = chunk.start
            parts += _parts(row, chunk.start, base, chunk.stop, part)
            for read in reads(chunk.document, chunk.start, chunk.stop):
                farthest = chunk.start + read.delta
                parts += _parts(row, farthest, store.start(read.target), len(read.target.tokens), part)
            if farthest >= len(rotary.cos):
                raise ValueError(f"position {farthest} exceeds the table's {len(rotary.cos)}")
            rows.append((chunk.start, base + chunk.start, first, len(parts) - first))
        device = store.arena.data.device
        # Padded, so that every column is aligned: for addresses that are not, Triton would compile kernels anew.
        table = torch.zeros(4, -(-len(rows) // 4) * 4, dtype=torch.int32)
        table[:, : len(rows)] = torch.tensor(rows, dtype=torch.int32).T
        self.position, self.slot, self.first, self.count = table.to(device)[:, : len(rows)]
        self.parts = torch.tensor(parts, dtype=torch.int32).to(device)

    @torch.inference_mode()
    def __call__(self, layer: int, qk: Tensor, v: Tensor) -> Tensor:
        """qk [rows, 2, heads, head_dim], unrotated, v [rows, heads, head_dim]; returns what each row reads, like v."""
        self.store(layer, qk, v)
        return self.read(layer, qk)

    def store(self, layer: int, qk: Tensor, v: Tensor) -> None:
        data, rotary = self.arena.data[layer], self.rotary
        store_rows(data, qk, v, rotary.cos, rotary.sin, self.position, self.slot)

    def read(self, layer: int, qk: Tensor) -> Tensor:
        data, rotary = self.arena.data[layer], self.rotary
        return read_parts(data, qk, rotary.cos, rotary.sin, self.parts, self.first, self.count, self.part)


class _Both:
    """Rows that are decoded and rows that are not, each by what suits them."""

    def __init__(self, decode: TritonDecode, rest: Attend, single: Tensor, others: Tensor) -> None:
        self.decode, self.rest, self.single, self.others = decode, rest, single, others

    @torch.inference_mode()
    def __call__(self, layer: int, qk: Tensor, v: Tensor) -> Tensor:
        queries = qk[self.single]
        # Before anyone reads: one may read what the other stores.
        self.decode.store(layer, queries, v[self.single])
        out = torch.empty_like(v)
        out[self.others] = self.rest(layer, qk[self.others], v[self.others])
        out[self.single] = self.decode.read(layer, queries)
        return out


def check_arena(data: Tensor) -> None:
    """Raise ValueError unless the kernels can do with this arena."""
    width = data.shape[-1]
    if width < 4 or width & (width - 1):
        raise ValueError(f"attention 'triton' needs a head_dim that is a power of two from 4 on, got {width}")
    if data.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"attention 'triton' needs float32, bfloat16 or float16, got {data.dtype}")


def _parts(row: int, position: int, start: int, length: int, part: int) -> list[tuple[int, int, int, int]]:
    return [(row, position, start + at, min(part, length - at)) for at in range(0, length, part)]
