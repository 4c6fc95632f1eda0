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
from .row_settings import MAX_VOCAB, Bools, Floats, Ints, Rows, check_penalty, check_shapes, check_values, host

_MASS_ONE = np.float32(2.0**44)
_CHUNK = 2**16  # logits worked on at once: what the loops touch stays in the L2 cache
_PAD = np.uint64(2**64 - 1)


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
    check_shapes(
        logits,
        temperature=(temperature, torch.float32),
        top_k=(top_k, torch.int32),
        top_p=(top_p, torch.float32),
        min_p=(min_p, torch.float32),
        seed=(seed, torch.int64),
        position=(position, torch.int64),
    )
    rows = Rows._make(host(t) for t in (temperature, top_k, top_p, min_p, seed, position))
    check_values(rows)
    penalty = check_penalty(logits, repetition_penalty, penalty_tokens)

    raw = host(logits.float())
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
    logprobs[tokens < 0] = np.nan
    device = logits.device
    return SampleOutput(*(torch.from_numpy(a).to(device) for a in (tokens, logprobs, status)))


def _penalised(raw: Floats, penalty: Floats, listed: Ints) -> Floats:
    x = raw.copy()
    row, slot = np.nonzero(listed >= 0)
    token = listed[row, slot]
    # Read from the raw logits and assigned, so a token listed twice gets the same value twice.
    old, by = raw[row, token], penalty[row]
    x[row, token] = np.where(old > 0, old / by, old * by)
    return x


def _sample_chunk(x: Floats, rows: Rows) -> tuple[Ints, NDArray[np.int32]]:
    """Tokens and statuses of contiguous rows x [b, V]; each way of choosing runs once for all rows it suits."""
    count, vocab = x.shape
    top = x.max(axis=1)
    present, finite = top > -np.inf, top < np.inf  # both false for a NaN
    sound = present & finite
    greedy = sound & (rows.temperature == 0)
    drawn = sound & ~greedy
    ways = [(greedy, _choose_greedy)]
    if drawn.any():
        by_rank = drawn & (rows.top_k > 0) & (rows.top_k < vocab)
        by_mass = drawn & ~by_rank & ((rows.top_p < 1) | (rows.min_p > 0))
        plain = drawn & ~by_rank & ~by_mass
        ways += [(plain, _choose_any), (by_rank, _choose_top_k), (by_mass, _choose_by_mass)]

    tokens = np.full(count, -1, dtype=np.int64)
    for suits, choose in ways:
        index = np.flatnonzero(suits)
        if index.size == count:
            tokens[:] = choose(x, top, rows)
        elif index.size:
            tokens[index] = choose(x[index], top[index], rows.take(index))
    status = np.full(count, SampleStatus.OK, dtype=np.int32)
    status[~present & finite] = SampleStatus.EMPTY
    status[~finite] = SampleStatus.NOT_FINITE
    return tokens, status


def _choose_greedy(x: Floats, top: Floats, rows: Rows) -> Ints:
    return x.argmax(axis=1)


def _choose_any(x: Floats, top: Floats, rows: Rows) -> Ints:
    score = _scaled(x, top, rows)
    score += gumbel_noise(rows.seed, rows.position, x.shape[1])
    return score.argmax(axis=1)


def _choose_top_k(x: Floats, top: Floats, rows: Rows) -> Ints:
    ids, present = _ranked(x, x >= _top_k_bound(x, int(rows.top_k.max()))[:, None])
    present &= np.arange(ids.shape[1]) < rows.top_k[:, None]
    return _choose_ranked(x, top, rows, ids, present, None)


def _choose_by_mass(x: Floats, top: Floats, rows: Rows) -> Ints:
    y = _scaled(x, top, rows)
    total = _mass(np.exp(y)).sum(axis=1)
    # Tokens of at most `spare` mass sum to no more than what top-p may drop, so only the others need ranking.
    # The margin covers the rounding of exp: what is ranked is a superset, and the rule is applied to it exactly.
    spare = np.where(rows.top_p < 1, total - _target(total, rows.top_p), 0) // x.shape[1]
    bound = np.log(np.maximum(spare / float(_MASS_ONE), rows.min_p)) - 0.01
    ids, present = _ranked(x, y >= bound.astype(np.float32)[:, None])
    return _choose_ranked(x, top, rows, ids, present, total)


def _choose_ranked(x: Floats, top: Floats, rows: Rows, ids: Ints, present: Bools, total: Ints | None) -> Ints:
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
    rows, vocab = x.shape
    flat = np.flatnonzero(mask & (x > -np.inf))
    counts = np.diff(np.searchsorted(flat, np.arange(rows + 1) * vocab))
    width = int(counts.max())
    keys = _rank_keys(x.ravel()[flat], flat - np.repeat(np.arange(rows) * vocab, counts))
    if flat.size == rows * width:
        keys = keys.reshape(rows, width)
    else:
        padded = np.full((rows, width), _PAD)
        padded[np.arange(width) < counts[:, None]] = keys
        keys = padded
    keys.sort(axis=1)
    present = keys != _PAD
    ids = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    ids[~present] = 0
    return ids, present


def _rank_keys(values: Floats, ids: Ints) -> NDArray[np.uint64]:
    """Integers that ascend as the value descends and, on a tie, as the id ascends."""
    bits = (values + np.float32(0)).view(np.int32)  # -0.0 + 0.0 is 0.0: the two zeros tie
    # As unsigned integers the bits of negative floats descend already; those of positive ones are flipped.
    bits ^= ~(bits >> 31) & np.int32(0x7FFFFFFF)
    keys = bits.view(np.uint32).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= ids.view(np.uint64)
    return keys


def _scaled(x: Floats, top: Floats, rows: Rows) -> Floats:
    y = x - top[:, None]
    y /= rows.temperature[:, None]
    return y


def _mass(weight: Floats) -> Ints:
    return (weight * _MASS_ONE).astype(np.int64)


def _total_mass(y: Floats) -> Ints:
    """[b]: the mass of whole rows y [b, V], which are overwritten."""
    np.exp(y, out=y)
    y *= _MASS_ONE
    return y.astype(np.int64).sum(axis=1)


def _target(total: Ints, top_p: Floats) -> Ints:
    """The mass at which top-p stops; beyond any sum where it is off."""
    product = np.ceil(total * top_p.astype(np.float64)).astype(np.int64)
    return np.where(top_p < 1, product, np.iinfo(np.int64).max)


def _logprob(raw: Floats, tokens: Ints) -> Floats:
    top = raw.max(axis=1)
    total = _total_mass(raw - top[:, None]) / float(_MASS_ONE)
    chosen = raw[np.arange(raw.shape[0]), tokens].astype(np.float64)
    return (chosen - top - np.log(total)).astype(np.float32)
