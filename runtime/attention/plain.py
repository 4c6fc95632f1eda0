"""Attention over the KV arena in plain PyTorch: the CPU path.

Each document is one contiguous slice of the arena, so the scores of a view are one matrix product per document
on a view of the arena, without copies. One softmax runs over all of a row's documents together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds2ds.attention.rotary import Rotary, rotate
from ds2ds.attention.view import segments
from ds2ds.cache.document_cache import DocumentCache
from ds2ds.documents.document import Document


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, stop) of a document, to be computed now; all before are computed."""

    document: Document
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class _Read:
    """Slots [start, stop) of another document, and the rotation of the queries that read it."""

    start: int
    stop: int
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class _Rows:
    """Rows of the flat batch that share a view: their own document's slots [start, stop), what is hidden, and reads."""

    rows: slice
    start: int
    stop: int
    future: Tensor | None
    reads: tuple[_Read, ...]


class PlainAttention:
    """What the backbone calls for each layer of one flat batch: stores the new keys and values, then reads.

    Every document that a chunk reads must be resident and computed as far as it is read.
    """

    def __init__(self, cache: DocumentCache, rotary: Rotary, chunks: Sequence[Chunk]) -> None:
        self.arena = cache.arena
        device = self.arena.data.device
        # The softmax scale goes into the queries' rotation, which costs nothing.
        scale = self.arena.data.shape[-1] ** -0.5
        self.writes: list[tuple[slice, int]] = []
        self.rows: list[_Rows] = []
        at = 0
        for chunk in chunks:
            base = cache.start(chunk.document)
            self.writes.append((slice(at, at + len(chunk)), base + chunk.start))
            for segment in segments(chunk.document, chunk.start, chunk.stop):
                reads = []
                for read in segment.reads:
                    slot = cache.start(read.target)
                    cos, sin = rotary.at(slice(segment.start + read.delta, segment.stop + read.delta))
                    reads.append(_Read(slot, slot + len(read.target.tokens), cos * scale, sin * scale))
                rows = slice(at + segment.start - chunk.start, at + segment.stop - chunk.start)
                future = _future(segment.start, segment.stop, device)
                self.rows.append(_Rows(rows, base, base + segment.stop, future, tuple(reads)))
            at += len(chunk)
        positions = torch.cat([torch.arange(chunk.start, chunk.stop, device=device) for chunk in chunks])
        self.cos, self.sin = (torch.stack([t * scale, t], dim=1) for t in rotary.at(positions))

    def __call__(self, layer: int, qk: Tensor, v: Tensor) -> Tensor:
        """qk [rows, 2, heads, head_dim], unrotated, v [rows, heads, head_dim]; returns what each row reads, like v."""
        q, k = rotate(qk, self.cos, self.sin).unbind(1)
        for rows, slot in self.writes:
            self.arena.write(layer, slot, k[rows], v[rows])
        if len(self.rows) == 1:
            return self._attend(layer, q, qk[:, 0], self.rows[0])
        return torch.cat([self._attend(layer, q[view.rows], qk[view.rows, 0], view) for view in self.rows])

    def _attend(self, layer: int, own: Tensor, unrotated: Tensor, view: _Rows) -> Tensor:
        """What rows with one view read; `own` are their queries as their own document sees them, scaled."""
        keys, value = self.arena.read(layer, view.start, view.stop)
        score = own.transpose(0, 1) @ keys.mT
        if view.future is not None:
            score.masked_fill_(view.future, -torch.inf)
        if not view.reads:
            return (score.softmax(-1) @ value).transpose(0, 1)
        scores, values = [score], [value]
        for read in view.reads:
            keys, value = self.arena.read(layer, read.start, read.stop)
            scores.append(rotate(unrotated, read.cos, read.sin).transpose(0, 1) @ keys.mT)
            values.append(value)
        weights = torch.cat(scores, dim=-1).softmax(-1).split([score.shape[-1] for score in scores], dim=-1)
        out = weights[0] @ values[0]
        for weight, value in zip(weights[1:], values[1:], strict=True):
            out += weight @ value
        return out.transpose(0, 1)


def _future(start: int, stop: int, device: torch.device) -> Tensor | None:
    """bool [stop - start, stop]: the keys after each row's own; None for a single row, which has none."""
    if stop - start == 1:
        return None
    return torch.arange(stop, device=device)[None, :] > torch.arange(start, stop, device=device)[:, None]
