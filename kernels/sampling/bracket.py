"""Where top-p is going to cut: below which logit not, from the weights of groups, and nearer, from a sample.

Bounds only save time: whether the cut is between them is seen by exact masses, or by what rough ones may be off at most
(ROUGH). Weights are rough, as those of `scan`; the largest logit of the row weighs 1. What top-p drops is easier to
tell than what it keeps, as it is made of light tokens: "spare" is what it may drop, and the cut is above a logit where
the tokens that do not exceed it weigh less.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import LOG2_E, exact_log
from .search import load_row

# How far off a rough sum may be, relative to it: rounding of arguments of exp up to 32 (3.7e-7 of them here, as the
# hardware's division is off by two units, and 1.2e-7 in the exact masses), the hardware's exp, twice, and the sum
# itself come to less than half of this. What weighs less than exp(-32) has no mass. That `finish` needs no exact mass
# of a row of few tokens hangs on it; all else would only take longer.
ROUGH = tl.constexpr(4e-5)

# Logits that are tried for a lower bound.
LEVELS = tl.constexpr(8)

# The cut is found to within so many standard errors of a sample, between two bounds halved so many times.
SIGMAS = tl.constexpr(5.0)
HALVINGS = tl.constexpr(8)


@triton.jit
def weights_of_groups(at, row, table, PER_TILE: tl.constexpr):
    """The largest logits of the groups at ``at``, and their weights; -inf and 0 beyond the last.

    Args:
        row: as in `search`.
        table: (groups, group_peak, group_weight, peak), what `scan` has noted of the row.
        PER_TILE: groups of a tile.
    """
    groups, group_peak, group_weight, peak = table
    here = at < groups
    x = tl.load(group_peak + at, mask=here, other=-float("inf"))
    weight = tl.load(group_weight + at, mask=here, other=0.0)
    of_tile = tl.load(peak + at // PER_TILE, mask=here, other=-float("inf"))
    return x, weight * tl.exp2((of_tile - row[4]) * (LOG2_E / row[5]))


@triton.jit
def lower_bound(spare, row, table, GROUP: tl.constexpr, PER_TILE: tl.constexpr, CHUNK: tl.constexpr):
    """A logit that the cut is above, the largest of a few; -inf if none is.

    Of a group whose largest logit exceeds a level, all others weigh no more than the group without it, nor than so many
    at the level would, if they do not exceed it.
    """
    largest, vocab, t = row[4], row[3], row[5]
    # At the last of the levels all tokens of the row together would weigh less than is to spare.
    y = (tl.arange(0, LEVELS) + 1) * ((exact_log(spare / vocab) - 0.01) / LEVELS)
    level = largest + y * t
    others_at_most = tl.exp(y) * (GROUP - 1)
    below = tl.zeros((LEVELS,), tl.float32)
    for start in range(0, table[0], CHUNK):
        x, weight = weights_of_groups(start + tl.arange(0, CHUNK), row, table, PER_TILE)
        others = weight - tl.exp2((x - largest) * (LOG2_E / t))
        some = tl.minimum(others[:, None], others_at_most[None, :])
        below += tl.sum(tl.where(x[:, None] > level[None, :], some, weight[:, None]), axis=0)
    return tl.max(tl.where(below * (1 + ROUGH) < spare * (1 - ROUGH), level, -float("inf")))


@triton.jit
def groups_above(low, row, table, PER_TILE: tl.constexpr, CHUNK: tl.constexpr):
    """How many groups have a logit above ``low``, and the weight of all others."""
    number = tl.full((), 0, tl.int32)
    rest = tl.full((), 0.0, tl.float32)
    for start in range(0, table[0], CHUNK):
        x, weight = weights_of_groups(start + tl.arange(0, CHUNK), row, table, PER_TILE)
        number += tl.sum((x > low).to(tl.int32))
        rest += tl.sum(tl.where(x > low, 0.0, weight))
    return number, rest


@triton.jit
def narrow(low, spare, row, SAMPLE: tl.constexpr, PENALISED: tl.constexpr):
    """Bounds closer to the cut than ``low`` and the largest logit: what SAMPLE tokens from all over the row suggest."""
    logits, listed, by, vocab, largest, t = row
    apart = tl.cdiv(vocab, SAMPLE)
    i = tl.arange(0, SAMPLE)
    # Four side by side of every so many, which are in one sector of memory; not always the same four.
    four = i // 4
    token = (four * apart + tl.minimum(four & 15, apart - 1)) * 4 + i % 4
    _raw, x = load_row(logits, listed, by, token, vocab, PENALISED)
    w = tl.exp2((x - largest) * (LOG2_E / t))
    # Both bounds are looked for at once: the last below which there surely is less, and the first where there is not.
    sign = 1 - 2 * tl.arange(0, 2)
    lower = low + tl.zeros((2,), tl.float32)
    upper = largest + tl.zeros((2,), tl.float32)
    w = w[:, None]
    for _ in range(HALVINGS):
        middle = (lower + upper) * 0.5
        bound = tl.exp2((middle - largest) * (LOG2_E / t))
        light = tl.where(w <= bound[None, :], w, 0.0)
        # Side by side, so that one exchange between threads adds up both.
        weight, squares = tl.split(tl.sum(tl.join(light, light * w), axis=0))
        # One more token at the bound, as a sample that has none tells little.
        variance = (squares - weight * weight * (apart / vocab)) * (1 - 1 / apart) + bound * bound
        error = tl.sqrt(variance) * SIGMAS + weight * ROUGH
        less = (weight + sign * error) * apart < spare
        lower = tl.where(less, middle, lower)
        upper = tl.where(less, upper, middle)
    return tl.sum(tl.where(sign == 1, lower, 0.0)), tl.sum(tl.where(sign == -1, upper, 0.0))
