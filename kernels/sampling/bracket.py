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

# The cut is found to within so many standard errors of a sample, between two levels halved so many times.
SIGMAS = tl.constexpr(5.0)
HALVINGS = tl.constexpr(8)


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
    high = tl.minimum(high, row[4])
    x, w = sampled(low, high, row, SAMPLE, PENALISED)
    total = tl.sum(w)
    share = (goal - above_high) / within
    error = SIGMAS * tl.sqrt(tl.sum(w * w) * share * (1 - share)) + 2 * ROUGH * goal / within * total
    # Both bounds are looked for at once: the last above which there is more, and the first above which there is less.
    side = tl.arange(0, 2)
    wanted = share * total + tl.where(side == 0, error, -error)
    lower = low + tl.zeros((2,), tl.float32)
    upper = high + tl.zeros((2,), tl.float32)
    x = x[:, None]
    w = w[:, None]
    for _ in range(HALVINGS):
        middle = (lower + upper) * 0.5
        above = tl.sum(tl.where(x > middle[None, :], w, 0.0), axis=0)
        more = tl.where(side == 0, above > wanted, above >= wanted)  # of an empty sample neither bound moves
        lower = tl.where(more, middle, lower)
        upper = tl.where(more, upper, middle)
    return tl.max(tl.where(side == 0, lower, low)), tl.min(tl.where(side == 1, upper, high))


@triton.jit
def sampled(low, high, row, SAMPLE: tl.constexpr, PENALISED: tl.constexpr):
    """The logits of a sample, and the weights of those between ``low`` and ``high``, where the latter weighs 1."""
    logits, listed, by, vocab, _top, t = row
    apart = tl.cdiv(vocab, SAMPLE)
    i = tl.arange(0, SAMPLE)
    # Four side by side of every so many, which are in one sector of memory; not always the same four.
    four = i // 4
    token = (four * apart + tl.minimum(four & 15, apart - 1)) * 4 + i % 4
    _raw, x = load_row(logits, listed, by, token, vocab, PENALISED)
    return x, tl.where((x > low) & (x <= high), tl.exp2((x - high) * (LOG2_E / t)), 0.0)
