"""The kernel `finish`: finds the cuts among the tokens in question, draws from those kept, and picks the token."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import exact_exp, from_key, gumbel_at, ordered_key
from .search import COUNT, LAST_ID, MANY, MASS, TIES, candidates, kept, mass, search, weight_of_all


@triton.jit(do_not_specialize=["words", "tiles"])
def finish(
    logits, stride, vocab, listed, words, penalty, temperature, top_k, top_p, min_p, seed, position,
    top, raw_top, raw_total, pending, low_key, high_key, count, xs, ws, ids, capacity,
    mass_all, mass_above, best_score, best_token, tiles,
    tokens, logprobs,
    PENALISED: tl.constexpr, TILES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One row: the cuts of top-k and top-p among the tokens in question, the best score among those kept, the token."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(pending + row) != 0:
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
        whole = found > capacity
        facts = (logits + row * stride, listed + row * words, by, vocab, largest, t)
        pool = (
            tl.where(whole, vocab, found),
            xs + row * capacity, ws + row * capacity, ids + row * capacity,
            whole, low, high,
        )  # fmt: skip
        ranked = (k > 0) & (k < vocab)
        last = tl.minimum(high, ordered_key(largest))
        cut_key = low
        cut_id = tl.full((), LAST_ID, tl.int32)
        base = tl.full((), 0, tl.int64)

        if ranked:
            present = weight_of_all(facts, pool, (cut_key, cut_id), COUNT, PENALISED, CHUNK)
            goal = tl.minimum(k.to(tl.int64), present)
            cut_key, reached, above = search(
                goal, base, present, low, last, facts, pool, (cut_key, cut_id), COUNT, PENALISED, CHUNK
            )
            cut_id = last_of_ties(goal - above, reached - above, cut_id, facts, pool, cut_key, PENALISED, CHUNK)
        if p < 1:
            total = weight_of_all(facts, pool, (cut_key, cut_id), MASS, PENALISED, CHUNK)
            reached = total
            if not ranked:
                base = tl.sum(tl.load(mass_above + at, mask=here, other=0))
                reached = base + total
                total = tl.sum(tl.load(mass_all + at, mask=here, other=0))
            goal = tl.ceil(total.to(tl.float64) * p.to(tl.float64)).to(tl.int64)
            key, reached, above = search(
                goal, base, reached, cut_key, last, facts, pool, (cut_key, cut_id), MASS, PENALISED, CHUNK
            )
            each = mass(exact_exp(tl.div_rn(from_key(key) - largest, t)))
            before = tl.where(key == cut_key, cut_id, LAST_ID)
            need = (goal - above + each - 1) // each
            cut_id = last_of_ties(need, (reached - above) // each, before, facts, pool, key, PENALISED, CHUNK)
            cut_key = key

        scores = tl.full((CHUNK,), -float("inf"), tl.float32)
        chosen = tl.full((CHUNK,), MANY, tl.int32)
        least = tl.load(min_p + row)
        for start in range(0, pool[0], CHUNK):
            x, w, token = candidates(start + tl.arange(0, CHUNK), facts, pool, PENALISED)
            free = kept(x, ordered_key(x), token, (cut_key, cut_id)) & (w >= least)
            if tl.max(free.to(tl.int32)) != 0:
                noise = gumbel_at(tl.load(seed + row), tl.load(position + row), token)
                score = tl.where(free, tl.div_rn(x - largest, t) + noise, -float("inf"))
                better = (score > scores) | ((score == scores) & (token < chosen))
                scores = tl.where(better, score, scores)
                chosen = tl.where(better, token, chosen)
        best = tl.max(scores)
        winner = tl.min(tl.where(scores == best, chosen, MANY))
        if not ranked:
            tile_scores = tl.load(best_score + at, mask=here, other=-float("inf"))
            tile_best = tl.max(tile_scores)
            tile_tokens = tl.load(best_token + at, mask=here & (tile_scores == tile_best), other=MANY)
            tile_winner = tl.min(tile_tokens)
            ahead = (tile_best > best) | ((tile_best == best) & (tile_winner < winner))
            winner = tl.where(ahead, tile_winner, winner)
        raw = tl.load(logits + row * stride + winner).to(tl.float64)
        tl.store(tokens + row, winner)
        tl.store(logprobs + row, (raw - tl.load(raw_top + row) - tl.log(tl.load(raw_total + row))).to(tl.float32))


@triton.jit
def last_of_ties(need, number, last, row, pool, key, PENALISED: tl.constexpr, CHUNK: tl.constexpr):
    """The id of the last token to keep where ``need`` of ``number`` tokens with this key are: the lower ids."""
    if need < number:
        none = need * 0
        zero = tl.full((), 0, tl.uint32)
        end = tl.full((), LAST_ID, tl.uint32)
        every = weight_of_all(row, pool, (key, last), TIES, PENALISED, CHUNK)
        place, _, _ = search(need, none, every, zero, end, row, pool, (key, last), TIES, PENALISED, CHUNK)
        last = -place.to(tl.int32) + LAST_ID
    return last
