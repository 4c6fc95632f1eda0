"""Where a cut falls: after the first token, by rank, down to which the weights of candidates reach a goal.

A search (`search.py`) by key until few candidates are left, of which each is then compared with each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import exact_exp, from_key, ordered_key
from .search import LAST_ID, MASS, TIES, candidates, kept, mass, search, weighed, weight_of_all


@triton.jit
def cut_at(
    goal, base, reached, last, row, pool, cut, spare,
    MODE: tl.constexpr, PENALISED: tl.constexpr, CHUNK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """The cut (key, id) that keeps the candidates down to where their weight, counted from ``base``, reaches ``goal``.

    Args:
        goal: int64, base < goal <= reached.
        base, reached: int64, the weight of what lies above all candidates, and with all of them.
        last: uint32, no candidate has a key above it.
        cut: what is kept so far; no candidate has a key below its.
        spare: int32 [4 * PAIRS], memory to work in.
    """
    top, t = row[4], row[5]
    count, xs, ws, ids, whole, _low_key, _high_key = pool
    lower = cut[0]
    upper = last
    above = base
    if whole | (count > PAIRS):
        few = tl.full((), PAIRS, tl.int64)
        if MODE == MASS:
            # None weighs less than one at the lowest key would.
            few *= mass(exact_exp(tl.div_rn(from_key(lower) - top, t)))
        lower, upper, reached, above = search(
            goal, base, reached, few, lower, last, row, pool, cut, MODE, PENALISED, CHUNK
        )
        spare_xs = spare.to(tl.pointer_type(tl.float32), bitcast=True)
        spare_ws = spare_xs + PAIRS
        spare_ids = spare + 2 * PAIRS
        number = spare + 3 * PAIRS
        tl.store(number, 0)
        tl.debug_barrier()
        for start in range(0, count, CHUNK):
            x, w, token = candidates(start + tl.arange(0, CHUNK), row, pool, PENALISED)
            key = ordered_key(x)
            asked = kept(x, key, token, cut) & (key >= lower) & (key <= upper)
            # In any order: each is compared with each.
            to = tl.atomic_add(number + tl.zeros_like(token), 1, mask=asked, sem="relaxed")
            here = asked & (to < PAIRS)
            tl.store(spare_xs + to, x, mask=here)
            tl.store(spare_ws + to, w, mask=here)
            tl.store(spare_ids + to, token, mask=here)
        tl.debug_barrier()  # what is in the spare memory is read by other threads than those that wrote it
        xs, ws, ids, count = spare_xs, spare_ws, spare_ids, tl.load(number)
    if count <= PAIRS:
        key, last_id = cut_by_pairs(goal, above, lower, upper, count, xs, ws, ids, cut, MODE, PAIRS)
    else:
        # All of one key: so many of the lowest ids that they reach the goal.
        key = lower
        each = tl.full((), 1, tl.int64)
        if MODE == MASS:
            each = mass(exact_exp(tl.div_rn(from_key(key) - top, t)))
        before = tl.where(key == cut[0], cut[1], LAST_ID)
        need = (goal - above + each - 1) // each
        last_id = last_of_ties(need, (reached - above) // each, before, row, pool, key, PENALISED, CHUNK)
    return key, last_id


@triton.jit
def cut_by_pairs(goal, base, lower, upper, count, xs, ws, ids, cut, MODE: tl.constexpr, PAIRS: tl.constexpr):
    """The cut among the first ``count`` candidates: each is kept unless the weight of those ahead of it is enough."""
    SOME: tl.constexpr = PAIRS // 8
    rank, weight = ranked(tl.arange(0, PAIRS), lower, upper, count, xs, ws, ids, cut, MODE)
    ahead = tl.zeros((PAIRS, SOME), weight.dtype)
    for start in range(0, count, SOME):
        other, its_weight = ranked(start + tl.arange(0, SOME), lower, upper, count, xs, ws, ids, cut, MODE)
        ahead += tl.where(other[None, :] > rank[:, None], its_weight[None, :], 0)
    keeps = (rank >= 0) & (base + tl.sum(ahead, axis=1) < goal)
    worst = tl.min(tl.where(keeps, rank, 2**62))
    # Not LAST_ID - x: what interprets kernels in Triton 3.7 takes that for a constant.
    return (worst >> 18).to(tl.uint32), -(worst & LAST_ID).to(tl.int32) + LAST_ID


@triton.jit
def ranked(at, lower, upper, count, xs, ws, ids, cut, MODE: tl.constexpr):
    """Numbers int64 by which candidates rank, larger first, and their weights: -1 and 0 if they are not in question."""
    x = tl.load(xs + at, mask=at < count, other=-float("inf"))
    w = tl.load(ws + at, mask=at < count, other=0.0)
    token = tl.load(ids + at, mask=at < count, other=0)
    key, weight = weighed(x, w, token, cut, MODE)
    asked = kept(x, key, token, cut) & (key >= lower) & (key <= upper)
    return tl.where(asked, (key.to(tl.int64) << 18) | (-token + LAST_ID), -1), tl.where(asked, weight, 0)


@triton.jit
def last_of_ties(need, number, last, row, pool, key, PENALISED: tl.constexpr, CHUNK: tl.constexpr):
    """The id of the last token to keep where ``need`` of ``number`` tokens with this key are: the lower ids."""
    if need < number:
        none = need * 0
        zero = tl.full((), 0, tl.uint32)
        end = tl.full((), LAST_ID, tl.uint32)
        every = weight_of_all(row, pool, (key, last), TIES, PENALISED, CHUNK)
        place, _, _, _ = search(need, none, every, none, zero, end, row, pool, (key, last), TIES, PENALISED, CHUNK)
        last = -place.to(tl.int32) + LAST_ID
    return last
