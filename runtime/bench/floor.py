"""The least time that a step can take: the bytes that it cannot do without, at the speed that this memory is read.

A step reads the weights once, whatever the batch, and for each request the keys and values in its view; a document
that several requests read counts once. With many requests arithmetic takes longer than that: the share says then how
far memory is from being what limits. Weights that fit a cache can be read faster than memory: a share may exceed 1.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from ds2ds.documents.document import Document
from ds2ds.engine.engine import Engine
from ds2ds.model.ds2ds_model import DS2DSModel

BUFFER_BYTES = {"cpu": 2**29, "cuda": 2**32}
"""Larger than any cache, and such that what surrounds the reading takes no time beside it."""


def make_buffer(device: torch.device) -> torch.Tensor:
    """What `read_bandwidth` reads. It has been read once, so that its pages are there."""
    buffer = torch.ones(BUFFER_BYTES[device.type] // 4, device=device)
    buffer.sum().item()
    return buffer


def read_bandwidth(buffer: torch.Tensor) -> float:
    """Bytes per second of reading the whole buffer once, as a plain sum does."""
    started = time.perf_counter()
    buffer.sum().item()
    return buffer.nbytes / (time.perf_counter() - started)


def weight_bytes(model: DS2DSModel) -> int:
    """Bytes of the weights that every step reads: all, but for an embedding that is not the lm head too."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    embedding, head = model.embedding.weight, model.loss_fn.weight
    if not isinstance(head, torch.Tensor) or head.data_ptr() != embedding.data_ptr():  # quantised, it is no tensor
        del tensors[embedding.data_ptr()]
    return sum(tensor.nbytes for tensor in tensors.values())


def token_bytes(engine: Engine) -> int:
    """Bytes of the keys and values of one token, in all layers, as the arena holds them."""
    arena = engine.store.arena
    return arena.data.nbytes // arena.slots


def tokens_in_view(drawn: Iterable[tuple[Document, int]]) -> int:
    """Tokens whose keys and values are read when, for each (document, index) given, the token at that index is drawn.

    That reads the `index` tokens before it, and the targets in view of the last of them; a target that several read
    (of one corpus: its title says which it is) once.
    """
    own = 0
    targets: dict[str, int] = {}
    for document, index in drawn:
        own += index
        targets |= {
            grant.target.title: len(grant.target.tokens) for grant in document.grants if grant.covers(index - 1)
        }
    return own + sum(targets.values())
