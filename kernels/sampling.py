"""Sampling of one token per row, each row under its own settings: the reference and the CPU path.

The rule, per row, in this order (DESIGN.md, section 4):

1. Repetition penalty (Keskar et al., "CTRL", 2019): the logit x of each listed token, once however often it is
   listed, becomes x / penalty if positive, else x * penalty. Call the result x, float32.
2. Temperature T > 0: y = (x - max x) / T in float32. T = 0 takes the largest x, lowest id, and stops here.
3. Rank by x, larger first, ties to the lower id. Top-k keeps the first k.
4. Softmax over the survivors: w = exp(y) in float32; the mass of a token is the integer floor(w * 2**44).
5. Top-p keeps a token if the masses ranked before it sum to less than ceil(p * total), so the one that crosses
   p stays. p = 1 is off. The product is taken in float64.
6. Min-p keeps a token if w >= min_p, since w is its probability over that of the likeliest one.
7. The token is the one with the largest y + Gumbel noise in float32 (see philox.py), ties to the lower id.

Integer masses, because integers sum to the same total in any order: the kept set and the log-probability of a row
do not depend on the batch, on threads or, in a kernel, on how a row is split. 2**44 leaves room for 2**18 tokens
and cuts off less than 2**-44 of the likeliest token's probability from each.

A logit of -inf is a token that is not there, in every statistic. A row with a NaN or +inf has no softmax, before
or after the penalty: status NOT_FINITE.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .philox import gumbel_noise, gumbel_noise_at

MAX_VOCAB = 2**18
_MASS_ONE = np.float32(2.0**44)
_CHUNK = 2**16  # logits worked on at once: what the loops touch stays in the L2 cache
_PAD = np.uint64(2**64 - 1)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class SampleStatus(IntEnum):
    """What ``SampleOutput.status`` says of a row."""

    OK = 0
    NOT_FINITE = 1  # a NaN or +inf among the logits
    EMPTY = 2  # every logit is -inf


class SampleOutput(NamedTuple):
    """tokens int64 [B], logprobs float32 [B], status int32 [B] (a ``SampleStatus``).

    ``logprobs`` is the log-softmax of the row's logits as given, before any setting. Where status is not OK the
    token is -1 and the log-probability NaN.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    status: torch.Tensor


def sample_rows(
    logits: torch.Tensor,
    *,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    repetition_penalty: torch.Tensor | None = None,
    penalty_tokens: torch.Tensor | None = None,
    backend: str = "auto",
) -> SampleOutput:
    """Sample one token per row. The module's docstring states the rule.

    Args:
        logits: float32, bfloat16 or float16 [B, V], any strides, 1 <= V <= 262,144. Not modified.
        temperature: float32 [B], >= 0 and finite; 0 is greedy.
        top_k: int32 [B], >= 0; 0, or V and above, is off.
        top_p: float32 [B] in (0, 1]; 1 is off.
        min_p: float32 [B] in [0, 1]; 0 is off.
        seed: int64 [B], any value.
        position: int64 [B], >= 0. A row's noise is a function of (seed, position, token id) alone.
        repetition_penalty: float32 [B], > 0 and finite; 1 is off. Given if and only if penalty_tokens is.
        penalty_tokens: int64 [B, N], the token ids each row penalises; -1 is padding, repeats count once.
        backend: "torch" computes on the host, whatever device the tensors are on; "auto" is "torch" for now.

    Returns:
        SampleOutput, on the device of the logits.

    Raises:
        ValueError: a shape, dtype or value is not as above.
        NotImplementedError: backend "triton".
    """
    if backend == "triton":
        raise NotImplementedError("backend 'triton' is not built yet; use backend='torch'")
    if backend not in ("auto", "torch"):
        raise ValueError(f"backend must be 'auto', 'triton' or 'torch', got {backend!r}")
    _check_shapes(
        logits,
        temperature=(temperature, torch.float32),
        top_k=(top_k, torch.int32),
        top_p=(top_p, torch.float32),
        min_p=(min_p, torch.float32),
        seed=(seed, torch.int64),
        position=(position, torch.int64),
    )
    rows = _Rows(*(_host(t) for t in (temperature, top_k, top_p, min_p, seed, position)))
    _check_values(rows)
    penalty = _check_penalty(logits, repetition_penalty, penalty_tokens)

    raw = _host(logits.float())
    batch, vocab = raw.shape
    tokens = np.empty(batch, dtype=np.int64)
    logprobs = np.empty(batch, dtype=np.float32)
    status = np.empty(batch, dtype=np.int32)
    step = max(1, _CHUNK // vocab)
    # Infinities, NaN and division by tiny temperatures are part of the rule, not accidents.
    with np.errstate(all="ignore"):
        for start in range(0, batch, step):
            part = slice(start, start + step)
            chunk = np.ascontiguousarray(raw[part])
            x = chunk if penalty is None else _penalised(chunk, penalty[0][part], penalty[1][part])
            tokens[part], status[part] = _sample_chunk(x, rows.take(part))
            logprobs[part] = _logprob(chunk, tokens[part])
    logprobs[status != SampleStatus.OK] = np.nan
    device = logits.device
    return SampleOutput(*(torch.from_numpy(a).to(device) for a in (tokens, logprobs, status)))


class _Rows(NamedTuple):
    """The settings of some rows, on the host."""

    temperature: Floats
    top_k: NDArray[np.int32]
    top_p: Floats
    min_p: Floats
    seed: Ints
    position: Ints

    def take(self, index: slice | Ints) -> _Rows:
        return _Rows(*(column[index] for column in self))


def _penalised(raw: Floats, penalty: Floats, listed: Ints) -> Floats:
    x = raw.copy()
    row, slot = np.nonzero(listed >= 0)
    token = listed[row, slot]
    # Read from the raw logits and assigned, so a token listed twice gets the same value twice.
    old, by = raw[row, token], penalty[row]
    x[row, token] = np.where(old > 0, old / by, old * by)
    return x


def _sample_chunk(x: Floats, rows: _Rows) -> tuple[Ints, NDArray[np.int32]]:
    """Tokens and statuses of contiguous rows x [b, V]; each way of choosing runs once for all rows it suits."""
    count, vocab = x.shape
    top = x.max(axis=1)
    status = np.where(top == -np.inf, SampleStatus.EMPTY, SampleStatus.OK).astype(np.int32)
    status[~(top < np.inf)] = SampleStatus.NOT_FINITE
    greedy = rows.temperature == 0
    by_rank = (rows.top_k > 0) & (rows.top_k < vocab) & ~greedy
    by_mass = ((rows.top_p < 1) | (rows.min_p > 0)) & ~greedy & ~by_rank
    plain = ~(greedy | by_rank | by_mass)

    tokens = np.full(count, -1, dtype=np.int64)
    ways = (
        (greedy, _choose_greedy),
        (plain, _choose_any),
        (by_rank, _choose_top_k),
        (by_mass, _choose_by_mass),
    )
    for suits, choose in ways:
        index = np.flatnonzero(suits & (status == SampleStatus.OK))
        if index.size == count:
            tokens[:] = choose(x, top, rows)
        elif index.size:
            tokens[index] = choose(x[index], top[index], rows.take(index))
    return tokens, status


def _choose_greedy(x: Floats, top: Floats, rows: _Rows) -> Ints:
    return x.argmax(axis=1)


def _choose_any(x: Floats, top: Floats, rows: _Rows) -> Ints:
    score = _scaled(x, top, rows)
    score += gumbel_noise(rows.seed, rows.position, x.shape[1])
    return score.argmax(axis=1)


def _choose_top_k(x: Floats, top: Floats, rows: _Rows) -> Ints:
    ids, present = _ranked(x, x >= _top_k_bound(x, int(rows.top_k.max()))[:, None])
    present &= np.arange(ids.shape[1]) < rows.top_k[:, None]
    return _choose_ranked(x, top, rows, ids, present, None)


def _choose_by_mass(x: Floats, top: Floats, rows: _Rows) -> Ints:
    y = _scaled(x, top, rows)
    total = _mass(np.exp(y)).sum(axis=1)
    # Tokens of at most `spare` mass sum to no more than what top-p may drop, so only the others need ranking.
    # The margin covers the rounding of exp: what is ranked is a superset, and the rule is applied to it exactly.
    spare = np.where(rows.top_p < 1, total - _target(total, rows.top_p), 0) // x.shape[1]
    bound = np.log(np.maximum(spare / float(_MASS_ONE), rows.min_p)) - 0.01
    ids, present = _ranked(x, y >= bound.astype(np.float32)[:, None])
    return _choose_ranked(x, top, rows, ids, present, total)


def _choose_ranked(
    x: Floats, top: Floats, rows: _Rows, ids: Ints, present: Bools, total: Ints | None
) -> Ints:
    """Top-p, min-p and the draw over tokens in rank order (ids [b, N], those that count marked in ``present``).

    ``total`` [b] is the mass of all survivors of top-k; None if the tokens present are all of them.
    """
    every = np.arange(ids.shape[0])[:, None]
    y = (x[every, ids] - top[:, None]) / rows.temperature[:, None]
    w = np.exp(y)
    mass = np.where(present, _mass(w), 0)
    upto = mass.cumsum(axis=1)
    target = _target(upto[:, -1] if total is None else total, rows.top_p)
    keep = present & (upto - mass < target[:, None]) & (w >= rows.min_p[:, None])

    width = int(np.flatnonzero(keep.any(axis=0))[-1]) + 1
    ids, keep = ids[:, :width], keep[:, :width]
    if width * 4 > x.shape[1]:
        noise = gumbel_noise(rows.seed, rows.position, x.shape[1])[every, ids]
    else:
        noise = gumbel_noise_at(rows.seed, rows.position, ids)
    score = np.where(keep, y[:, :width] + noise, -np.inf)
    return np.where(score == score.max(axis=1, keepdims=True), ids, MAX_VOCAB).min(axis=1)


def _top_k_bound(x: Floats, k: int) -> Floats:
    """[b]: a value that at least k tokens of the row reach, and few more do; -inf if there is no cheap one."""
    blocks = x.shape[1] // 16
    if blocks < k:
        return np.full(x.shape[0], -np.inf, dtype=np.float32)
    # The k-th largest of the blocks' maxima: k blocks each hold a token that reaches it.
    maxima = x[:, : blocks * 16].reshape(-1, 16, blocks).max(axis=1)
    return np.partition(maxima, blocks - k, axis=1)[:, blocks - k]


def _ranked(x: Floats, mask: Bools) -> tuple[Ints, Bools]:
    """Token ids under the mask, by x descending then id ascending: ids [b, N] and which of them are not padding.

    N is the largest count of a row. Tokens at -inf are left out; padding ids are 0.
    """
    vocab = x.shape[1]
    flat = np.flatnonzero(mask & (x > -np.inf))
    row = flat // vocab
    counts = np.bincount(row, minlength=x.shape[0])
    slot = np.arange(flat.size) - np.repeat(counts.cumsum() - counts, counts)
    # One unsigned integer orders by value and id: float bits, made to ascend as the value descends, then the id.
    bits = (x.ravel()[flat] + np.float32(0)).view(np.uint32)  # -0.0 + 0.0 is 0.0: the two zeros tie
    bits = np.where(bits >> 31, bits, bits ^ np.uint32(0x7FFFFFFF))
    keys = np.full((x.shape[0], counts.max()), _PAD)
    keys[row, slot] = bits.astype(np.uint64) << np.uint64(32) | (flat - row * vocab).astype(np.uint64)
    keys.sort(axis=1)
    present = keys != _PAD
    return np.where(present, keys & np.uint64(0xFFFFFFFF), 0).astype(np.int64), present


def _scaled(x: Floats, top: Floats, rows: _Rows) -> Floats:
    y = x - top[:, None]
    y /= rows.temperature[:, None]
    return y


def _mass(weight: Floats) -> Ints:
    return (weight * _MASS_ONE).astype(np.int64)


def _target(total: Ints, top_p: Floats) -> Ints:
    """The mass at which top-p stops; beyond any sum where it is off."""
    product = np.ceil(total * top_p.astype(np.float64)).astype(np.int64)
    return np.where(top_p < 1, product, np.iinfo(np.int64).max)


def _logprob(raw: Floats, tokens: Ints) -> Floats:
    top = raw.max(axis=1)
    total = _mass(np.exp(raw - top[:, None])).sum(axis=1) / float(_MASS_ONE)
    chosen = raw[np.arange(raw.shape[0]), tokens].astype(np.float64)
    return (chosen - top - np.log(total)).astype(np.float32)


def _host(tensor: torch.Tensor) -> NDArray:
    return tensor.detach().cpu().numpy()


def _check_shapes(logits: torch.Tensor, **settings: tuple[torch.Tensor, torch.dtype]) -> None:
    if logits.ndim != 2 or not 1 <= logits.shape[1] <= MAX_VOCAB:
        raise ValueError(f"logits must be [B, V] with 1 <= V <= {MAX_VOCAB}, got shape {tuple(logits.shape)}")
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"logits must be float32, bfloat16 or float16, got {logits.dtype}")
    for name, (tensor, dtype) in settings.items():
        if tensor.shape != logits.shape[:1]:
            raise ValueError(f"{name} must have shape [{logits.shape[0]}], got {list(tensor.shape)}")
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")


def _check_values(rows: _Rows) -> None:
    t, p, m = rows.temperature, rows.top_p, rows.min_p
    _require("temperature", "must be >= 0 and finite", t, (t >= 0) & (t < np.inf))
    _require("top_k", "must be >= 0", rows.top_k, rows.top_k >= 0)
    _require("top_p", "must be in (0, 1]", p, (p > 0) & (p <= 1))
    _require("min_p", "must be in [0, 1]", m, (m >= 0) & (m <= 1))
    _require("position", "must be >= 0", rows.position, rows.position >= 0)


def _check_penalty(
    logits: torch.Tensor, penalty: torch.Tensor | None, listed: torch.Tensor | None
) -> tuple[Floats, Ints] | None:
    if penalty is None and listed is None:
        return None
    if penalty is None or listed is None:
        missing = "repetition_penalty" if penalty is None else "penalty_tokens"
        raise ValueError(f"repetition_penalty and penalty_tokens go together: {missing} is missing")
    batch, vocab = logits.shape
    _check_shapes(logits, repetition_penalty=(penalty, torch.float32))
    if listed.ndim != 2 or listed.shape[0] != batch or listed.dtype != torch.int64:
        got = f"{listed.dtype} {list(listed.shape)}"
        raise ValueError(f"penalty_tokens must be torch.int64 [{batch}, N], padded with -1, got {got}")
    by, tokens = _host(penalty), _host(listed)
    _require("repetition_penalty", "must be > 0 and finite", by, (by > 0) & (by < np.inf))
    in_range = ((tokens >= -1) & (tokens < vocab)).all(axis=1)
    if not in_range.all():
        row = int(np.argmin(in_range))
        worst = [int(t) for t in tokens[row] if not -1 <= t < vocab][0]
        raise ValueError(
            f"penalty_tokens must be in [0, {vocab}), or -1 for padding, got {worst} in row {row}"
        )
    return by, tokens


def _require(name: str, rule: str, values: NDArray, good: Bools) -> None:
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(f"{name} {rule}, got {values[row]} in row {row}")
