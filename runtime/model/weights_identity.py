"""Which weights these are: within a process at no cost, and for files by their content."""

from __future__ import annotations

import hashlib
from itertools import chain

import torch

from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.int8_weight import Int8Weight


def fingerprint(model: DS2DSModel) -> bytes:
    """Changes when weights are replaced or changed in place, as by an optimiser's step or `load_state_dict`.

    So it does when they are quantised, and when batch-invariant execution is turned on or off: what is cached then was
    computed otherwise.

    Of use within a process only. What is written through `.data` goes unseen, as it does to autograd.
    """
    weights = [
        (
            id(weight),
            weight.data_ptr(),
            weight.dtype,
            tuple(weight.shape),
            0 if weight.is_inference() else weight._version,
        )
        # int8 weights are buffers.
        for weight in chain(model.parameters(), model.buffers())
    ]
    facts = (weights, _rounding(model), model.batch_invariant)
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).digest()


def digest(model: DS2DSModel) -> str:
    """SHA-256 of all weights with their names, shapes and dtypes, as 64 hex digits; another where batch-invariant.

    Such a model promises the same bits always: what another computed would bring in others.
    """
    hashed = hashlib.sha256("".join(_rounding(model)).encode())
    if model.batch_invariant:
        hashed.update(b"batch invariant\n")
    for name, weight in sorted(model.state_dict().items()):
        hashed.update(f"{name} {weight.dtype} {list(weight.shape)}\n".encode())
        hashed.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def _rounding(model: DS2DSModel) -> list[str]:
    """The int8 weights whose inputs are rounded too: with the same numbers, another model."""
    return [f"{name} is dynamic\n" for name, m in model.named_modules() if isinstance(m, Int8Weight) and m.dynamic]
