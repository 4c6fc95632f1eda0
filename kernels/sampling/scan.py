"""The first kernels: `mark`, for rows with a repetition penalty, and `scan`, which reads the logits once."""

from __future__ import annotations

import triton
import triton.language as tl

from ..overlap import take_over
from .arithmetic import LOG2_E
from .search import MANY, load_row

# Levels of a tile at which the mass above is estimated, and how far apart they are, in units of the temperature.
LEVELS = tl.constexpr(4)
LEVEL_WIDTH = tl.constexpr(3.0)
# Levels are multiples of their width. Beyond this one they are too close to tell apart in float32.
LAST_LEVEL = tl.constexpr(2.0**20)


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
    peak, first, raw_peak, raw_sum, anchor, level, level_all, group_peak,
    PENALISED: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One tile of one row: its largest logit; the sum of exp of the raw logits over the largest of them, NaN if one is
    NaN or +inf; for greedy rows, the first token that has the largest; for top-k, the largest logit of every group; for
    top-p, how much lies above each of some levels.
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
    everything = tl.sum(e)
    tl.store(raw_sum + at, everything)

    if (t > 0) & (k > 0) & (k < vocab):
        groups = tl.cdiv(vocab, GROUP)
        group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
        largest_of = tl.max(tl.reshape(x, (TILE // GROUP, GROUP)), axis=1)
        tl.store(group_peak + row * groups + group, largest_of, mask=group < groups)
    elif (t > 0) & (p < 1):
        # Levels of all tiles lie on one grid, the multiples of `step`, so that they can be added up. The first of a
        # tile's is the last that none of its tokens lies strictly above: `largest` <= anchor * step holds exactly,
        # since rounding is monotonic.
        step = t * LEVEL_WIDTH
        ratio = tl.div_rn(largest, step)
        at_level = tl.where(tl.abs(ratio) < LAST_LEVEL, tl.floor(ratio) + 1, float("nan"))
        at_level = tl.where(largest == -float("inf"), -float("inf"), at_level)
        tl.store(anchor + at, at_level)
        same = t == 1
        if PENALISED:
            same = False
        w = e
        if not same:
            w = tl.exp2((x - finite(largest)) * (LOG2_E / t))
            everything = tl.sum(w)
        sums = tl.sum(tl.reshape(above_4(x, w, at_level, step, TILE), (TILE // 4, LEVELS)), axis=0)
        tl.store(level + at * LEVELS + tl.arange(0, LEVELS), sums)
        tl.store(level_all + at, everything)


@triton.jit
def finite(x):
    """x, and 0 for -inf."""
    return tl.where(x > -float("inf"), x, 0.0)


@triton.jit
def above(x, w, at_level, step, i: tl.constexpr, TILE: tl.constexpr):
    """The weights above level i: [TILE // 4], four of a thread's tokens added up."""
    return tl.sum(tl.reshape(tl.where(x > (at_level - (i + 1)) * step, w, 0.0), (TILE // 4, 4)), axis=1)


@triton.jit
def above_2(x, w, at_level, step, i: tl.constexpr, TILE: tl.constexpr):
    return tl.join(above(x, w, at_level, step, i, TILE), above(x, w, at_level, step, i + 2, TILE))


@triton.jit
def above_4(x, w, at_level, step, TILE: tl.constexpr):
    """All levels side by side, in order, so that one exchange between threads adds up all of them."""
    return tl.join(above_2(x, w, at_level, step, 0, TILE), above_2(x, w, at_level, step, 1, TILE))
