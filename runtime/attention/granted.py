"""The grants of a packed sequence as areas of its mask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ds2ds.documents.spans import DocSpan


def granted_areas(spans: Sequence[DocSpan]) -> np.ndarray:
    """int64 [areas, 4]: tokens [first, last) read all of tokens [low, high), by the grants of checked spans.

    Areas are not empty and share no pair of tokens: grants of one target by one document that overlap or touch are
    one area.
    """
    areas = []
    for span in spans:
        intervals: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for grant in span.grants:
            stop = len(span) if grant.end is None else min(grant.end, len(span))
            if grant.position < stop and len(spans[grant.target]):
                intervals[grant.target].append((span.start + grant.position, span.start + stop))
        for target, found in intervals.items():
            low, high = spans[target].start, spans[target].end
            areas += [(first, last, low, high) for first, last in _merged(found)]
    return np.array(areas, dtype=np.int64).reshape(-1, 4)


def _merged(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Their union as disjoint intervals, ascending."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(intervals):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged
