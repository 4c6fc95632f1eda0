"""The kernel `draw`: reads the rows without top-k once more, for exact masses and for the noise of what is kept."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import exact_exp, from_key, gumbel_bound, words_from
from .choose import BY_TILE, SETTLED
from .search import load_row, mass

# Scores are bounded with the temperature's inverse, down to this one.
LEAST_TEMPERATURE = tl.constexpr(1e-30)


@triton.jit(do_not_specialize=["words"])
def draw(
    logits, stride, vocab, listed, words, penalty, temperature, top_k, top_p, min_p, seed, position,
    peak, top, pending, low_key, high_key, count, ids, capacity,
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
    if (tl.load(pending + row) != SETTLED) & ((k == 0) | (k >= vocab)):
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
        if (p < 1) | (m > 0):
            y = below
            if t != 1:
                y = tl.div_rn(below, t)
            w = exact_exp(y)
            if m > 0:
                scores = tl.where(w >= m, scores, -float("inf"))
            if p < 1:
                masses = mass(w)
                # Side by side, so that one exchange between threads adds up both.
                both = tl.sum(tl.join(masses, tl.where(x > high, masses, 0)), axis=0)
                tl.store(mass_both + at * 2 + tl.arange(0, 2), both)
                append((x >= low) & (x <= high), start, ids + row * capacity, count + row, capacity, TILE)
        bound = tl.full((), -float("inf"), tl.float32)
        if (tl.load(pending + row) == BY_TILE) & (tl.load(peak + at) >= low):
            noise = gumbel_bound(words_from(tl.load(seed + row), tl.load(position + row), start, TILE))
            bound = tl.max(scores + noise)
            # An inverse that is infinite or nearly so says nothing.
            bound = tl.where((t < LEAST_TEMPERATURE) & (bound > -float("inf")), float("inf"), bound)
        tl.store(score_bound + at, bound)


@triton.jit
def append(asked, start, ids, count, capacity, TILE: tl.constexpr):
    """Put tokens into the buffer, as far as they fit in: ``asked`` [TILE] are those from ``start`` on.

    They take places by fours, in any order. It is a set: nothing that follows depends on the order.
    """
    # Numbers rather than bits, which LLVM would pack together to count them, by way of memory.
    even, odd = tl.split(tl.reshape(tl.where(asked, 1.0, 0.0), (TILE // 4, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    number = (first + second + third + fourth).to(tl.int32)
    place = tl.atomic_add(count + tl.zeros_like(number), number, mask=number > 0, sem="relaxed")
    token = start + 4 * tl.arange(0, TILE // 4)
    tl.store(ids + place, token, mask=(first != 0) & (place < capacity))
    place = tl.where(first != 0, place + 1, place)
    tl.store(ids + place, token + 1, mask=(second != 0) & (place < capacity))
    place = tl.where(second != 0, place + 1, place)
    tl.store(ids + place, token + 2, mask=(third != 0) & (place < capacity))
    place = tl.where(third != 0, place + 1, place)
    tl.store(ids + place, token + 3, mask=(fourth != 0) & (place < capacity))
