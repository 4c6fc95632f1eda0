"""How many hits no cache can exceed, whatever its policy and though it knew the whole trace in advance.

Items have sizes, so Belady's rule is no bound. This is the linear program of Berger, Beckmann and Harchol-Balter,
"Practical Bounds on Optimal Caching with Variable Object Sizes" (2018): between two requests of an item it is kept
whole, in part, or not at all, and a part counts as that part of a hit. What is kept at any time must fit beside the
item that is requested then. Any real cache is one solution of it, so its optimum is a bound; where all items are of one
size the optimum is Belady's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def most_hits(trace: Ints, sizes: Ints, weights: Ints, capacity: int) -> float:
    """The largest total weight of hits on a trace that a cache of this capacity could reach.

    Args:
        trace: [requests], the item of each request. An item that is not there is loaded, and must then fit.
        sizes: [items], room each takes.
        weights: [items], what a hit counts: ones to count hits, lengths to count tokens.

    Raises:
        ValueError: an item is larger than the capacity.
    """
    if len(trace) and sizes[trace].max() > capacity:
        raise ValueError(f"an item of size {sizes[trace].max()} does not fit a cache of {capacity}")
    first, second = repeats(trace)
    item = trace[first]
    apart = second > first + 1  # asked for twice in a row costs no room
    sure = float(weights[item[~apart]].sum())
    if not apart.any():
        return sure
    first, second, item = first[apart], second[apart], item[apart]
    return sure + _solve(first, second, sizes[item], weights[item], capacity - sizes[trace])


def repeats(trace: Ints) -> tuple[Ints, Ints]:
    """Where a request and the next one of the same item stand: each pair is a possible hit."""
    order = np.argsort(trace, kind="stable")
    same = trace[order[1:]] == trace[order[:-1]]
    return order[:-1][same], order[1:][same]


def _solve(first: Ints, second: Ints, sizes: Ints, weights: Ints, room: Ints) -> float:
    """The linear program. Interval i is open: what it keeps takes room at requests first[i] + 1 .. second[i] - 1.

    kept_i in [0, sizes_i] maximises sum(kept_i * weights_i / sizes_i), so that at each request the kept_i that cover it
    and a slack add up to room. Each such row less the one before it has few entries, a network matrix: an interval
    is in the row where it begins and, negative, in the one after its end.
    """
    # scipy belongs to the extra "bench" alone.
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    # Requests covered by the same intervals are one row, with the least room among them.
    changes = np.zeros(len(room), dtype=bool)
    changes[first + 1] = changes[second] = True
    row_of = np.cumsum(changes)
    rows, intervals = int(row_of[-1]) + 1, len(first)
    least = np.full(rows, np.iinfo(np.int64).max)
    np.minimum.at(least, row_of, room)

    slack = intervals + np.arange(rows)
    entries = (
        (row_of[first + 1], np.arange(intervals), 1.0),
        (row_of[second], np.arange(intervals), -1.0),
        (np.arange(rows), slack, 1.0),
        (np.arange(1, rows), slack[:-1], -1.0),
    )
    matrix = coo_array(
        (
            np.concatenate([np.full(len(row), value) for row, _, value in entries]),
            (np.concatenate([row for row, _, _ in entries]), np.concatenate([column for _, column, _ in entries])),
        ),
        shape=(rows, intervals + rows),
    )
    found = linprog(
        np.concatenate([-weights / sizes, np.zeros(rows)]),
        A_eq=matrix.tocsr(),
        b_eq=np.diff(least, prepend=0),
        bounds=np.stack([np.zeros(intervals + rows), np.concatenate([sizes, np.full(rows, np.inf)])], axis=1),
        method="highs-ds",
    )
    if found.status != 0:
        raise RuntimeError(f"the linear program of {rows} rows was not solved: {found.message}")
    return -float(found.fun)
