"""What the host changes in the tables of decode steps, a small copy and a launch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ds2ds.engine.decode_graph.host_copies import HostBuffer
from ds2ds.engine.decode_graph.row import Row
from ds2ds.engine.work import Sampling
from ds2ds.kernels.decode_tables import RECORD, DecodeTables, edit

NOBODY = Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=0)
"""How a row that is not there is drawn."""


class Edit(NamedTuple):
    """What a row of the tables is to be.

    Attributes:
        place: which row.
        row: how it computes; None: nobody is there any more.
        position: of the token that it computes, in its document.
        token: that token, or -1 - the row that drew it last.
    """

    place: int
    row: Row | None = None
    position: int = 0
    token: int = 0


class TableWriter:
    """Writes rows of the tables, in the order of the launches."""

    def __init__(self, tables: DecodeTables, vocab_size: int) -> None:
        device = tables.fields.device
        self._tables = tables
        self._vocab_size = vocab_size
        shape = (tables.rows, RECORD + 3 * tables.width)
        self._edits = torch.zeros(shape, dtype=torch.int32, device=device)
        # In turns: one may be on its way while the host uses the other.
        self._buffer, self._other = HostBuffer(shape, device), HostBuffer(shape, device)
        self._listed = HostBuffer((1, tables.listed.shape[1]), device)

    def write(self, edits: Sequence[Edit]) -> None:
        if not edits:
            return
        self._buffer, self._other = self._other, self._buffer
        buffer = self._buffer
        buffer.wait()
        words, floats, longs = (buffer.values.view(dtype) for dtype in (np.int32, np.float32, np.int64))
        for index, (place, row, position, token) in enumerate(edits):
            sampling = NOBODY if row is None else row.sampling
            slot, others = (-1, ()) if row is None else (row.start + position, row.others.parts)
            words[index, :5] = place, token, position, slot, len(others)
            floats[index, 5:10] = sampling.temperature, 0, sampling.top_p, sampling.min_p, sampling.repetition_penalty
            words[index, 6] = min(sampling.top_k, self._vocab_size)
            longs[index, 5] = sampling.seed
            words[index, RECORD : RECORD + 3 * len(others)] = np.array(others, dtype=np.int32).ravel()
        buffer.send(len(edits), self._edits)
        edit(self._tables, self._edits[: len(edits)])

    def list_tokens(self, place: int, tokens: Sequence[int]) -> None:
        """Tell the tables which tokens a row's document has, for the repetition penalty."""
        self._listed.wait()
        listed = np.unique(np.array(tokens, dtype=np.int64))
        words = self._listed.values[0].view(np.uint32)
        words[:] = 0
        np.bitwise_or.at(words, listed >> 5, np.uint32(1) << (listed & 31).astype(np.uint32))
        self._listed.send(1, self._tables.listed[place : place + 1])
