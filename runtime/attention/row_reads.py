"""What a step's chunks read, as the tables that compiled code takes: one call then attends for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ds2ds.attention.rotary import Rotary
from ds2ds.attention.view import Chunk, reads
from ds2ds.cache.document_store import DocumentStore
from ds2ds.native.operations import RowReads

TOGETHER = 64
"""Most rows that read together: what their queries, sums and scores take stays in the processor's caches."""

FEW = 8
"""Rows that are faster one by one: together they go in vectors of sixteen."""


def row_reads(store: DocumentStore, rotary: Rotary, chunks: Sequence[Chunk], apart: bool = False) -> RowReads:
    """The chunks cut up; all they read is resident.

    Args:
        apart: into single rows, whose bits then depend on nothing but what they read.

    Raises:
        IndexError: a position is beyond the rotary table.
    """
    pieces: list[tuple[int, int, int, int, int]] = []
    table: list[tuple[int, int, int, int, int, int]] = []
    row = last = 0
    for chunk in _cut(chunks, apart):
        document, rows, first = chunk.document, len(chunk), len(table)
        base = store.start(document)
        table.append((0, rows, base, base + chunk.start + 1, 1, chunk.start))
        last = max(last, chunk.stop)
        for read in reads(document, chunk.start, chunk.stop):
            start = store.start(read.target)
            stop, position = start + len(read.target.tokens), read.start + read.delta
            table.append((read.start - chunk.start, len(read), start, stop, 0, position))
            last = max(last, position + len(read))
        pieces.append((row, rows, base + chunk.start, first, len(table)))
        row += rows
    # Compiled code looks no further.
    if last > len(rotary.cos):
        raise IndexError(f"position {last - 1} is beyond the rotary table's {len(rotary.cos)}")
    return RowReads(torch.tensor(pieces, device="cpu"), torch.tensor(table, device="cpu"), rotary.cos, rotary.sin)


def _cut(chunks: Sequence[Chunk], apart: bool) -> Iterator[Chunk]:
    for chunk in chunks:
        size = 1 if apart or len(chunk) <= FEW else TOGETHER
        for start in range(chunk.start, chunk.stop, size):
            yield Chunk(chunk.document, start, min(start + size, chunk.stop))
