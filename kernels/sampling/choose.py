"""The kernel `choose`: for each row its status, its token if greedy, else between which keys the cut falls."""

from __future__ import annotations

import triton
import triton.language as tl

from ..overlap import take_over
from .arithmetic import LOG2_E, exact_exp, exact_log, from_key, ordered_key
from .bracket import bracket, narrow
from .scan import LEVELS, finite
from .search import COUNT, INFINITE_KEY, LEAST_KEY, MANY, load_row, search, weight_of_all

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
    peak, first, raw_peak, raw_sum, anchor, level, level_all, group_peak, tiles,
    top, raw_top, raw_total, pending, low_key, high_key, count, lowest, chosen, xs, ws, ids, capacity,
    tokens, logprobs, status,
    PENALISED: tl.constexpr, TILES: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr, SAMPLE: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """One row: its status, its token if greedy; else the keys above which all tokens are likely to be kept and below
    which none is, and for top-k the tokens between.
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
        if (k > 0) & (k < vocab):
            found += MANY
            tl.store(pending + row, BY_TOKEN)
            groups = tl.cdiv(vocab, GROUP)
            if (k < groups) & (k <= capacity // GROUP):
                buffer = (xs + row * capacity, ws + row * capacity, ids + row * capacity)
                group_list = chosen + row * (capacity // GROUP)
                low, found = gather_groups(
                    k, capacity // GROUP, groups, group_peak + row * groups, group_list, facts, buffer,
                    GROUP, PENALISED, CHUNK,
                )  # fmt: skip
        elif p < 1:
            anchors = tl.load(anchor + at, mask=here, other=-float("inf"))
            if tl.max((anchors != anchors).to(tl.int32)) == 0:
                whole = tl.load(level_all + at, mask=here, other=0.0)
                low_x, high_x, above, within, goal = bracket(
                    p, t, largest, peaks, anchors, here, level + at * LEVELS, whole
                )
                if low_x > -float("inf"):
                    # No token above the lower level weighs less than this, which tells how many there are at most.
                    least = tl.exp2((low_x - largest) * (LOG2_E / t))
                    if above + within <= tl.minimum(4 * CHUNK, capacity) * least:
                        high_x = tl.full((), float("inf"), tl.float32)
                        tl.store(pending + row, BY_TOKEN)
                    elif within > CHUNK * least:
                        low_x, high_x = narrow(low_x, high_x, above, within, goal, facts, SAMPLE, PENALISED)
                low, high = ordered_key(low_x) + 1, ordered_key(high_x)
        else:
            high = low - 1
        tl.store(low_key + row, low.to(tl.int32, bitcast=True))
        tl.store(high_key + row, high.to(tl.int32, bitcast=True))
        tl.store(count + row, found)
        # What top-p or min-p drops is not drawn either, but for what is so near that it takes the exact exp to tell. Of
        # 0 and denormals the logarithm is wrong, but less than the least y.
        cut_off = tl.maximum(exact_log(m) - 0.01, tl.div_rn(from_key(low) - largest, t))
        tl.store(lowest + row, tl.maximum(cut_off, LEAST_Y))


@triton.jit
def gather_groups(
    k, room, groups, group_peak, group_list, row, buffer,
    GROUP: tl.constexpr, PENALISED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Put the k largest tokens into the buffer, and others that are as large as the smallest of some k groups' maxima.

    All of the k largest are in the k groups with the largest maxima, ties to the lower ones: each of these groups has
    a token, its maximum, that ranks above every token of every other group. Up to twice as many groups will do as well,
    where they are found sooner.

    Args:
        room: groups that there is room for in the list, and whose tokens the buffer has room for.

    Returns the smallest of the maxima, or less, as a key, and how many places of the buffer are taken.
    """
    lane = tl.arange(0, CHUNK)
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
    some = tl.where(between <= few, between, goal - above).to(tl.int32)
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

    logits, listed, by, vocab, top, t = row
    xs, ws, ids = buffer
    found = some * 0
    for start in range(0, taken * GROUP, CHUNK):
        place = start + lane
        here = place < taken * GROUP
        token = tl.load(group_list + place // GROUP, mask=here, other=0) * GROUP + place % GROUP
        _raw, x = load_row(logits, listed, by, token, vocab, PENALISED)
        asked = here & (ordered_key(x) >= key)
        to = found + tl.cumsum(asked.to(tl.int32)) - 1
        tl.store(xs + to, x, mask=asked)
        tl.store(ws + to, exact_exp(tl.div_rn(x - top, t)), mask=asked)
        tl.store(ids + to, token, mask=asked)
        found += tl.sum(asked.to(tl.int32))
    return key, found
