"""Attention over the KV arena in compiled code (``ds2ds.native``): float32 on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from ds2ds.attention.plain import PlainAttention
from ds2ds.attention.rotary import Rotary
from ds2ds.attention.row_reads import row_reads
from ds2ds.attention.view import Chunk
from ds2ds.cache.document_store import DocumentStore
from ds2ds.native import operations as native
from ds2ds.native.invariance import rows_apart
from ds2ds.native.operations import RowReads


class CompiledAttention:
    """As `PlainAttention`, all chunks of a step in one call; `ds2ds.model.compiled_backbone` makes that call itself.

    Attributes:
        scale: what scores are multiplied by.
    """

    def __init__(self, store: DocumentStore, rotary: Rotary, chunks: Sequence[Chunk]) -> None:
        self.store, self.rotary, self.chunks = store, rotary, chunks
        self.arena = store.arena
        self.scale = self.arena.data.shape[-1] ** -0.5

    @cached_property
    def reads(self) -> RowReads:
        """What each row reads; made when first asked for, as only the model knows whether rows are apart."""
        return row_reads(self.store, self.rotary, self.chunks, rows_apart())

    def __call__(self, layer: int, qk: Tensor, v: Tensor) -> Tensor:
        """qk [rows, 2, heads, head_dim], unrotated, v [rows, heads, head_dim]; returns what each row reads, like v."""
        return native.attend_rows(qk, v, self.reads, self.arena.data[layer], self.scale)


def cpu_attention(store: DocumentStore, rotary: Rotary, chunks: Sequence[Chunk]) -> CompiledAttention | PlainAttention:
    """In compiled code where it can be."""
    data = store.arena.data
    compiled = native.takes(data) and data.shape[-1] <= native.MOST_HEAD_DIM
    return (CompiledAttention if compiled else PlainAttention)(store, rotary, chunks)
