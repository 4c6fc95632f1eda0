"""The kernel `draw`: reads the rows of many tokens once more, for exact masses and for the noise of what is kept."""

from __future__ import annotations

import triton
import triton.language as tl

from ..overlap import take_over
from .arithmetic import arrival, exact_mass, from_key, words_from
from .choose import BY_TILE
from .search import load_row


@triton.jit(do_not_specialize=["words"])
def draw(
    logits, stride, vocab, listed, words, penalty, temperature, top_k, top_p, seed, position,
    peak, top, pending, low_key, high_key, count, lowest, ids, capacity,
    mass_both, earliest,
    PENALISED: tl.constexpr, TILE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One tile of one row whose tokens in question are not all known: the mass of all its tokens and of those that are
    to be kept, and a bound of the scores of those that may be; those in question go to the row's buffer, as far as they
    fit in.
    """
    if OVERLAP:
        take_over()
    # From the end: what the last tiles of `scan` have read may still be in the L2 cache.
    row = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    if tl.load(pending + row) == BY_TILE:
        at = row * tl.num_programs(1) + tile
        start = tile * TILE
        token = start + tl.arange(0, TILE)
        p = tl.load(top_p + row)
        by = 1.0
        if PENALISED:
            by = tl.load(penalty + row)
        _raw, x = load_row(logits + row * stride, listed + row * words, by, token, vocab, PENALISED)
        t = tl.load(temperature + row)
        largest = tl.load(top + row)
        low = from_key(tl.load(low_key + row).to(tl.uint32, bitcast=True))
        high = from_key(tl.load(high_key + row).to(tl.uint32, bitcast=True))
        y = x - largest
        if p == 1:
            y *= tl.minimum(1 / t, 1e38)
        elif t != 1:
            y = tl.div_rn(y, t)
        if p < 1:
            masses = exact_mass(y)
            # Side by side, so that one exchange between threads adds up both.
            both = tl.sum(tl.join(masses, tl.where(x > high, masses, 0)), axis=0)
            tl.store(mass_both + at * 2 + tl.arange(0, 2), both)
            append((x >= low) & ~(x > high), start, ids + row * capacity, count + row, capacity, TILE)
        first = tl.full((), float("inf"), tl.float32)
        least = tl.load(lowest + row)
        if tl.div_rn(tl.load(peak + at) - largest, t) >= least:
            random = words_from(tl.load(seed + row), tl.load(position + row), start, TILE)
            first = tl.min(tl.where(y >= least, arrival(random, y), float("inf")))
        tl.store(earliest + at, first)


@triton.jit
def append(asked, start, ids, count, capacity, TILE: tl.constexpr):
    """Put tokens into the buffer, as far as they fit in: ``asked`` [TILE] are those from ``start`` on.

    They take places by 32, those of a thread, in any order: nothing that follows depends on it. Four side by side do
    not fit in where less than four places are left: the buffer is full with three places to spare.
    """
    even, odd = tl.split(tl.reshape(asked, (TILE // 4, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    # Numbers rather than bits, which LLVM would pack together to count them, by way of memory.
    number = tl.where(first, 1.0, 0.0) + tl.where(second, 1.0, 0.0)
    number = (number + tl.where(third, 1.0, 0.0) + tl.where(fourth, 1.0, 0.0)).to(tl.int32)
    SHARE: tl.constexpr = 8 if TILE >= 32 else 1
    by_thread = tl.reshape(number, (SHARE, TILE // 4 // SHARE))
    together = tl.sum(by_thread, axis=0)
    place = tl.atomic_add(count + tl.zeros_like(together), together, mask=together > 0, sem="relaxed")
    place = tl.reshape(place[None, :] + tl.cumsum(by_thread, axis=0) - by_thread, (TILE // 4,))
    fits = place <= capacity - 4
    token = start + 4 * tl.arange(0, TILE // 4)
    tl.store(ids + place, token, mask=first & fits)
    place = tl.where(first, place + 1, place)
    tl.store(ids + place, token + 1, mask=second & fits)
    place = tl.where(second, place + 1, place)
    tl.store(ids + place, token + 2, mask=third & fits)
    place = tl.where(third, place + 1, place)
    tl.store(ids + place, token + 3, mask=fourth & fits)
