"""The kernel `draw`: reads the rows without top-k once more, for exact masses and for the noise of what is kept."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import exact_exp, gumbel_from, ordered_key
from .search import MANY, load_row, mass


@triton.jit(do_not_specialize=["words"])
def draw(
    logits, stride, vocab, listed, words, penalty, temperature, top_k, top_p, min_p, seed, position,
    top, pending, low_key, high_key, count, xs, ws, ids, capacity,
    mass_all, mass_above, best_score, best_token,
    PENALISED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of one row without top-k: the mass of all its tokens and of those that are certain to be kept, the best
    score among the latter; the tokens in question go to the row's buffer, as far as they fit in.
    """
    # From the end: what the last tiles of `scan` have read may still be in the L2 cache.
    row = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    k = tl.load(top_k + row)
    if (tl.load(pending + row) != 0) & ((k == 0) | (k >= vocab)):
        at = row * tl.num_programs(1) + tile
        start = tile * TILE
        token = start + tl.arange(0, TILE)
        p = tl.load(top_p + row)
        by = 1.0
        if PENALISED:
            by = tl.load(penalty + row)
        _raw, x = load_row(logits + row * stride, listed + row * words, by, token, vocab, PENALISED)
        y = tl.div_rn(x - tl.load(top + row), tl.load(temperature + row))
        w = exact_exp(y)
        key = ordered_key(x)
        low = tl.load(low_key + row).to(tl.uint32, bitcast=True)
        high = tl.load(high_key + row).to(tl.uint32, bitcast=True)
        certain = key > high
        if p < 1:
            masses = mass(w)
            tl.store(mass_all + at, tl.sum(masses))
            tl.store(mass_above + at, tl.sum(tl.where(certain, masses, 0)))
            asked = (key >= low) & (key <= high)
            number = tl.sum(asked.to(tl.int32))
            if number > 0:
                # Programs take places in any order. It is a set: nothing that follows depends on the order.
                place = tl.atomic_add(count + row, number) + tl.cumsum(asked.to(tl.int32)) - 1
                fits = asked & (place < capacity)
                at_place = row * capacity + place
                tl.store(xs + at_place, x, mask=fits)
                tl.store(ws + at_place, w, mask=fits)
                tl.store(ids + at_place, token, mask=fits)
        free = certain & (x > -float("inf")) & (w >= tl.load(min_p + row))
        best = tl.full((TILE,), -float("inf"), tl.float32)
        if tl.max(free.to(tl.int32)) != 0:
            noise = gumbel_from(tl.load(seed + row), tl.load(position + row), start, TILE)
            best = tl.where(free, y + noise, -float("inf"))
        score = tl.max(best)
        tl.store(best_score + at, score)
        tl.store(best_token + at, tl.min(tl.where(best == score, token, MANY)))
