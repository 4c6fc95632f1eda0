"""Where top-p is going to cut: between which two logits, from rough sums, and nearer, from a sample.

Both only save time. `finish` adds up exact masses, and looks elsewhere if the cut is not there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import LOG2_E
from .scan import LEVEL_WIDTH, LEVELS
from .search import load_row

# How far off a rough sum may be: float32 rounding of arguments up to 88, twice, the hardware's exp, and masses that
# are cut off at 2**-44, come to less than half of this.
ROUGH = tl.constexpr(1e-4)

# What is between two levels is cut into so many parts, and so is again what the cut is found to be in: within so many
# standard errors.
PARTS = tl.constexpr(16)
SIGMAS = tl.constexpr(5.0)


@triton.jit
def bracket(p, t, largest, peaks, anchors, here, levels, total):
    """The levels between which top-p cuts: the lower one's tokens may be kept, the upper one's may not be.

    From rough sums, so with a margin: all tokens above the upper level are short of the goal, and those above the lower
    one are enough.

    Args:
        peaks, anchors, total: [TILES], the largest logit, the first level and the weight of every tile.
        levels: [TILES], where the weights above the levels of each tile are.

    Returns:
        Both levels, infinite where there is none; the weight above the upper one, that between them, and the goal.
        The largest logit weighs 1.
    """
    scale = tl.where(peaks > -float("inf"), tl.exp((peaks - largest) / t), 0.0)
    goal = p * tl.sum(total * scale)
    # The highest tile's first level, and those after it. A tile's own first is as high or lower: nothing of it is
    # above the levels before that, and it has all those after it.
    at_level = tl.max(anchors) - 1 - tl.arange(0, LEVELS)
    steps = anchors[:, None] - at_level[None, :] - 1
    known = here[:, None] & (steps >= 0)
    sums = tl.load(levels[:, None] + tl.where(known, steps, 0.0).to(tl.int32), mask=known, other=0.0)
    weight = tl.sum(sums * scale[:, None], axis=0)
    bound = at_level * (t * LEVEL_WIDTH)
    short = weight * (1 + ROUGH) < goal * (1 - ROUGH)
    enough = weight * (1 - ROUGH) > goal * (1 + ROUGH)
    high = tl.min(tl.where(short, bound, float("inf")))
    low = tl.max(tl.where(enough, bound, -float("inf")))
    above = tl.max(tl.where(short, weight, 0.0))
    within = tl.maximum(tl.min(tl.where(enough, weight, float("inf"))) - above, goal * ROUGH)
    return low, high, above, within, goal


@triton.jit
def narrow(low, high, above_high, within, goal, row, SAMPLE: tl.constexpr, PENALISED: tl.constexpr):
    """Bounds closer to the cut, which SAMPLE tokens from all over the row suggest. `finish` sees whether they hold.

    Args:
        low, high, above_high, within, goal: what `bracket` returns.
        row: as in `search`.
    """
    share = (goal - above_high) / within
    doubt = 2 * ROUGH * goal / within
    high = tl.minimum(high, row[4])
    lower = low
    upper = high
    for _ in tl.static_range(2):
        bounds = lower + (upper - lower) * (tl.arange(0, PARTS).to(tl.float32) / PARTS)
        above, total, squares = sample_above(bounds, low, high, row, SAMPLE, PENALISED)
        error = SIGMAS * tl.sqrt(squares * share * (1 - share)) + doubt * total
        closer = tl.max(tl.where(above > share * total + error, bounds, lower))
        upper = tl.min(tl.where(above < share * total - error, bounds, upper))
        lower = closer
    return lower, upper


@triton.jit
def sample_above(bounds, low, high, row, SAMPLE: tl.constexpr, PENALISED: tl.constexpr):
    """Of a sample of the tokens between ``low`` and ``high``, where the latter weighs 1: the weight above each of
    ``bounds`` [PARTS], that of all, and the sum of the squares.
    """
    logits, listed, by, vocab, _top, t = row
    PIECE: tl.constexpr = SAMPLE // 16
    apart = tl.cdiv(vocab, SAMPLE)
    sums = tl.zeros((PIECE, PARTS), tl.float32)
    total = tl.zeros((PIECE,), tl.float32)
    squares = tl.zeros((PIECE,), tl.float32)
    for start in range(0, SAMPLE, PIECE):
        i = start + tl.arange(0, PIECE)
        # Four side by side of every so many, which are in one sector of memory; not always the same four.
        four = i // 4
        token = (four * apart + tl.minimum(four & 15, apart - 1)) * 4 + i % 4
        _raw, x = load_row(logits, listed, by, token, vocab, PENALISED)
        w = tl.where((x > low) & (x <= high), tl.exp2((x - high) * (LOG2_E / t)), 0.0)
        sums += tl.where(x[:, None] > bounds[None, :], w[:, None], 0.0)
        total += w
        squares += w * w
    return tl.sum(sums, axis=0), tl.sum(total), tl.sum(squares)
