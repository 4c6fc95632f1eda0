"""The kernel `finish`: finds the cuts among the tokens in question, draws from those kept, and picks the token."""

from __future__ import annotations

import triton
import triton.language as tl

from ..overlap import take_over
from .arithmetic import exact_exp, exact_mass, gumbel, gumbel_at, ordered_key, score_bound, words_from
from .choose import BY_TILE, BY_TOKEN, SETTLED
from .cut import cut_at
from .search import (
    COUNT,
    INFINITE_KEY,
    LAST_ID,
    LEAST_KEY,
    MANY,
    MASS,
    candidates,
    goal_of,
    kept,
    load_row,
    mass,
    weight_of_all,
)

# Bounds of scores may be this much too low, for rounding.
SLACK = tl.constexpr(1e-4)


@triton.jit(do_not_specialize=["words", "tiles"])
def finish(
    logits, stride, vocab, listed, words, penalty, temperature, top_k, top_p, min_p, seed, position,
    top, raw_top, raw_total, pending, low_key, high_key, count, goals, xs, ws, ids, capacity,
    mass_both, earliest, tiles, spare,
    tokens, logprobs,
    PENALISED: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, PAIRS: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """One row: the cuts of top-k and top-p among the tokens in question, the best score among those kept, the token."""
    if OVERLAP:
        take_over()
    row = tl.program_id(0).to(tl.int64)
    way = tl.load(pending + row)
    if way != SETTLED:
        tile = tl.arange(0, TILES)
        here = tile < tiles
        at = row * tiles + tile
        t = tl.load(temperature + row)
        k = tl.load(top_k + row)
        p = tl.load(top_p + row)
        largest = tl.load(top + row)
        by = 1.0
        if PENALISED:
            by = tl.load(penalty + row)
        low = tl.load(low_key + row).to(tl.uint32, bitcast=True)
        high = tl.load(high_key + row).to(tl.uint32, bitcast=True)
        found = tl.load(count + row)
        whole = found > capacity - 3  # as `draw` leaves three places free where it has more
        facts = (logits + row * stride, listed + row * words, by, vocab, largest, t)
        at_xs, at_ws, at_ids = xs + row * capacity, ws + row * capacity, ids + row * capacity
        bounds = tl.full((TILES,), -float("inf"), tl.float32)
        if way == BY_TILE:
            bounds = score_bound(tl.load(earliest + at, mask=here, other=float("inf")))
        goal = tl.full((), 0, tl.int64)
        base = tl.full((), 0, tl.int64)
        reached = tl.full((), 0, tl.int64)
        most = tl.full((), 0, tl.int64)
        by_rank = (k > 0) & (k < vocab)
        if (p < 1) & (way == BY_TOKEN) & ~by_rank:
            goal = tl.load(goals + row * 3)
            most = tl.load(goals + row * 3 + 1)
            reached = tl.load(goals + row * 3 + 2)
        elif (p < 1) & ~by_rank:
            total = tl.sum(tl.load(mass_both + at * 2, mask=here, other=0))
            base = tl.sum(tl.load(mass_both + at * 2 + 1, mask=here, other=0))
            goal = goal_of(total, p)
            reached = base
            if whole:
                pool = (vocab, at_xs, at_ws, at_ids, whole, low, high)
                reached += weight_of_all(facts, pool, (low, LAST_ID), MASS, PENALISED, CHUNK)
            else:
                reached += fetch(found, at_xs, at_ws, at_ids, facts, PENALISED, CHUNK)
            if (goal <= base) | (goal > reached):
                # What `choose` suggested does not hold. Any token may be kept.
                whole = whole | True
                low = tl.full((), LEAST_KEY, tl.uint32)
                high = tl.full((), INFINITE_KEY, tl.uint32)
                base = base * 0
                reached = total
                bounds = tl.where(here, float("inf"), bounds)
        pool = (tl.where(whole, vocab, found), at_xs, at_ws, at_ids, whole, low, high)
        at_spare = spare + row * 4 * PAIRS
        last = tl.minimum(high, ordered_key(largest))
        cut_key = low
        cut_id = tl.full((), LAST_ID, tl.int32)

        if by_rank:
            present = weight_of_all(facts, pool, (cut_key, cut_id), COUNT, PENALISED, CHUNK)
            wanted = tl.minimum(k.to(tl.int64), present)
            cut_key, cut_id = cut_at(
                wanted, base, present, last, facts, pool, (cut_key, cut_id), at_spare, COUNT, PENALISED, CHUNK, PAIRS
            )
            if p < 1:
                reached = weight_of_all(facts, pool, (cut_key, cut_id), MASS, PENALISED, CHUNK)
                goal = goal_of(reached, p)
        before = (cut_key, cut_id)
        sure = p == 1
        while not sure:
            cut_key, cut_id = cut_at(
                goal, base, reached, last, facts, pool, before, at_spare, MASS, PENALISED, CHUNK, PAIRS
            )
            # Where the mass of the row is known roughly, the goal is at most this. Mostly the cut is the same.
            sure = most <= goal
            if not sure:
                sure = weight_of_all(facts, pool, (cut_key, cut_id), MASS, PENALISED, CHUNK) >= most
            if not sure:
                goal = goal_of(mass_of_row(facts, PENALISED, 4 * CHUNK), p)
                most = goal

        best = tl.full((), -float("inf"), tl.float32)
        winner = tl.full((), MANY, tl.int32)
        seed_of_row = tl.load(seed + row)
        place = tl.load(position + row)
        least = tl.load(min_p + row)
        if way == BY_TOKEN:
            for start in range(0, pool[0], CHUNK):
                x, w, token = candidates(start + tl.arange(0, CHUNK), facts, pool, PENALISED)
                free = kept(x, ordered_key(x), token, (cut_key, cut_id)) & (w >= least)
                if tl.max(free.to(tl.int32)) != 0:
                    score = tl.div_rn(x - largest, t) + gumbel_at(seed_of_row, place, token)
                    best, winner = best_of(best, winner, tl.where(free, score, -float("inf")), token)
        # Tile by tile, from the one with the highest bound, until no other can have a better score; mostly one.
        highest = tl.max(bounds)
        while (highest > -float("inf")) & (highest >= best - SLACK):
            one = tl.min(tl.where(bounds == highest, tile, MANY))
            token = one * TILE + tl.arange(0, TILE)
            _raw, x = load_row(facts[0], facts[1], by, token, vocab, PENALISED)
            y = tl.div_rn(x - largest, t)
            free = kept(x, ordered_key(x), token, (cut_key, cut_id)) & (exact_exp(y) >= least)
            score = y + gumbel(words_from(seed_of_row, place, one * TILE, TILE))
            best, winner = best_of(best, winner, tl.where(free, score, -float("inf")), token)
            bounds = tl.where(tile == one, -float("inf"), bounds)
            highest = tl.max(bounds)
        raw = tl.load(logits + row * stride + winner).to(tl.float64)
        tl.store(tokens + row, winner)
        tl.store(logprobs + row, (raw - tl.load(raw_top + row) - tl.log(tl.load(raw_total + row))).to(tl.float32))


@triton.jit
def fetch(found, xs, ws, ids, row, PENALISED: tl.constexpr, CHUNK: tl.constexpr):
    """Put logits and weights of the candidates beside their ids. Returns their mass."""
    logits, listed, by, vocab, top, t = row
    total = tl.zeros((CHUNK,), tl.int64)
    for start in range(0, found, CHUNK):
        at = start + tl.arange(0, CHUNK)
        token = tl.load(ids + at, mask=at < found, other=MANY)
        _raw, x = load_row(logits, listed, by, token, vocab, PENALISED)
        w = exact_exp(tl.div_rn(x - top, t))
        tl.store(xs + at, x, mask=at < found)
        tl.store(ws + at, w, mask=at < found)
        total += mass(w)
    tl.debug_barrier()  # what is stored here may be read by other threads
    return tl.sum(total)


@triton.jit
def mass_of_row(row, PENALISED: tl.constexpr, CHUNK: tl.constexpr):
    """The mass of all tokens."""
    logits, listed, by, vocab, top, t = row
    total = tl.zeros((CHUNK,), tl.int64)
    for start in range(0, vocab, CHUNK):
        _raw, x = load_row(logits, listed, by, start + tl.arange(0, CHUNK), vocab, PENALISED)
        total += exact_mass(tl.div_rn(x - top, t))
    return tl.sum(total)


@triton.jit
def best_of(best, winner, scores, tokens):
    """The best score of all and its token, of equal ones the lower."""
    score = tl.max(scores)
    token = tl.min(tl.where(scores == score, tokens, MANY))
    ahead = (score > best) | ((score == best) & (token < winner))
    return tl.where(ahead, score, best), tl.where(ahead, token, winner)
