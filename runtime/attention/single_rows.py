"""What chunks of one token read, as flat tables: one call then attends for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ds2ds.attention.rotary import Rotary
from ds2ds.attention.view import Chunk, reads
from ds2ds.cache.document_store import DocumentStore
from ds2ds.native.operations import RowReads


def row_reads(store: DocumentStore, rotary: Rotary, chunks: Sequence[Chunk]) -> RowReads:
    """One row for each chunk; every chunk has one token, and all it reads is resident."""
    slots: list[int] = []
    first = [0]
    starts: list[int] = []
    stops: list[int] = []
    positions: list[int] = []
    for chunk in chunks:
        base = store.start(chunk.document)
        slots.append(base + chunk.start)
        starts.append(base)
        stops.append(base + chunk.stop)
        positions.append(chunk.start)
        for read in reads(chunk.document, chunk.start, chunk.stop):
            start = store.start(read.target)
            starts.append(start)
            stops.append(start + len(read.target.tokens))
            positions.append(read.start + read.delta)
        first.append(len(starts))
    cos, sin = rotary.at(torch.tensor(positions))
    tables = [torch.tensor(table) for table in (slots, first, starts, stops)]
    return RowReads(tables[0], tables[1], tables[2], tables[3], cos.flatten(1), sin.flatten(1))
