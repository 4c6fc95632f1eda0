"""Attention over the KV arena in plain PyTorch: what other paths are held to.

A CPU runs on it without compiled code, and in other dtypes than float32.

Each document is one contiguous slice of the arena, so what a chunk's tokens read of a document is two matrix products
on views of the arena, without copies.

No row's largest score is looked for before the exponential: queries and keys have unit mean square (the model norms
them per head), so a scaled score lies within +-sqrt(head_dim), and its exponential far within float32. Exponentials
and weighted values of all documents simply add up, in any order and in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds2ds.attention.rotary import Rotary, rotate
from ds2ds.attention.view import Chunk, Read, reads
from ds2ds.cache.document_store import DocumentStore

KEY_BLOCK = 2048
"""Most keys scored at once: bounds the memory that scores take."""

SLAB_ROWS = 512
"""Most rows whose queries are rotated at once for the documents they read: few calls, and they stay in the cache."""


@dataclass(frozen=True)
class _Piece:
    """Some of a chunk's rows, the keys they read in slots [start, stop), and what is hidden (bool [rows, keys])."""

    rows: slice
    start: int
    stop: int
    future: Tensor | None = None


@dataclass(frozen=True)
class _Slab:
    """Rows of a chunk, each as often as it reads another document, and how its query is turned for that one.

    Attributes:
        rows: int64 [n], indices into the chunk.
        cos, sin: float32 [n, 1, head_dim].
        pieces: (rows of the slab, what they read).
    """

    rows: Tensor
    cos: Tensor
    sin: Tensor
    pieces: tuple[tuple[slice, _Piece], ...]


@dataclass(frozen=True)
class _View:
    """A chunk: its rows of the flat batch, its own document's pieces, and other documents'."""

    rows: slice
    own: tuple[_Piece, ...]
    others: tuple[_Slab, ...]


class PlainAttention:
    """What the backbone calls for each layer of one flat batch: stores the new keys and values, then reads.

    Every document that a chunk reads must be resident and computed as far as it is read.
    """

    def __init__(self, store: DocumentStore, rotary: Rotary, chunks: Sequence[Chunk]) -> None:
        self.arena = store.arena
        device = self.arena.data.device
        # The softmax scale goes into the queries' rotation, which costs nothing.
        scale = self.arena.data.shape[-1] ** -0.5
        self.writes: list[tuple[slice, int]] = []
        self.views: list[_View] = []
        at = 0
        for chunk in chunks:
            base = store.start(chunk.document)
            rows = slice(at, at + len(chunk))
            self.writes.append((rows, base + chunk.start))
            others = _slabs(store, rotary, scale, chunk)
            self.views.append(_View(rows, tuple(_own_pieces(base, chunk, device)), others))
            at += len(chunk)
        positions = torch.cat([torch.arange(chunk.start, chunk.stop, device=device) for chunk in chunks])
        self.cos, self.sin = (torch.stack([t * scale, t], dim=1) for t in rotary.at(positions))

    def __call__(self, layer: int, qk: Tensor, v: Tensor) -> Tensor:
        """qk [rows, 2, heads, head_dim], unrotated, v [rows, heads, head_dim]; returns what each row reads, like v."""
        q, k = rotate(qk, self.cos, self.sin).unbind(1)
        for rows, slot in self.writes:
            self.arena.write(layer, slot, k[rows], v[rows])
        if len(self.views) == 1:
            return self._attend(layer, q, qk[:, 0], self.views[0])
        out = torch.empty_like(v)
        for view in self.views:
            out[view.rows] = self._attend(layer, q[view.rows], qk[view.rows, 0], view)
        return out

    def _attend(self, layer: int, own: Tensor, unrotated: Tensor, view: _View) -> Tensor:
        """What a chunk's rows read; `own` are their queries as their own document sees them, scaled."""
        first, *rest = view.own
        total, out = self._read(layer, own.transpose(0, 1), first)
        for piece in rest:
            _add(total, out, piece.rows, self._read(layer, own.transpose(0, 1), piece))
        for slab in view.others:
            turned = rotate(unrotated[slab.rows], slab.cos, slab.sin).transpose(0, 1)
            for rows, piece in slab.pieces:
                _add(total, out, piece.rows, self._read(layer, turned[:, rows], piece))
        return (out / total).transpose(0, 1).to(own.dtype)

    def _read(self, layer: int, queries: Tensor, piece: _Piece) -> tuple[Tensor, Tensor]:
        """Of queries [heads, rows, head_dim], the sum of exponentials [heads, rows, 1] and the values they weigh."""
        keys, values = self.arena.read(layer, piece.start, piece.stop)
        scores = queries @ keys.mT
        if piece.future is not None:
            scores.masked_fill_(piece.future, -torch.inf)
        # At least float32: in half precision exponentials would overflow, and sums lose what is small.
        weights = scores.to(torch.promote_types(scores.dtype, torch.float32)).exp_()
        values = values.to(weights.dtype)
        read = weights @ values
        if piece.future is not None and read.isnan().any():
            # Of a value that is infinite or NaN 0 times is NaN, too: row by row, each with what it sees alone.
            seen = [(slice(row, row + 1), ~future) for row, future in enumerate(piece.future)]
            read = torch.cat([weights[:, row, keys] @ values[:, keys] for row, keys in seen], 1)
        return weights.sum(-1, keepdim=True), read


def _add(total: Tensor, out: Tensor, rows: slice, part: tuple[Tensor, Tensor]) -> None:
    total[:, rows] += part[0]
    out[:, rows] += part[1]


def _own_pieces(base: int, chunk: Chunk, device: torch.device) -> list[_Piece]:
    """A chunk's own document: first the chunk itself, of which a row sees nothing after it, then all before it."""
    rows = slice(0, len(chunk))
    if len(chunk) == 1:
        return _blocks(rows, base, base + chunk.stop)
    at = torch.arange(len(chunk), device=device)
    itself = _Piece(rows, base + chunk.start, base + chunk.stop, at[None, :] > at[:, None])
    return [itself, *_blocks(rows, base, base + chunk.start)]


def _blocks(rows: slice, start: int, stop: int) -> list[_Piece]:
    return [_Piece(rows, at, min(at + KEY_BLOCK, stop)) for at in range(start, stop, KEY_BLOCK)]


def _slabs(store: DocumentStore, rotary: Rotary, scale: float, chunk: Chunk) -> tuple[_Slab, ...]:
    """The other documents that a chunk reads, in slabs of at most SLAB_ROWS rows (or of one document)."""
    slabs: list[_Slab] = []
    slab: list[Read] = []
    for read in reads(chunk.document, chunk.start, chunk.stop):
        if slab and sum(map(len, slab)) + len(read) > SLAB_ROWS:
            slabs.append(_slab(store, rotary, scale, chunk, slab))
            slab = []
        slab.append(read)
    if slab:
        slabs.append(_slab(store, rotary, scale, chunk, slab))
    return tuple(slabs)


def _slab(store: DocumentStore, rotary: Rotary, scale: float, chunk: Chunk, slab: Sequence[Read]) -> _Slab:
    rows: list[int] = []
    positions: list[int] = []
    pieces: list[tuple[slice, _Piece]] = []
    for read in slab:
        within = slice(len(rows), len(rows) + len(read))
        of_chunk = slice(read.start - chunk.start, read.stop - chunk.start)
        rows.extend(range(of_chunk.start, of_chunk.stop))
        positions.extend(range(read.start + read.delta, read.stop + read.delta))
        slot = store.start(read.target)
        pieces.extend((within, piece) for piece in _blocks(of_chunk, slot, slot + len(read.target.tokens)))
    device = store.arena.data.device
    cos, sin = rotary.at(torch.tensor(positions, device=device))
    return _Slab(torch.tensor(rows, device=device), cos * scale, sin * scale, tuple(pieces))
