"""Which weights these are: within a process at no cost, and for files by their content."""

from __future__ import annotations

import hashlib

import torch

from ds2ds.model.ds2ds_model import DS2DSModel


def fingerprint(model: DS2DSModel) -> bytes:
    """Changes when weights are replaced or changed in place, as by an optimiser's step or `load_state_dict`.

    Of use within a process only. What is written through `.data` goes unseen, as it does to autograd.
    """
    facts = [
        (
            id(weight),
            weight.data_ptr(),
            weight.dtype,
            tuple(weight.shape),
            0 if weight.is_inference() else weight._version,
        )
        for weight in model.parameters()
    ]
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).digest()


def digest(model: DS2DSModel) -> str:
    """SHA-256 of all weights with their names, shapes and dtypes, as 64 hex digits."""
    hashed = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        hashed.update(f"{name} {weight.dtype} {list(weight.shape)}\n".encode())
        hashed.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
