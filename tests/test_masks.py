"""Masks against their definitions, decided token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.attention.masks import MASKS, check_spans, document_ids
from ds2ds.documents.spans import DocSpan, SpanGrant

Rule = Callable[[Sequence[DocSpan], int, int], bool]


def home(spans: Sequence[DocSpan], token: int) -> int:
    return next(index for index, span in enumerate(spans) if span.start <= token < span.end)


def is_granted(spans: Sequence[DocSpan], row: int, column: int) -> bool:
    own = spans[home(spans, row)]
    at = row - own.start
    return any(
        grant.target == home(spans, column) and grant.position <= at and (grant.end is None or at < grant.end)
        for grant in own.grants
    )


RULES: dict[str, Rule] = {
    "causal": lambda spans, row, column: column <= row,
    "full": lambda spans, row, column: True,
    "doc_bidirectional": lambda spans, row, column: home(spans, row) == home(spans, column),
    "doc_causal": lambda spans, row, column: column <= row and home(spans, row) == home(spans, column),
    "cross_doc_link": lambda spans, row, column: (
        RULES["doc_causal"](spans, row, column) or is_granted(spans, row, column)
    ),
}


@st.composite
def packed(draw: st.DrawFn) -> list[DocSpan]:
    """Up to five documents in a row, some of them empty, with grants of each other in any direction."""
    lengths = draw(st.lists(st.integers(0, 7), min_size=1, max_size=5).filter(sum))
    spans, at = [], 0
    for index, length in enumerate(lengths):
        others = [other for other in range(len(lengths)) if other != index]
        grants = st.builds(
            SpanGrant,
            st.integers(0, length + 1),
            st.sampled_from(others or [0]),
            st.none() | st.integers(0, length + 2),
        )
        spans.append(DocSpan(f"d{index}", at, at + length, tuple(draw(st.lists(grants, max_size=3 if others else 0)))))
        at += length
    return spans


@pytest.mark.parametrize("name", sorted(RULES))
@settings(max_examples=40, deadline=None, derandomize=True)
@given(spans=packed())
def test_masks_equal_their_definitions(name: str, spans: list[DocSpan]) -> None:
    length = spans[-1].end
    expected = [[RULES[name](spans, row, column) for column in range(length)] for row in range(length)]
    mask = MASKS[name](length, spans)
    assert mask.dtype == torch.bool
    assert mask.tolist() == expected


def test_every_mask_of_the_design_is_there() -> None:
    assert set(MASKS) == {"doc_causal", "causal", "full", "doc_bidirectional", "cross_doc_link"}


def test_a_grant_by_hand() -> None:
    spans = [DocSpan("t", 0, 2), DocSpan("d", 2, 6, (SpanGrant(1, 0, 3),))]
    assert MASKS["cross_doc_link"](6, spans).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1],
    ]


def test_document_ids() -> None:
    spans = [DocSpan("a", 0, 2), DocSpan("empty", 2, 2), DocSpan("c", 2, 3)]
    ids = document_ids(3, spans)
    assert (ids.tolist(), ids.dtype) == ([0, 0, 2], torch.int64)


# Spans that cannot be are refused by every mask, whether it reads them or not.


@pytest.mark.parametrize("name", sorted(MASKS))
@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([(1, 6)], r"doc_spans\[0\] is \[1, 6\), expected it to start at 0"),
        ([(0, 2), (3, 6)], r"doc_spans\[1\] is \[3, 6\), expected it to start at 2"),
        ([(0, 4), (3, 6)], r"doc_spans\[1\] is \[3, 6\), expected it to start at 4"),
        ([(0, 4), (4, 3), (3, 6)], r"doc_spans\[1\] is \[4, 3\)"),
        ([(0, 5)], r"end at 5, but there are 6 tokens"),
        ([(0, 7)], r"end at 7, but there are 6 tokens"),
        ([], r"end at 0, but there are 6 tokens"),
    ],
)
def test_spans_must_cover_the_sequence_once(name: str, bounds: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MASKS[name](6, [DocSpan("d", *bound) for bound in bounds])


@pytest.mark.parametrize("name", sorted(MASKS))
@pytest.mark.parametrize(
    "grant",
    [SpanGrant(0, 2), SpanGrant(0, -1), SpanGrant(0, 1), SpanGrant(-1, 0), SpanGrant(0, 0, -1)],
    ids=["no such span", "negative span", "itself", "negative position", "negative end"],
)
def test_a_grant_that_cannot_be_is_refused(name: str, grant: SpanGrant) -> None:
    spans = [DocSpan("t", 0, 3), DocSpan("d", 3, 6, (grant,))]
    with pytest.raises(ValueError, match=r"doc_spans\[1\] \('d'\) has a grant"):
        MASKS[name](6, spans)


@pytest.mark.parametrize("bad", [None, "d", (0, 6), DocSpan("d", 0, 6, [])], ids=repr)  # type: ignore[arg-type]
@pytest.mark.parametrize("name", sorted(MASKS))
def test_what_is_no_span_is_refused(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"doc_spans\[0\] must be a DocSpan with a tuple of grants, got"):
        MASKS[name](6, [bad])


def test_errors_name_the_spans_as_they_are_told_to() -> None:
    with pytest.raises(ValueError, match=r"^doc_spans\[3\] end at 0, but there are 6 tokens$"):
        check_spans(6, [], "doc_spans[3]")
