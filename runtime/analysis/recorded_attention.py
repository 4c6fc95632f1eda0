"""Attention that tells what it did: the plainest softmax over everything in view, its weights kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds2ds.attention.rotary import Rotary, rotate
from ds2ds.attention.view import reads
from ds2ds.cache.document_store import DocumentStore
from ds2ds.documents.document import Document


@dataclass(frozen=True)
class Rows:
    """Tokens of a document, ascending, that all read the same documents at the same distances.

    Attributes:
        view: (document, delta) of each grant in view, nearest first (S3).
    """

    document: Document
    tokens: tuple[int, ...]
    view: tuple[tuple[Document, int], ...]

    @property
    def keys(self) -> int:
        """How many keys the last of them reads."""
        return self.tokens[-1] + 1 + sum(len(target.tokens) for target, _ in self.view)


def rows_by_view(document: Document, tokens: Sequence[int]) -> list[Rows]:
    """Ascending tokens of a document, split where what they read changes."""
    found: list[Rows] = []
    for token in tokens:
        view = tuple((read.target, read.delta) for read in reads(document, token, token + 1))
        if found and found[-1].view == view:
            found[-1] = Rows(document, (*found[-1].tokens, token), view)
        else:
            found.append(Rows(document, (token,), view))
    return found


Record = Callable[[int, Sequence[tuple[Document, Tensor]]], None]
"""Told (layer, parts): for the document itself and then each grant in view, the weights [rows, heads, keys] that it
received, float32 at least. All weights of a row and head add up to 1; its own document's go as far as the last row."""


class RecordedAttention:
    """What the backbone calls for each layer, for rows whose keys and values are in the arena already, and stay as
    they are; so are those of all that the rows read.

    One softmax over all keys in view: no kernel, no merging, on any device.
    """

    def __init__(self, store: DocumentStore, rotary: Rotary, rows: Rows, record: Record) -> None:
        self.arena, self.rotary, self.record = store.arena, rotary, record
        device = self.arena.data.device
        self.documents = [rows.document, *(target for target, _ in rows.view)]
        lengths = [rows.tokens[-1] + 1, *(len(target.tokens) for target, _ in rows.view)]
        self.slots = [(store.start(d), store.start(d) + n) for d, n in zip(self.documents, lengths, strict=True)]
        tokens = torch.tensor(rows.tokens, device=device)
        # The query is turned for each document that it reads, itself at distance 0; keys never move (S3).
        self.turns = [rotary.at(tokens + delta) for delta in (0, *(delta for _, delta in rows.view))]
        self.future = torch.arange(lengths[0], device=device)[None, :] > tokens[:, None]

    def __call__(self, layer: int, qk: Tensor, v: Tensor) -> Tensor:
        """qk [rows, 2, heads, head_dim], unrotated, v [rows, heads, head_dim]; returns what each row reads, like v."""
        exact = torch.promote_types(v.dtype, torch.float32)
        scores, values = [], []
        for (cos, sin), (start, stop) in zip(self.turns, self.slots, strict=True):
            keys, read = self.arena.read(layer, start, stop)
            queries = rotate(qk[:, 0], cos, sin).transpose(0, 1).to(exact)
            scores.append(queries @ keys.mT.to(exact) * v.shape[-1] ** -0.5)
            values.append(read.to(exact))
        scores[0].masked_fill_(self.future, -torch.inf)
        weights = torch.cat(scores, -1).softmax(-1)
        parts = weights.split([score.shape[-1] for score in scores], -1)
        self.record(layer, [(d, part.transpose(0, 1)) for d, part in zip(self.documents, parts, strict=True)])
        return (weights @ torch.cat(values, 1)).transpose(0, 1).to(v.dtype)
