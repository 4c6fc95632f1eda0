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
class _Span:
    """Slots [start, stop) of the arena as some rows read them: the queries' rotation, and a mask if not all."""

    start: int
    stop: int
    cos: Tensor
    sin: Tensor
    hidden: Tensor | None


@dataclass(frozen=True)
class _Rows:
    """Rows [start, stop) of the flat batch, and what they read."""

    start: int
    stop: int
    spans: tuple[_Span, ...]


class PlainAttention:
    """What the backbone calls for each layer of one flat batch: stores the new keys and values, then reads.

    Every document that a chunk reads must be resident and computed as far as it is read.
    """

    def __init__(self, cache: DocumentCache, rotary: Rotary, chunks: Sequence[Chunk]) -> None:
        self.arena = cache.arena
        self.scale = cache.arena.data.shape[-1] ** -0.5
        self.writes: list[tuple[int, int, int]] = []
        self.rows: list[_Rows] = []
        device = cache.arena.data.device
        at = 0
        positions = []
        for chunk in chunks:
            base = cache.start(chunk.document)
            self.writes.append((at, at + len(chunk), base + chunk.start))
            positions.append(torch.arange(chunk.start, chunk.stop, device=device))
            for segment in segments(chunk.document, chunk.start, chunk.stop):
                own = slice(segment.start, segment.stop)
                spans = [
                    _Span(
                        base,
                        base + segment.stop,
                        *rotary.at(own),
                        _future(segment.start, segment.stop, device),
                    )
                ]
                for read in segment.reads:
                    slot = cache.start(read.target)
                    moved = slice(segment.start + read.delta, segment.stop + read.delta)
                    spans.append(_Span(slot, slot + len(read.target.tokens), *rotary.at(moved), None))
                offset = at - chunk.start
                self.rows.append(_Rows(segment.start + offset, segment.stop + offset, tuple(spans)))
            at += len(chunk)
        self.cos, self.sin = rotary.at(torch.cat(positions))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [rows, heads, head_dim], unrotated; returns what each row reads, of q's shape."""
        k = rotate(k, self.cos, self.sin)
        for start, stop, slot in self.writes:
            self.arena.write(layer, slot, k[start:stop], v[start:stop])
        q = q * self.scale
        out = torch.empty_like(q)
        for rows in self.rows:
            out[rows.start : rows.stop] = self._attend(layer, q[rows.start : rows.stop], rows.spans)
        return out

    def _attend(self, layer: int, q: Tensor, spans: tuple[_Span, ...]) -> Tensor:
        scores, values = [], []
        for span in spans:
            keys, value = self.arena.read(layer, span.start, span.stop)
            score = rotate(q, span.cos, span.sin).transpose(0, 1) @ keys.mT
            if span.hidden is not None:
                score = score.masked_fill_(span.hidden, -torch.inf)
            scores.append(score)
            values.append(value)
        if len(scores) == 1:
            return (scores[0].softmax(-1) @ values[0]).transpose(0, 1)
        weights = torch.cat(scores, dim=-1).softmax(-1).split([score.shape[-1] for score in scores], dim=-1)
        read = weights[0] @ values[0]
        for weight, value in zip(weights[1:], values[1:], strict=True):
            read += weight @ value
        return read.transpose(0, 1)


def _future(start: int, stop: int, device: torch.device) -> Tensor | None:
    """bool [stop - start, stop]: the keys after each row's own; None for a single row, which has none."""
    if stop - start == 1:
        return None
    return torch.arange(stop, device=device)[None, :] > torch.arange(start, stop, device=device)[:, None]
