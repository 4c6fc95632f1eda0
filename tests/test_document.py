"""One document: its tokens, and what it was granted (S1, S2, S4)."""

from __future__ import annotations

import math

import pytest

from ds2ds.documents.document import Document, DocumentGrant


def grants(document: Document) -> list[tuple[int, str, int | None]]:
    return [(grant.position, grant.target.title, grant.end) for grant in document.grants]


@pytest.mark.parametrize(
    ("end", "covered"), [(None, {3, 4, 5, 6}), (5, {3, 4}), (4, {3}), (3, set())], ids=["open", "5", "4", "empty"]
)
def test_a_grant_covers_from_position_to_before_its_end(end: int | None, covered: set[int]) -> None:
    grant = DocumentGrant(3, Document("A", [1]), end)
    assert {token for token in range(7) if grant.covers(token)} == covered


def test_given_tokens_have_no_probability_and_written_ones_have() -> None:
    document = Document("A", [1, 2])
    document.append(7, -0.5)
    assert document.tokens == [1, 2, 7]
    assert [math.isnan(p) for p in document.logprobs] == [True, True, False]
    assert document.logprobs[2] == -0.5


def test_documents_are_compared_by_identity() -> None:
    assert Document("A", [1]) != Document("A", [1])
    assert len({Document("A", [1]), Document("A", [1])}) == 2


def test_a_document_is_in_progress_while_it_has_a_capacity() -> None:
    document = Document("A", [1], capacity=8)
    assert document.in_progress
    document.capacity = None
    assert not document.in_progress


def test_an_open_grant_is_not_given_twice() -> None:
    reader, target = Document("R", [1] * 9), Document("A", [1])
    reader.add_grant(2, target)
    reader.add_grant(5, target)
    assert grants(reader) == [(2, "A", None)]
    assert reader.has_open_grant(target) and not reader.has_open_grant(Document("A", [1]))


def test_grants_are_in_order_of_position_and_equal_ones_in_order_of_arrival() -> None:
    reader = Document("R", [1] * 9)
    for position, title in [(5, "A"), (2, "B"), (5, "C"), (2, "D")]:
        reader.add_grant(position, Document(title, [1]))
    assert grants(reader) == [(2, "B", None), (2, "D", None), (5, "A", None), (5, "C", None)]


def test_ending_a_grant_keeps_what_computed_tokens_have_read() -> None:
    reader, target, other = Document("R", [1] * 9, capacity=20), Document("A", [1]), Document("B", [1])
    reader.add_grant(2, target)
    reader.add_grant(3, other)
    reader.settled = 8
    reader.end_grants(target)
    assert grants(reader) == [(2, "A", 8), (3, "B", None)]


@pytest.mark.parametrize("computed", [0, 7, 8])
def test_ending_a_grant_that_no_token_has_read_removes_it(computed: int) -> None:
    reader, target = Document("R", [1] * 9, capacity=20), Document("A", [1])
    reader.add_grant(8, target)
    reader.settled = computed
    reader.end_grants(target)
    assert grants(reader) == []


def test_an_ended_grant_stays_as_it_is_and_a_new_one_may_follow() -> None:
    reader, target = Document("R", [1] * 9, capacity=20), Document("A", [1])
    reader.add_grant(2, target)
    reader.settled = 5
    reader.end_grants(target)
    reader.settled = 8
    reader.end_grants(target)
    reader.add_grant(9, target)
    assert grants(reader) == [(2, "A", 5), (9, "A", None)]


def test_a_document_is_shown_without_what_its_targets_read() -> None:
    below = Document("a", [1])
    for title in "bcdefghijklmnopqrstuvwxyz":
        below = Document(title, [1], grants=[DocumentGrant(0, below), DocumentGrant(1, below, 1)])
    assert repr(below) == "Document('z', 1 tokens, depth=0, grants=[(0, 'y', None), (1, 'y', 1)])"
