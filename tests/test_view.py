"""Views against S2 and S3 read token by token: which documents, in which order, at which distance."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.attention.view import Chunk, Read, reads, targets
from ds2ds.documents.document import Document, DocumentGrant

MANY = settings(max_examples=200, deadline=None, derandomize=True)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """Up to four targets of 1 to 9 tokens, and up to six grants of them in order of position."""
    pool = [Document(f"t{i}", [0] * draw(st.integers(1, 9))) for i in range(draw(st.integers(1, 4)))]
    reader = Document("d", [0] * draw(st.integers(1, 14)))
    for position in sorted(draw(st.lists(st.integers(0, len(reader.tokens) + 1), max_size=6))):
        end = draw(st.none() | st.integers(position, len(reader.tokens) + 1))
        reader.grants.append(DocumentGrant(position, draw(st.sampled_from(pool)), end))
    return reader


@st.composite
def ranges(draw: st.DrawFn) -> tuple[Document, int, int]:
    document = draw(documents())
    start = draw(st.integers(0, len(document.tokens)))
    return document, start, draw(st.integers(start, len(document.tokens)))


def distances(document: Document, token: int) -> dict[int, int]:
    """S2: the grants with position <= t < end. S3: delta_t(d, g_i) = sum of len(g_j), j <= i, over those in view."""
    visible = [
        index
        for index, grant in enumerate(document.grants)
        if token >= grant.position and (grant.end is None or token < grant.end)
    ]
    return {
        index: sum(len(document.grants[other].target.tokens) for other in visible if other <= index)
        for index in visible
    }


@MANY
@given(ranges())
def test_every_token_reads_each_document_in_view_at_its_distance(drawn: tuple[Document, int, int]) -> None:
    document, start, stop = drawn
    found = reads(document, start, stop)
    assert all(start <= read.start < read.stop <= stop for read in found)
    for token in range(start, stop):
        ours = sorted((read.delta, read.target.title) for read in found if read.start <= token < read.stop)
        assert ours == [(d, document.grants[i].target.title) for i, d in distances(document, token).items()]


@MANY
@given(ranges())
def test_a_grant_is_one_read_for_each_distance_in_a_row(drawn: tuple[Document, int, int]) -> None:
    """No read could be longer: what one matrix product can do is not done by two."""
    document, start, stop = drawn
    expected = []
    for index, grant in enumerate(document.grants):
        runs: list[list[int]] = []
        for token in range(start, stop):
            delta = distances(document, token).get(index)
            if delta is None:
                continue
            if runs and runs[-1][1:] == [token, delta]:
                runs[-1][1] += 1
            else:
                runs.append([token, token + 1, delta])
        expected += [(grant.target.title, *run) for run in runs]
    ours = [(read.target.title, read.start, read.stop, read.delta) for read in reads(document, start, stop)]
    assert sorted(ours) == sorted(expected)


@MANY
@given(ranges(), st.data())
def test_a_range_reads_what_its_parts_read(drawn: tuple[Document, int, int], data: st.DataObject) -> None:
    document, start, stop = drawn
    cut = data.draw(st.integers(start, stop))

    def pairs(found: list[Read]) -> list[tuple[int, str, int]]:
        return sorted(
            (token, read.target.title, read.delta) for read in found for token in range(read.start, read.stop)
        )

    parts = [*reads(document, start, cut), *reads(document, cut, stop)]
    assert pairs(parts) == pairs(reads(document, start, stop))


@MANY
@given(ranges())
def test_targets_are_what_some_token_reads_each_once(drawn: tuple[Document, int, int]) -> None:
    document, start, stop = drawn
    found = targets(document, start, stop)
    assert len(found) == len(set(found))
    assert set(found) == {
        document.grants[index].target for token in range(start, stop) for index in distances(document, token)
    }


def test_a_view_by_hand() -> None:
    """The picture of S3: later grants lie further left, and an ended one closes its gap."""
    a, b, c = Document("a", [0] * 3), Document("b", [0] * 5), Document("c", [0] * 7)
    document = Document("d", [0] * 10)
    document.grants = [DocumentGrant(2, a, 6), DocumentGrant(4, b), DocumentGrant(8, c), DocumentGrant(8, a)]
    found = sorted(reads(document, 0, 10), key=lambda read: (read.start, read.delta))
    assert found == [Read(a, 2, 6, 3), Read(b, 4, 6, 8), Read(b, 6, 10, 5), Read(c, 8, 10, 12), Read(a, 8, 10, 15)]
    assert reads(document, 5, 6) == [Read(a, 5, 6, 3), Read(b, 5, 6, 8)]
    assert reads(document, 6, 7) == [Read(b, 6, 7, 5)]
    assert targets(document, 5, 8) == [a, b]
    assert targets(document, 6, 8) == [b]


def test_a_grant_beyond_the_range_is_not_read() -> None:
    """Its target may be anywhere, or not resident: nothing of it is asked for."""
    a = Document("a", [0] * 3)
    document = Document("d", [0] * 5, grants=[DocumentGrant(3, a)])
    assert reads(document, 0, 3) == [] == targets(document, 0, 3)
    assert reads(document, 0, 4) == [Read(a, 3, 4, 3)]


def test_an_ended_target_after_a_later_one_moves_it_closer_and_a_further_one_does_not() -> None:
    near, far = Document("near", [0] * 2), Document("far", [0] * 4)
    document = Document("d", [0] * 6, grants=[DocumentGrant(0, near), DocumentGrant(0, far, 3)])
    assert reads(document, 0, 6) == [Read(near, 0, 6, 2), Read(far, 0, 3, 6)]


def test_an_empty_target_takes_no_room() -> None:
    empty, a = Document("empty", []), Document("a", [0] * 3)
    document = Document("d", [0] * 2, grants=[DocumentGrant(0, empty), DocumentGrant(0, a)])
    assert reads(document, 0, 2) == [Read(empty, 0, 2, 0), Read(a, 0, 2, 3)]


@pytest.mark.parametrize(("start", "stop"), [(1, 4), (2, 2), (0, 5)])
def test_a_document_without_grants_reads_nothing(start: int, stop: int) -> None:
    document = Document("d", [0] * 5)
    assert reads(document, start, stop) == [] == targets(document, start, stop)


def test_lengths() -> None:
    document = Document("d", [0] * 9)
    assert len(Chunk(document, 3, 8)) == len(Read(document, 3, 8, 9)) == 5
