"""Sampling on the host, in NumPy: the reference and the CPU path. The rule is in the package's docstring."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from .elementary import exp
from .philox import ESTIMATE_ERROR, gumbel_estimate, gumbel_noise_at
from .rows import MAX_VOCAB, Bools, Floats, Ints, Rows, SampleStatus, on_host

MASS_ONE = np.float32(2.0**44)
_CHUNK = 2**16  # logits worked on at once: what the loops touch stays in the L2 cache
_PIECE = 2**14  # of a row, for what takes many temporaries
_PAD = np.uint64(2**64 - 1)


def sample_on_host(
    logits: torch.Tensor, rows: Rows, penalty: tuple[Floats, Ints] | None
) -> tuple[Ints, Floats, NDArray[np.int32]]:
    """Tokens, log-probabilities and statuses [B] of logits [B, V], by settings that are known to be in range."""
    raw = on_host(logits.float())
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
    return tokens, logprobs, status


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
    ids = np.broadcast_to(np.arange(x.shape[1]), x.shape)
    noise = gumbel_estimate(rows.seed, rows.position, x.shape[1])
    return _draw_from_estimate(ids, _scaled(x, top, rows), noise, rows)


def _choose_top_k(x: Floats, top: Floats, rows: Rows) -> Ints:
    ids, present = _ranked(x, x >= _top_k_bound(x, int(rows.top_k.max()))[:, None])
    present &= np.arange(ids.shape[1]) < rows.top_k[:, None]
    return _choose_ranked(x, top, rows, ids, present, None)


def _choose_by_mass(x: Floats, top: Floats, rows: Rows) -> Ints:
    y = _scaled(x, top, rows)
    total = _total_mass(y, exp)
    # Tokens of at most `spare` mass sum to no more than what top-p may drop, so only the others need ranking.
    # The margin covers the rounding of exp: what is ranked is a superset, and the rule is applied to it exactly.
    spare = np.where(rows.top_p < 1, total - _target(total, rows.top_p), 0) // x.shape[1]
    bound = np.log(np.maximum(spare / float(MASS_ONE), rows.min_p)) - 0.01
    ids, present = _ranked(x, y >= bound.astype(np.float32)[:, None])
    return _choose_ranked(x, top, rows, ids, present, total)


def _choose_ranked(x: Floats, top: Floats, rows: Rows, ids: Ints, present: Bools, total: Ints | None) -> Ints:
    """Top-p, min-p and the draw over tokens in rank order (ids [b, N], those that count marked in ``present``).

    ``total`` [b] is the mass of all survivors of top-k; None if the tokens present are all of them.
    """
    every = np.arange(ids.shape[0])[:, None]
    y = (x[every, ids] - top[:, None]) / rows.temperature[:, None]
    w = exp(y)
    mass = np.where(present, _mass(w), 0)
    upto = mass.cumsum(axis=1)
    target = _target(upto[:, -1] if total is None else total, rows.top_p)
    keep = present & (upto - mass < target[:, None]) & (w >= rows.min_p[:, None])

    width = int(np.flatnonzero(keep.any(axis=0))[-1]) + 1
    ids, y = ids[:, :width], np.where(keep, y, -np.inf)[:, :width]
    if width * 4 > x.shape[1]:
        return _draw_from_estimate(ids, y, gumbel_estimate(rows.seed, rows.position, x.shape[1])[every, ids], rows)
    return _draw(ids, y, gumbel_noise_at(rows.seed, rows.position, ids))


def _draw(ids: Ints, y: Floats, noise: Floats) -> Ints:
    """The token of each row with the largest y + noise, ties to the lower id; ids, y and noise [b, N]."""
    score = y + noise
    return np.where(score == score.max(axis=1, keepdims=True), ids, MAX_VOCAB).min(axis=1)


def _draw_from_estimate(ids: Ints, y: Floats, noise: Floats, rows: Rows) -> Ints:
    """The same where the noise is an estimate: what comes near the largest score is looked at again."""
    score = y + noise
    row, slot = np.nonzero(score >= score.max(axis=1, keepdims=True) - np.float32(10 * ESTIMATE_ERROR))
    token = ids[row, slot]
    if row.size == len(ids):  # one in each row
        return token
    exact = y[row, slot] + gumbel_noise_at(rows.seed[row], rows.position[row], token[:, None])[:, 0]
    order = np.lexsort((token, -exact, row))
    return token[order[np.searchsorted(row, np.arange(len(ids)))]]


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
    return (weight * MASS_ONE).astype(np.int64)


def _total_mass(y: Floats, exp: Callable[[Floats], Floats]) -> Ints:
    """[b]: the mass of whole rows y [b, V]."""
    total = np.zeros(len(y), dtype=np.int64)
    for at in range(0, y.shape[1], _PIECE):
        total += _mass(exp(y[:, at : at + _PIECE])).sum(axis=1)
    return total


def _target(total: Ints, top_p: Floats) -> Ints:
    """The mass at which top-p stops; beyond any sum where it is off."""
    product = np.ceil(total * top_p.astype(np.float64)).astype(np.int64)
    return np.where(top_p < 1, product, np.iinfo(np.int64).max)


def _logprob(raw: Floats, tokens: Ints) -> Floats:
    top = raw.max(axis=1)
    total = _total_mass(raw - top[:, None], np.exp) / float(MASS_ONE)
    chosen = raw[np.arange(raw.shape[0]), tokens].astype(np.float64)
    return (chosen - top - np.log(total)).astype(np.float32)
