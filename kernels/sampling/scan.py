"""The first kernels: `mark`, for rows with a repetition penalty, and `scan`, which reads the logits once."""

from __future__ import annotations

import triton
import triton.language as tl

from ..overlap import take_over
from .arithmetic import LOG2_E
from .search import MANY, load_row


@triton.jit(do_not_specialize=["width", "words"])
def mark(tokens, width, vocab, words, listed, refused, CHUNK: tl.constexpr):
    """One bit for each token of the vocabulary, set for those listed: tokens int64 [B, width] -> int32 [B, words].

    refused int32 [B] tells of ids that are no token and no padding.
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, CHUNK)
    for start in range(0, words, CHUNK):
        tl.store(listed + row * words + start + lane, 0, mask=start + lane < words)
    tl.debug_barrier()
    wrong = tl.zeros((CHUNK,), tl.int32)
    for start in range(0, width, CHUNK):
        token = tl.load(tokens + row * width + start + lane, mask=start + lane < width, other=-1)
        wrong |= ((token < -1) | (token >= vocab)).to(tl.int32)
        known = (token >= 0) & (token < vocab)
        bit = tl.full((CHUNK,), 1, tl.int32) << (token & 31).to(tl.int32)
        tl.atomic_or(listed + row * words + (token >> 5), bit, mask=known)
    tl.store(refused + row, tl.max(wrong))


@triton.jit(do_not_specialize=["words"])
def scan(
    logits, stride, vocab, listed, words, penalty, temperature, top_k, top_p,
    peak, first, raw_peak, raw_sum, weight, group_peak, group_weight,
    PENALISED: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One tile of one row: its largest logit; the sum of exp of the raw logits over the largest of them, NaN if one is
    NaN or +inf; for greedy rows, the first token that has the largest; for top-k and top-p, the largest logit of every
    group; for top-p alone, the weight of the tile and of every group, where its largest logit weighs 1.
    """
    if OVERLAP:
        take_over()
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    at = row * tl.num_programs(1) + tile
    ids = tile * TILE + tl.arange(0, TILE)
    t = tl.load(temperature + row)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    by = 1.0
    if PENALISED:
        by = tl.load(penalty + row)
    raw, x = load_row(logits + row * stride, listed + row * words, by, ids, vocab, PENALISED)

    largest = tl.max(x)
    tl.store(peak + at, largest)
    if t == 0:
        tl.store(first + at, tl.min(tl.where(x == largest, ids, MANY)))
    raw_largest = largest
    if PENALISED:
        raw_largest = tl.max(raw)
    tl.store(raw_peak + at, raw_largest)
    # exp of what is -inf is 0, also where all are. One that is NaN or +inf makes the sum NaN.
    e = tl.exp2((raw - finite(raw_largest)) * LOG2_E)
    tl.store(raw_sum + at, tl.sum(e))

    by_rank = (k > 0) & (k < vocab)
    if (t > 0) & (by_rank | (p < 1)):
        groups = tl.cdiv(vocab, GROUP)
        group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
        largest_of = tl.max(tl.reshape(x, (TILE // GROUP, GROUP)), axis=1)
        tl.store(group_peak + row * groups + group, largest_of, mask=group < groups)
        if not by_rank:
            same = t == 1
            if PENALISED:
                same = False
            w = e
            if not same:
                w = tl.exp2((x - finite(largest)) * (LOG2_E / t))
            weights = tl.sum(tl.reshape(w, (TILE // GROUP, GROUP)), axis=1)
            tl.store(group_weight + row * groups + group, weights, mask=group < groups)
            tl.store(weight + at, tl.sum(weights))


@triton.jit
def finite(x):
    """x, and 0 for -inf."""
    return tl.where(x > -float("inf"), x, 0.0)
