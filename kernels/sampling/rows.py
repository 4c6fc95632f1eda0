"""The settings of the rows to sample, checked and brought to the host, and what comes back for each."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

MAX_VOCAB = 2**18

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class SampleStatus(IntEnum):
    """What ``SampleOutput.status`` says of a row."""

    OK = 0
    NOT_FINITE = 1  # a NaN or +inf among the logits
    EMPTY = 2  # every logit is -inf
    INVALID = 3  # a setting out of range, where it was not read back to be refused


class SampleOutput(NamedTuple):
    """tokens int64 [B], logprobs float32 [B], status int32 [B] (a ``SampleStatus``).

    ``logprobs`` is the log-softmax of the row's logits as given, before any setting. Where status is not OK the
    token is -1 and the log-probability NaN.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    status: torch.Tensor


class Rows(NamedTuple):
    """The settings of some rows, on the host."""

    temperature: Floats
    top_k: NDArray[np.int32]
    top_p: Floats
    min_p: Floats
    seed: Ints
    position: Ints

    def take(self, index: slice | Ints) -> Rows:
        return Rows._make(column[index] for column in self)


def on_host(tensor: torch.Tensor) -> NDArray:
    """The tensor's values as an array, whatever device it is on."""
    return tensor.numpy(force=True)


def check_shapes(logits: torch.Tensor, **settings: tuple[torch.Tensor, torch.dtype]) -> None:
    """Raise ValueError unless logits are floats [B, V] and each setting is a tensor [B] of its dtype."""
    if logits.ndim != 2 or not 1 <= logits.shape[1] <= MAX_VOCAB:
        raise ValueError(f"logits must be [B, V] with 1 <= V <= {MAX_VOCAB}, got shape {tuple(logits.shape)}")
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"logits must be float32, bfloat16 or float16, got {logits.dtype}")
    for name, (tensor, dtype) in settings.items():
        if tensor.shape != logits.shape[:1]:
            raise ValueError(f"{name} must have shape [{logits.shape[0]}], got {list(tensor.shape)}")
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")


def check_values(rows: Rows) -> None:
    """Raise ValueError, naming setting, value and row, unless every value is in range."""
    t, k, p, m, _, position = rows
    checks = (
        ("temperature", "must be >= 0 and finite", t, (t >= 0) & (t < np.inf)),
        ("top_k", "must be >= 0", k, k >= 0),
        ("top_p", "must be in (0, 1]", p, (p > 0) & (p <= 1)),
        ("min_p", "must be in [0, 1]", m, (m >= 0) & (m <= 1)),
        ("position", "must be >= 0", position, position >= 0),
    )
    # One test for the good case, which every token pays for.
    if not (checks[0][3] & checks[1][3] & checks[2][3] & checks[3][3] & checks[4][3]).all():
        for check in checks:
            _require(*check)


def check_penalty_shapes(logits: torch.Tensor, penalty: torch.Tensor | None, listed: torch.Tensor | None) -> None:
    """Raise ValueError unless a penalty [B] and listed tokens [B, N] fit the logits, or both are None."""
    if penalty is None and listed is None:
        return
    if penalty is None or listed is None:
        missing = "repetition_penalty" if penalty is None else "penalty_tokens"
        raise ValueError(f"repetition_penalty and penalty_tokens go together: {missing} is missing")
    batch = logits.shape[0]
    check_shapes(logits, repetition_penalty=(penalty, torch.float32))
    if listed.ndim != 2 or listed.shape[0] != batch or listed.dtype != torch.int64:
        got = f"{listed.dtype} {list(listed.shape)}"
        raise ValueError(f"penalty_tokens must be torch.int64 [{batch}, N], padded with -1, got {got}")


def check_penalty_values(by: Floats, tokens: Ints, vocab: int) -> None:
    """Raise ValueError unless penalties [B] and listed tokens [B, N] are in range."""
    _require("repetition_penalty", "must be > 0 and finite", by, (by > 0) & (by < np.inf))
    in_range = ((tokens >= -1) & (tokens < vocab)).all(axis=1)
    if not in_range.all():
        row = int(np.argmin(in_range))
        worst = next(int(t) for t in tokens[row] if not -1 <= t < vocab)
        raise ValueError(f"penalty_tokens must be in [0, {vocab}), or -1 for padding, got {worst} in row {row}")


def _require(name: str, rule: str, values: NDArray, good: Bools) -> None:
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(f"{name} {rule}, got {values[row]} in row {row}")
