"""The kernel `draw`: reads the rows without top-k once more, for exact masses and for the noise of what is kept."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import exact_exp, from_key, gumbel_bound, words_from
from .search import load_row, mass

# Scores are bounded with the temperature's inverse, down to this one.
LEAST_TEMPERATURE = tl.constexpr(1e-30)


@triton.jit(do_not_specialize=["words"])
def draw(
    logits, stride, vocab, listed, words, penalty, temperature, top_k, top_p, min_p, seed, position,
    top, pending, low_key, high_key, count, ids, capacity,
    mass_both, score_bound,
    PENALISED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of one row without top-k: the mass of all its tokens and of those that are to be kept, and a bound of
    the scores of those that may be; the tokens in question go to the row's buffer, as far as they fit in.
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
        t = tl.load(temperature + row)
        m = tl.load(min_p + row)
        below = x - tl.load(top + row)
        low = from_key(tl.load(low_key + row).to(tl.uint32, bitcast=True))
        high = from_key(tl.load(high_key + row).to(tl.uint32, bitcast=True))
        scores = tl.where(x >= low, below * tl.minimum(1 / t, 1e38), -float("inf"))
        any_kept = True
        if (p < 1) | (m > 0):
            y = below
            if t != 1:
                y = tl.div_rn(below, t)
            w = exact_exp(y)
            if m > 0:
                scores = tl.where(w >= m, scores, -float("inf"))
            any_kept = tl.max(scores) > -float("inf")
            if p < 1:
                masses = mass(w)
                # Side by side, so that one exchange between threads adds up both.
                both = tl.sum(tl.join(masses, tl.where(x > high, masses, 0)), axis=0)
                tl.store(mass_both + at * 2 + tl.arange(0, 2), both)
                asked = (x >= low) & (x <= high)
                # Tokens take places in any order. It is a set: nothing that follows depends on the order.
                place = tl.atomic_add(count + row + tl.zeros_like(token), 1, mask=asked, sem="relaxed")
                tl.store(ids + row * capacity + place, token, mask=asked & (place < capacity))
        bound = tl.full((), -float("inf"), tl.float32)
        if any_kept:
            noise = gumbel_bound(words_from(tl.load(seed + row), tl.load(position + row), start, TILE))
            bound = tl.max(scores + noise)
            # An inverse that is infinite or nearly so says nothing.
            bound = tl.where((t < LEAST_TEMPERATURE) & (bound > -float("inf")), float("inf"), bound)
        tl.store(score_bound + at, bound)
