"""One token from one row of logits: the calls that front ends make, on top of ``ds2ds.kernels.sample_rows``."""

from __future__ import annotations

import torch

from ds2ds.errors import ConfigError
from ds2ds.kernels import SampleStatus, sample_rows

_ZERO = torch.zeros(1, dtype=torch.int64)
_MOST = torch.finfo(torch.float32).max
_MIN_P_OFF = torch.zeros(1, dtype=torch.float32)


def sample_token(logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> int:
    """Sample a token id.

    Args:
        logits: [V] or [1, V], any floating dtype (computed in float32).
        temperature: >= 0; 0 is greedy and leaves torch's generator alone.
        top_k: the number of likeliest tokens to keep, exactly, ties to the lower id; None or 0 is off.
        top_p: in (0, 1]; keep the likeliest tokens up to and including the one that crosses top_p; 1.0 is off.

    Draws a seed from torch's global CPU generator, so ``torch.manual_seed`` makes it reproducible.

    Raises:
        ConfigError: (a ValueError) a setting is out of range, the logits are not one row of floating-point
            numbers, or they hold a NaN, +inf or nothing but -inf.
    """
    if temperature < 0:
        raise ConfigError(f"temperature must be >= 0, got {temperature}")
    if not temperature <= _MOST:  # so that a NaN is refused
        raise ConfigError(f"temperature must be >= 0 and finite in float32, got {temperature}")
    if top_k is not None and top_k < 0:
        raise ConfigError(f"top_k must be >= 0, got {top_k}")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p must be in (0, 1], got {top_p}")
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(f"logits must be a tensor, got {type(logits).__name__}")
    if not logits.is_floating_point():
        raise ConfigError(f"logits must be floating point, got {logits.dtype}")
    row = logits if logits.ndim == 2 else logits[None]
    if row.ndim != 2 or row.shape[0] != 1 or row.shape[1] == 0:
        raise ConfigError(f"logits must be [V] or [1, V] with V >= 1, got shape {tuple(logits.shape)}")

    seed = torch.randint(2**63 - 1, (1,)) if temperature > 0 else _ZERO
    out = sample_rows(
        row.float(),
        temperature=torch.full((1,), temperature, dtype=torch.float32),
        top_k=torch.full((1,), min(top_k or 0, row.shape[1]), dtype=torch.int32),
        top_p=torch.full((1,), top_p, dtype=torch.float32),
        min_p=_MIN_P_OFF,
        seed=seed,
        position=_ZERO,
    )
    token = int(out.tokens)
    if token < 0:
        problem = "NaN or +inf" if out.status == SampleStatus.NOT_FINITE else "nothing but -inf"
        raise ConfigError(f"logits must leave a token to sample, got a row that holds {problem}")
    return token


def greedy_sample(logits: torch.Tensor) -> int:
    """The id of the largest logit, the lowest on a tie. Logits and errors as in ``sample_token``."""
    return sample_token(logits, temperature=0.0)
