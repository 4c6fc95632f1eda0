"""The kernel `choose`: for each row its status, its token if greedy, else between which keys the cut falls."""

from __future__ import annotations

import triton
import triton.language as tl

from ..overlap import take_over
from .arithmetic import LOG2_E, exact_exp, exact_log, from_key, ordered_key
from .bracket import ROUGH, groups_above, lower_bound, narrow
from .scan import finite
from .search import COUNT, INFINITE_KEY, LEAST_KEY, MANY, MASS_ONE, goal_of, load_row, mass, search, weight_of_all

# SampleStatus, as kernels need it.
OK = tl.constexpr(0)
NOT_FINITE = tl.constexpr(1)
EMPTY = tl.constexpr(2)
INVALID = tl.constexpr(3)

# What `pending` says of a row: that it has its token, or none; or how `finish` is to find it.
SETTLED = tl.constexpr(0)
BY_TILE = tl.constexpr(1)  # among all tokens, by the bounds of `draw`
BY_TOKEN = tl.constexpr(2)  # among the tokens in question, which are all that may be kept

# A token whose y is below this is never drawn: the likeliest one's score is -3.2 at least, and noise 22.9 at most.
LEAST_Y = tl.constexpr(-80.0)


@triton.jit(do_not_specialize=["words", "tiles"])
def choose(
    logits, stride, vocab, listed, words, penalty, temperature, top_k, top_p, min_p, position, refused,
    peak, first, raw_peak, raw_sum, weight, group_peak, group_weight, tiles,
    top, raw_top, raw_total, pending, low_key, high_key, count, lowest, goals, chosen, xs, ws, ids, capacity,
    tokens, logprobs, status,
    PENALISED: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr,
    SAMPLE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One row: its status, its token if greedy; else the keys above which all tokens are likely to be kept and below
    which none is, and for top-k, or if they are few, the tokens between; under top-p alone their mass with them, and
    the least and the most that top-p may ask for.
    """
    if OVERLAP:
        take_over()
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
    raw_peaks = tl.load(raw_peak + at, mask=here, other=-float("inf"))
    raw_largest = tl.max(raw_peaks)
    sums = tl.load(raw_sum + at, mask=here, other=0.0).to(tl.float64)
    total = tl.sum(sums * tl.exp(raw_peaks - finite(raw_largest)).to(tl.float64))
    tl.store(top + row, largest)
    tl.store(raw_top + row, raw_largest)
    tl.store(raw_total + row, total)

    # A sum is NaN where a logit is NaN or +inf; a penalty may have made one +inf.
    sound = (total == total) & (largest < float("inf"))
    state = tl.where(sound, tl.where(largest == -float("inf"), EMPTY, OK), NOT_FINITE)
    state = tl.where(valid, state, INVALID)
    drawn = (state == OK) & (t > 0)
    tl.store(status + row, state)
    tl.store(pending + row, drawn.to(tl.int32) * BY_TILE)
    if state != OK:
        tl.store(tokens + row, -1)
        tl.store(logprobs + row, float("nan"))
    elif t == 0:
        firsts = tl.load(first + at, mask=here, other=MANY)
        token = tl.min(tl.where(here & (peaks == largest), firsts, MANY))
        raw = tl.load(logits + row * stride + token).to(tl.float64)
        tl.store(tokens + row, token)
        tl.store(logprobs + row, (raw - raw_largest - tl.log(total)).to(tl.float32))

    if drawn:
        low = tl.full((), LEAST_KEY, tl.uint32)
        high = tl.full((), INFINITE_KEY, tl.uint32)
        found = tl.full((), 0, tl.int32)
        facts = (logits + row * stride, listed + row * words, by, vocab, largest, t)
        groups = tl.cdiv(vocab, GROUP)
        group_peak += row * groups
        room = capacity // GROUP
        by_rank = (k > 0) & (k < vocab)
        # The tokens of these groups are read: with a maximum above `upper`, and some with one from `low` on.
        gathers = by_rank & (k < groups) & (k <= room)
        upper = low
        some = found
        low_x = tl.full((), -float("inf"), tl.float32)
        spare = tl.full((), 0.0, tl.float32)
        rest = spare
        if by_rank:
            found += MANY
            tl.store(pending + row, BY_TOKEN)
            if gathers:
                low, upper, some = largest_groups(k, room, groups, group_peak, facts, PENALISED, CHUNK)
        elif p < 1:
            scale = tl.exp2((peaks - largest) * (LOG2_E / t))
            spare = (1 - p) * tl.sum(tl.load(weight + at, mask=here, other=0.0) * scale)
            table = (groups, group_peak, group_weight + row * groups, peak + row * tiles)
            low_x = lower_bound(spare, facts, table, GROUP, TILE // GROUP, CHUNK // 2)
            if low_x > -float("inf"):
                number, rest = groups_above(low_x, facts, table, TILE // GROUP, CHUNK)
                # One program reads them: of more than a quarter of the row it would be the longest way.
                gathers = number <= tl.minimum(room, groups // 4)
                upper = ordered_key(low_x)
                low = upper + 1
        else:
            high = low - 1
        if gathers:
            group_list = chosen + row * room
            buffer = (xs + row * capacity, ws + row * capacity, ids + row * capacity)
            taken = list_groups(low, upper, some, groups, group_peak, group_list, CHUNK)
            gathered, reached, near = read_groups(taken, low, group_list, facts, buffer, GROUP, PENALISED, CHUNK)
            if by_rank:
                found = gathered
            else:
                # The mass of the row is between these two. Of each token less than one is cut off.
                away = rest.to(tl.float64) * MASS_ONE
                goal = goal_of(near + (away * (1 - ROUGH)).to(tl.int64) - vocab, p)
                most = goal_of(near + (away * (1 + ROUGH)).to(tl.int64) + 1, p)
                if most <= reached:
                    found = gathered
                    tl.store(pending + row, BY_TOKEN)
                    tl.store(goals + row * 3, tl.maximum(goal, 1))
                    tl.store(goals + row * 3 + 1, most)
                    tl.store(goals + row * 3 + 2, reached)
        elif low_x > -float("inf"):
            low_x, high_x = narrow(low_x, spare, facts, SAMPLE, PENALISED)
            low, high = ordered_key(low_x) + 1, ordered_key(high_x)
        tl.store(low_key + row, low.to(tl.int32, bitcast=True))
        tl.store(high_key + row, high.to(tl.int32, bitcast=True))
        tl.store(count + row, found)
        # What top-p or min-p drops is not drawn either, but for what is so near that it takes the exact exp to tell. Of
        # 0 and denormals the logarithm is wrong, but less than the least y.
        cut_off = tl.maximum(exact_log(m) - 0.01, tl.div_rn(from_key(low) - largest, t))
        tl.store(lowest + row, tl.maximum(cut_off, LEAST_Y))


@triton.jit
def largest_groups(k, room, groups, group_peak, row, PENALISED: tl.constexpr, CHUNK: tl.constexpr):
    """Groups that hold the k largest tokens: those with a maximum above ``upper``, and the first ``some`` of those with
    one from ``key`` on. Returns key, upper and some.

    All of the k largest are in the k groups with the largest maxima, ties to the lower ones: each of these groups has
    a token, its maximum, that ranks above every token of every other group. Up to twice as many groups will do as well,
    where they are found sooner, but no more than there is room for.
    """
    # Weights and ids play no part where candidates are counted.
    pool = (groups, group_peak, group_peak, group_peak.to(tl.pointer_type(tl.int32), bitcast=True), False, 0, 0)
    no_cut = (0, 0)
    present = weight_of_all(row, pool, no_cut, COUNT, PENALISED, CHUNK)
    goal = tl.minimum(k.to(tl.int64), present)
    few = tl.minimum(goal, room - goal)
    none = goal * 0
    least = tl.full((), LEAST_KEY, tl.uint32)
    last = ordered_key(row[4])
    key, upper, reached, above = search(
        goal, none, present, few, least, last, row, pool, no_cut, COUNT, PENALISED, CHUNK
    )
    between = reached - above
    return key, upper, tl.where(between <= few, between, goal - above).to(tl.int32)


@triton.jit
def list_groups(key, upper, some, groups, group_peak, group_list, CHUNK: tl.constexpr):
    """List the groups with a maximum above ``upper``, and the first ``some`` of those with one from ``key`` on, in
    order. Returns how many they are.
    """
    lane = tl.arange(0, CHUNK)
    passed = some * 0
    taken = some * 0
    for start in range(0, groups, CHUNK):
        group = start + lane
        largest = ordered_key(tl.load(group_peak + group, mask=group < groups, other=-float("inf")))
        one = ((largest >= key) & (largest <= upper)).to(tl.int32)
        take = ((largest > upper) | ((one != 0) & (passed + tl.cumsum(one) <= some))).to(tl.int32)
        tl.store(group_list + taken + tl.cumsum(take) - 1, group, mask=take != 0)
        passed += tl.sum(one)
        taken += tl.sum(take)
    tl.debug_barrier()  # the list is read by other threads than those that wrote it
    return taken


@triton.jit
def read_groups(taken, key, group_list, row, buffer, GROUP: tl.constexpr, PENALISED: tl.constexpr, CHUNK: tl.constexpr):
    """Put the tokens of listed groups that have at least this key into the buffer. Returns how many they are, their
    mass, and that of all tokens of these groups.
    """
    lane = tl.arange(0, CHUNK)
    logits, listed, by, vocab, top, t = row
    xs, ws, ids = buffer
    found = taken * 0
    masses = tl.zeros((2,), tl.int64)
    for start in range(0, taken * GROUP, CHUNK):
        place = start + lane
        here = place < taken * GROUP
        token = tl.load(group_list + place // GROUP, mask=here, other=0) * GROUP + place % GROUP
        _raw, x = load_row(logits, listed, by, token, vocab, PENALISED)
        w = exact_exp(tl.div_rn(x - top, t))
        asked = here & (ordered_key(x) >= key)
        to = found + tl.cumsum(asked.to(tl.int32)) - 1
        tl.store(xs + to, x, mask=asked)
        tl.store(ws + to, w, mask=asked)
        tl.store(ids + to, token, mask=asked)
        found += tl.sum(asked.to(tl.int32))
        masses += tl.sum(tl.join(tl.where(asked, mass(w), 0), tl.where(here, mass(w), 0)), axis=0)
    reached, near = tl.split(masses)
    return found, reached, near
