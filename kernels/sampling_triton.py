"""The kernels that sample: scan, choose, draw, finish, and one that marks penalised tokens before them.

scan    [rows, tiles]  reads the logits once: the largest of a tile and of every group of tokens, and rough sums
choose  [rows]         settles greedy rows; for the others, which tokens are certain to be kept, and which may be
draw    [rows, tiles]  reads the rows that need it once more: exact masses, noise for what is certain to be kept
finish  [rows]         finds the cuts among the tokens in question, draws from those kept, and picks the token

docs/sampling.md explains the algorithm. No kernel waits for the host or another program; a row's result is the same
in any batch, as tiles do not depend on it, and what is added up in no fixed order is integers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .sampling_search import COUNT, LAST_ID, MASS, TIES, candidates, kept, load_row, mass, search, weight_of_all
from .triton_functions import exact_exp, from_key, gumbel_at, gumbel_from, ordered_key

OK = tl.constexpr(0)
NOT_FINITE = tl.constexpr(1)
EMPTY = tl.constexpr(2)
INVALID = tl.constexpr(3)

# Levels of a tile at which the mass above is estimated, and how far apart they are, in units of the temperature.
LEVELS = tl.constexpr(16)
LEVEL_WIDTH = tl.constexpr(0.75)
# How far off a rough sum may be: float32 rounding of arguments up to 88, twice, the hardware's exp, and masses that
# are cut off at 2**-44, come to less than half of this.
ROUGH = tl.constexpr(1e-4)
# Levels are multiples of their width. Beyond this one they are too close to tell apart in float32.
LAST_LEVEL = tl.constexpr(2.0**20)
# The keys of +inf and of the least finite float.
INFINITE_KEY = tl.constexpr(0xFF800000)
LEAST_KEY = tl.constexpr(0x00800000)
MANY = tl.constexpr(2**31 - 1)

# Arguments that are no pointers to float32, as Triton names types; `logits` is of any dtype.
TYPES = {
    **dict.fromkeys(("stride", "vocab", "words", "tiles", "width"), "i32"),
    **dict.fromkeys(("listed", "refused", "top_k", "first", "pending", "low_key", "high_key", "count"), "*i32"),
    **dict.fromkeys(("chosen", "ids", "status", "best_token"), "*i32"),
    **dict.fromkeys(("seed", "position", "tokens", "mass_all", "mass_above"), "*i64"),
    "raw_total": "*fp64",
}


@triton.jit
def mark(tokens, width, vocab, words, listed, refused, CHUNK: tl.constexpr):
    """One bit for each token of the vocabulary, set for those listed: tokens int64 [B, width] -> int32 [B, words].

    refused int32 [B] tells of ids that are no token and no padding.
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, CHUNK)
    for start in range(0, words, CHUNK):
        tl.store(listed + row * words + start + lane, 0, mask=start + lane < words)
    tl.debug_barrier()
    wrong = tl.zeros((CHUNK,), tl.int32)
    for start in range(0, width, CHUNK):
        token = tl.load(tokens + row * width + start + lane, mask=start + lane < width, other=-1)
        wrong |= ((token < -1) | (token >= vocab)).to(tl.int32)
        known = (token >= 0) & (token < vocab)
        bit = tl.full((CHUNK,), 1, tl.int32) << (token & 31).to(tl.int32)
        tl.atomic_or(listed + row * words + (token >> 5), bit, mask=known)
    tl.store(refused + row, tl.max(wrong))


@triton.jit
def scan(
    logits, stride, vocab, listed, words, penalty, temperature, top_k, top_p,
    peak, first, raw_peak, raw_sum, anchor, level, level_all, group_peak,
    PENALISED: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile of one row: its largest logit and the id of that, +inf where one is NaN or +inf; the sum of exp of the
    raw logits over the largest of them; for top-k, the largest logit of every group; for top-p, how much lies above
    each of some levels.
    """
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    at = row * tl.num_programs(1) + tile
    ids = tile * TILE + tl.arange(0, TILE)
    t = tl.load(temperature + row)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    by = 1.0
    if PENALISED:
        by = tl.load(penalty + row)
    raw, x = load_row(logits + row * stride, listed + row * words, by, ids, vocab, PENALISED)
    x = tl.where(x == x, x, float("inf"))

    largest = tl.max(x)
    tl.store(peak + at, largest)
    tl.store(first + at, tl.min(tl.where(x == largest, ids, MANY)))
    raw_largest = tl.max(tl.where(raw == raw, raw, -float("inf")))
    tl.store(raw_peak + at, raw_largest)
    tl.store(raw_sum + at, tl.sum(tl.where(raw > -float("inf"), tl.exp(raw - raw_largest), 0.0)))

    if (t > 0) & (k > 0) & (k < vocab):
        groups = tl.cdiv(vocab, GROUP)
        group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
        largest_of = tl.max(tl.reshape(x, (TILE // GROUP, GROUP)), axis=1)
        tl.store(group_peak + row * groups + group, largest_of, mask=group < groups)
    elif (t > 0) & (p < 1):
        # Levels of all tiles lie on one grid, the multiples of `step`, so that they can be added up. The first of a
        # tile's is the last that none of its tokens lies strictly above: `largest` <= anchor * step holds exactly,
        # since rounding is monotonic.
        step = t * LEVEL_WIDTH
        ratio = tl.div_rn(largest, step)
        at_level = tl.where(tl.abs(ratio) < LAST_LEVEL, tl.floor(ratio) + 1, float("nan"))
        at_level = tl.where(largest == -float("inf"), -float("inf"), at_level)
        tl.store(anchor + at, at_level)
        w = tl.where(x > -float("inf"), tl.exp((x - largest) / t), 0.0)
        sums = tl.sum(tl.reshape(above_16(x, w, at_level, step, TILE), (TILE // 4, LEVELS)), axis=0)
        tl.store(level + at * LEVELS + tl.arange(0, LEVELS), sums)
        tl.store(level_all + at, tl.sum(w))


@triton.jit
def above(x, w, at_level, step, i: tl.constexpr, TILE: tl.constexpr):
    """The weights above level i: [TILE // 4], four of a thread's tokens added up."""
    return tl.sum(tl.reshape(tl.where(x > (at_level - (i + 1)) * step, w, 0.0), (TILE // 4, 4)), axis=1)


# All levels side by side, in order, so that one exchange between threads adds up all of them.
@triton.jit
def above_2(x, w, at_level, step, i: tl.constexpr, TILE: tl.constexpr):
    return tl.join(above(x, w, at_level, step, i, TILE), above(x, w, at_level, step, i + 8, TILE))


@triton.jit
def above_4(x, w, at_level, step, i: tl.constexpr, TILE: tl.constexpr):
    return tl.join(above_2(x, w, at_level, step, i, TILE), above_2(x, w, at_level, step, i + 4, TILE))


@triton.jit
def above_8(x, w, at_level, step, i: tl.constexpr, TILE: tl.constexpr):
    return tl.join(above_4(x, w, at_level, step, i, TILE), above_4(x, w, at_level, step, i + 2, TILE))


@triton.jit
def above_16(x, w, at_level, step, TILE: tl.constexpr):
    return tl.join(above_8(x, w, at_level, step, 0, TILE), above_8(x, w, at_level, step, 1, TILE))


@triton.jit
def choose(
    logits, stride, vocab, listed, words, penalty, temperature, top_k, top_p, min_p, position, refused,
    peak, first, raw_peak, raw_sum, anchor, level, level_all, group_peak, tiles,
    top, raw_top, raw_total, pending, low_key, high_key, count, chosen, xs, ws, ids,
    tokens, logprobs, status,
    PENALISED: tl.constexpr, TILES: tl.constexpr, GROUP: tl.constexpr, CAPACITY: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """One row: its status, its token if greedy; else the keys above which all tokens are kept and below which none is,
    and for top-k the tokens between.
    """
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES)
    here = tile < tiles
    at = row * tiles + tile
    t = tl.load(temperature + row)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    m = tl.load(min_p + row)
    valid = (t >= 0) & (t < float("inf")) & (k >= 0) & (p > 0) & (p <= 1) & (m >= 0) & (m <= 1)
    valid &= tl.load(position + row) >= 0
    by = 1.0
    if PENALISED:
        by = tl.load(penalty + row)
        valid &= (by > 0) & (by < float("inf")) & (tl.load(refused + row) == 0)

    peaks = tl.load(peak + at, mask=here, other=-float("inf"))
    largest = tl.max(peaks)
    token = tl.min(tl.where(here & (peaks == largest), tl.load(first + at, mask=here, other=MANY), MANY))
    raw_peaks = tl.load(raw_peak + at, mask=here, other=-float("inf"))
    raw_largest = tl.max(raw_peaks)
    sums = tl.load(raw_sum + at, mask=here, other=0.0).to(tl.float64)
    scaled = tl.where(raw_peaks > -float("inf"), sums * tl.exp(raw_peaks - raw_largest).to(tl.float64), 0.0)
    total = tl.sum(scaled)
    tl.store(top + row, largest)
    tl.store(raw_top + row, raw_largest)
    tl.store(raw_total + row, total)

    state = tl.where(largest == float("inf"), NOT_FINITE, tl.where(largest == -float("inf"), EMPTY, OK))
    state = tl.where(valid, state, INVALID)
    drawn = (state == OK) & (t > 0)
    tl.store(status + row, state)
    tl.store(pending + row, drawn.to(tl.int32))
    if state != OK:
        tl.store(tokens + row, -1)
        tl.store(logprobs + row, float("nan"))
    elif t == 0:
        raw = tl.load(logits + row * stride + token).to(tl.float64)
        tl.store(tokens + row, token)
        tl.store(logprobs + row, (raw - raw_largest - tl.log(total)).to(tl.float32))

    if drawn:
        low = tl.full((), LEAST_KEY, tl.uint32)
        high = tl.full((), INFINITE_KEY, tl.uint32)
        found = tl.full((), 0, tl.int32)
        if (k > 0) & (k < vocab):
            found += MANY
            groups = tl.cdiv(vocab, GROUP)
            if (k < groups) & (k <= CAPACITY // GROUP):
                facts = (logits + row * stride, listed + row * words, by, vocab, largest, t)
                buffer = (xs + row * CAPACITY, ws + row * CAPACITY, ids + row * CAPACITY)
                group_list = chosen + row * (CAPACITY // GROUP)
                low, found = gather_groups(
                    k, groups, group_peak + row * groups, group_list, facts, buffer, GROUP, PENALISED, CHUNK
                )
        elif p < 1:
            anchors = tl.load(anchor + at, mask=here, other=-float("inf"))
            if tl.max((anchors != anchors).to(tl.int32)) == 0:
                whole = tl.load(level_all + at, mask=here, other=0.0)
                low, high = bracket(p, t, largest, peaks, anchors, here, level + at * LEVELS, whole)
        else:
            high = low - 1
        tl.store(low_key + row, low.to(tl.int32, bitcast=True))
        tl.store(high_key + row, high.to(tl.int32, bitcast=True))
        tl.store(count + row, found)


@triton.jit
def gather_groups(k, groups, group_peak, group_list, row, buffer, GROUP: tl.constexpr, PENALISED: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """Put the tokens of the k groups with the largest maxima, ties to the lower ones, into the buffer.

    The k largest tokens are among them: each of these groups has a token, its maximum, that ranks above every token
    of every other group. Tokens below the smallest of the maxima are left out, as k tokens are above them.

    Returns the smallest of those maxima as a key, and how many places of the buffer are taken.
    """
    lane = tl.arange(0, CHUNK)
    # Weights and ids play no part where candidates are counted.
    pool = (groups, group_peak, group_peak, group_peak.to(tl.pointer_type(tl.int32), bitcast=True), False, 0, 0)
    no_cut = (0, 0)
    present = weight_of_all(row, pool, no_cut, COUNT, PENALISED, CHUNK)
    goal = tl.minimum(k.to(tl.int64), present)
    none = goal * 0
    least = tl.full((), LEAST_KEY, tl.uint32)
    key, _, above = search(goal, none, present, least, ordered_key(row[4]), row, pool, no_cut, COUNT, PENALISED, CHUNK)
    ties = (goal - above).to(tl.int32)
    passed = ties * 0
    taken = ties * 0
    for start in range(0, groups, CHUNK):
        group = start + lane
        largest = ordered_key(tl.load(group_peak + group, mask=group < groups, other=-float("inf")))
        tie = (largest == key).to(tl.int32)
        take = ((largest > key) | ((tie != 0) & (passed + tl.cumsum(tie) <= ties))).to(tl.int32)
        tl.store(group_list + taken + tl.cumsum(take) - 1, group, mask=take != 0)
        passed += tl.sum(tie)
        taken += tl.sum(take)
    tl.debug_barrier()  # the list is read by other threads than those that wrote it

    logits, listed, by, vocab, top, t = row
    xs, ws, ids = buffer
    found = taken * GROUP
    for start in range(0, found, CHUNK):
        place = start + lane
        token = tl.load(group_list + place // GROUP, mask=place < found, other=0) * GROUP + place % GROUP
        _raw, x = load_row(logits, listed, by, token, vocab, PENALISED)
        x = tl.where(ordered_key(x) >= key, x, -float("inf"))
        tl.store(xs + place, x, mask=place < found)
        tl.store(ws + place, exact_exp(tl.div_rn(x - top, t)), mask=place < found)
        tl.store(ids + place, token, mask=place < found)
    return key, found


@triton.jit
def bracket(p, t, largest, peaks, anchors, here, levels, total):
    """The keys between which top-p cuts: the lowest that may be kept, and the highest that may not be.

    From rough sums, so with a margin: all tokens above the upper bound are short of the goal, and those from the
    lower one on are enough.

    Args:
        peaks, anchors, total: [TILES], the largest logit, the first level and the weight of every tile.
        levels: [TILES], where the weights above the levels of each tile are.
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
    high = tl.min(tl.where(weight * (1 + ROUGH) < goal * (1 - ROUGH), bound, float("inf")))
    low = tl.max(tl.where(weight * (1 - ROUGH) > goal * (1 + ROUGH), bound, -float("inf")))
    return ordered_key(low) + 1, ordered_key(high)


@triton.jit
def draw(
    logits, stride, vocab, listed, words, penalty, temperature, top_k, top_p, min_p, seed, position,
    top, pending, low_key, high_key, count, xs, ws, ids,
    mass_all, mass_above, best_score, best_token,
    PENALISED: tl.constexpr, TILE: tl.constexpr, CAPACITY: tl.constexpr,
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
                fits = asked & (place < CAPACITY)
                tl.store(xs + row * CAPACITY + place, x, mask=fits)
                tl.store(ws + row * CAPACITY + place, w, mask=fits)
                tl.store(ids + row * CAPACITY + place, token, mask=fits)
        free = certain & (x > -float("inf")) & (w >= tl.load(min_p + row))
        best = tl.full((TILE,), -float("inf"), tl.float32)
        if tl.max(free.to(tl.int32)) != 0:
            noise = gumbel_from(tl.load(seed + row), tl.load(position + row), start, TILE)
            best = tl.where(free, y + noise, -float("inf"))
        score = tl.max(best)
        tl.store(best_score + at, score)
        tl.store(best_token + at, tl.min(tl.where(best == score, token, MANY)))


@triton.jit
def finish(
    logits, stride, vocab, listed, words, penalty, temperature, top_k, top_p, min_p, seed, position,
    top, raw_top, raw_total, pending, low_key, high_key, count, xs, ws, ids,
    mass_all, mass_above, best_score, best_token, tiles,
    tokens, logprobs,
    PENALISED: tl.constexpr, TILES: tl.constexpr, CAPACITY: tl.constexpr, CHUNK: tl.constexpr,
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
        whole = found > CAPACITY
        facts = (logits + row * stride, listed + row * words, by, vocab, largest, t)
        pool = (
            tl.where(whole, vocab, found),
            xs + row * CAPACITY, ws + row * CAPACITY, ids + row * CAPACITY,
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
