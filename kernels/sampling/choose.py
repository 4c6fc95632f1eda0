"""The kernel `choose`: for each row its status, its token if greedy, else between which keys the cut falls."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import exact_exp, ordered_key
from .scan import LEVEL_WIDTH, LEVELS
from .search import COUNT, INFINITE_KEY, LEAST_KEY, MANY, load_row, search, weight_of_all

# SampleStatus, as kernels need it.
OK = tl.constexpr(0)
NOT_FINITE = tl.constexpr(1)
EMPTY = tl.constexpr(2)
INVALID = tl.constexpr(3)

# How far off a rough sum may be: float32 rounding of arguments up to 88, twice, the hardware's exp, and masses that
# are cut off at 2**-44, come to less than half of this.
ROUGH = tl.constexpr(1e-4)


@triton.jit(do_not_specialize=["words", "tiles"])
def choose(
    logits, stride, vocab, listed, words, penalty, temperature, top_k, top_p, min_p, position, refused,
    peak, first, raw_peak, raw_sum, anchor, level, level_all, group_peak, tiles,
    top, raw_top, raw_total, pending, low_key, high_key, count, chosen, xs, ws, ids, capacity,
    tokens, logprobs, status,
    PENALISED: tl.constexpr, TILES: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr,
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
            if (k < groups) & (k <= capacity // GROUP):
                facts = (logits + row * stride, listed + row * words, by, vocab, largest, t)
                buffer = (xs + row * capacity, ws + row * capacity, ids + row * capacity)
                group_list = chosen + row * (capacity // GROUP)
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
def gather_groups(
    k, groups, group_peak, group_list, row, buffer,
    GROUP: tl.constexpr, PENALISED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
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
