"""Finding the token at which a cut falls, without sorting: a search for its key, by quarters.

Tokens are ranked by key, larger first, and among equals by id, lower first. A cut keeps the tokens down to the first
one at which the sum of their weights reaches a goal: each weighs one for top-k, and its mass for top-p. The key of
that last token is the largest key K for which the weight of all tokens with a key of at least K reaches the goal.
Sums of weights only grow as K falls, so three sums tell in which quarter of an interval K is. Sixteen rounds settle
all 32 bits, whatever the tokens are; fewer where bounds are near. The id at which to stop among equals is found in the
same way.

Functions here take what belongs together as tuples:

    row   (logits, listed, penalty, vocab, top, temperature): where a row is, and the facts its weights need
    pool  (count, xs, ws, ids, whole, low_key, high_key): its candidates, count of them in a buffer of logits,
          weights and ids; or, where ``whole``, whatever in the row has a key within the two given
    cut   (key, id): keeps the tokens with a larger key, and those with this one and no larger id
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import exact_exp, ordered_key

# What a search weighs tokens by.
COUNT = tl.constexpr(0)  # 1 each
MASS = tl.constexpr(1)  # floor(w * 2**44), of those that the cut keeps
TIES = tl.constexpr(2)  # 1 for each whose key is the cut's; searched by id, lower first

MASS_ONE = tl.constexpr(2.0**44)
LAST_ID = tl.constexpr(2**18 - 1)
MANY = tl.constexpr(2**31 - 1)  # more than there can be
# The keys of the least finite float and of +inf.
LEAST_KEY = tl.constexpr(0x00800000)
INFINITE_KEY = tl.constexpr(0xFF800000)


@triton.jit
def load_row(logits, listed, penalty, ids, vocab, PENALISED: tl.constexpr):
    """Logits of a row at ids: as they are, and after the penalty; float32, -inf beyond the vocabulary."""
    raw = tl.load(logits + ids, mask=ids < vocab, other=-float("inf")).to(tl.float32)
    x = raw
    if PENALISED:
        word = tl.load(listed + (ids >> 5), mask=ids < vocab, other=0)
        changed = tl.where(raw > 0, tl.div_rn(raw, penalty), raw * penalty)
        x = tl.where(((word >> (ids & 31)) & 1) != 0, changed, raw)
    return raw, x


@triton.jit
def mass(w):
    return (w * MASS_ONE).to(tl.int64)


@triton.jit
def goal_of(total, p):
    """The mass that top-p asks for."""
    return tl.ceil(total.to(tl.float64) * p.to(tl.float64)).to(tl.int64)


@triton.jit
def kept(x, key, ids, cut):
    """Which tokens the cut keeps."""
    return (x > -float("inf")) & ((key > cut[0]) | ((key == cut[0]) & (ids <= cut[1])))


@triton.jit
def candidates(at, row, pool, PENALISED: tl.constexpr):
    """x, w and id of the candidates at ``at``; x is -inf where there is none."""
    logits, listed, penalty, vocab, top, temperature = row
    count, xs, ws, ids, whole, low_key, high_key = pool
    if whole:
        token = at
        _raw, x = load_row(logits, listed, penalty, at, vocab, PENALISED)
        key = ordered_key(x)
        x = tl.where((key >= low_key) & (key <= high_key), x, -float("inf"))
        w = exact_exp(tl.div_rn(x - top, temperature))
    else:
        token = tl.load(ids + at, mask=at < count, other=0)
        x = tl.load(xs + at, mask=at < count, other=-float("inf"))
        w = tl.load(ws + at, mask=at < count, other=0.0)
    return x, w, token


@triton.jit
def weighed(x, w, ids, cut, MODE: tl.constexpr):
    """What to search by, uint32, and the weights."""
    key = ordered_key(x)
    if MODE == COUNT:
        weight = (x > -float("inf")).to(tl.int32)
    elif MODE == MASS:
        weight = tl.where(kept(x, key, ids, cut), mass(w), 0)
    else:
        weight = ((x > -float("inf")) & (key == cut[0])).to(tl.int32)
        key = (-ids + LAST_ID).to(tl.uint32)
    return key, weight


@triton.jit
def weight_of_all(row, pool, cut, MODE: tl.constexpr, PENALISED: tl.constexpr, CHUNK: tl.constexpr):
    """The weights of all candidates together, int64."""
    total = tl.zeros((CHUNK,), tl.int64)
    for start in range(0, pool[0], CHUNK):
        x, w, ids = candidates(start + tl.arange(0, CHUNK), row, pool, PENALISED)
        _key, weight = weighed(x, w, ids, cut, MODE)
        total += weight
    return tl.sum(total)


@triton.jit
def search(
    goal, base, reached, few, first, last, row, pool, cut,
    MODE: tl.constexpr, PENALISED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The largest key at which the weight, counted from ``base``, reaches ``goal``, or keys that it is among.

    Args:
        goal: int64, base < goal <= reached.
        base, reached: int64, the weight of what lies above all candidates, and with all of them.
        few: int64, what is between the two keys may weigh so much; with 0 they are the same.
        first, last: uint32, no candidate has a key outside them.

    Returns:
        The keys it is between (uint32), the weight down to the lower one, and that of what lies above the upper one.
    """
    SUM: tl.constexpr = tl.int64 if MODE == MASS else tl.int32
    lower, upper = first.to(tl.int64), last.to(tl.int64)
    above = base
    while (lower < upper) & (reached - above > few):
        step = (upper - lower >> 2) + 1
        key_1 = (lower + step).to(tl.uint32)
        key_2 = (lower + step * 2).to(tl.uint32)
        key_3 = (lower + step * 3).to(tl.uint32)
        sum_1 = tl.zeros((CHUNK,), SUM)
        sum_2 = tl.zeros((CHUNK,), SUM)
        sum_3 = tl.zeros((CHUNK,), SUM)
        for start in range(0, pool[0], CHUNK):
            x, w, ids = candidates(start + tl.arange(0, CHUNK), row, pool, PENALISED)
            key, weight = weighed(x, w, ids, cut, MODE)
            sum_1 += tl.where(key >= key_1, weight, 0)
            sum_2 += tl.where(key >= key_2, weight, 0)
            sum_3 += tl.where(key >= key_3, weight, 0)
        # Side by side, so that one exchange between threads adds up all of them. The fourth is there for its place.
        sums = tl.join(tl.join(sum_1, sum_2), tl.join(sum_3, tl.zeros((CHUNK,), SUM)))
        weights = base + tl.sum(tl.reshape(sums, (CHUNK, 4)), axis=0).to(tl.int64)
        enough = weights >= goal
        # They fall from the first to the third; the fourth, base, never is enough. Nor is what lies above `upper`.
        lower += step * tl.sum(enough.to(tl.int64))
        upper = tl.minimum(upper, lower + step - 1)
        reached = tl.minimum(reached, tl.min(tl.where(enough, weights, reached)))
        above = tl.maximum(above, tl.max(tl.where(enough, above, weights)))
    return lower.to(tl.uint32), upper.to(tl.uint32), reached, above
