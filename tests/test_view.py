"""Views against S2 and S3 read token by token: which documents, in which order, at which distance."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.attention.view import Read, Segment, segments, targets, view_at
from ds2ds.documents.document import Document, DocumentGrant

MANY = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """Up to four targets of 1 to 9 tokens, and up to six grants of them in order of position."""
    pool = [Document(f"t{i}", [0] * draw(st.integers(1, 9))) for i in range(draw(st.integers(1, 4)))]
    reader = Document("d", [0] * draw(st.integers(1, 14)))
    for position in sorted(draw(st.lists(st.integers(0, len(reader.tokens) + 1), max_size=6))):
        end = draw(st.none() | st.integers(position, len(reader.tokens) + 1))
        reader.grants.append(DocumentGrant(position, draw(st.sampled_from(pool)), end))
    return reader


def expected_view(document: Document, token: int) -> list[tuple[Document, int]]:
    """S2: the grants with position <= t < end. S3: delta_t(d, g_i) = sum of len(g_j), j <= i, over those in view."""
    visible = [
        grant.target
        for grant in document.grants
        if token >= grant.position and (grant.end is None or token < grant.end)
    ]
    return [(target, sum(len(t.tokens) for t in visible[: i + 1])) for i, target in enumerate(visible)]


def as_pairs(reads: tuple[Read, ...]) -> list[tuple[Document, int]]:
    return [(read.target, read.delta) for read in reads]


@st.composite
def ranges(draw: st.DrawFn) -> tuple[Document, int, int]:
    document = draw(documents())
    start = draw(st.integers(0, len(document.tokens)))
    return document, start, draw(st.integers(start, len(document.tokens)))


@MANY
@given(documents())
def test_every_tokens_view(document: Document) -> None:
    for token in range(len(document.tokens)):
        assert as_pairs(view_at(document, token)) == expected_view(document, token)


@MANY
@given(ranges())
def test_segments_tile_the_range_and_hold_every_tokens_view(drawn: tuple[Document, int, int]) -> None:
    document, start, stop = drawn
    found = segments(document, start, stop)
    assert [token for segment in found for token in range(segment.start, segment.stop)] == list(range(start, stop))
    for segment in found:
        assert segment.start < segment.stop
        for token in range(segment.start, segment.stop):
            assert as_pairs(segment.reads) == expected_view(document, token)


@MANY
@given(ranges())
def test_segments_are_cut_only_where_a_grant_starts_or_ends(drawn: tuple[Document, int, int]) -> None:
    document, start, stop = drawn
    edges = {at for grant in document.grants for at in (grant.position, grant.end)}
    assert {segment.start for segment in segments(document, start, stop)} - {start} <= edges


@MANY
@given(ranges())
def test_targets_are_what_some_token_reads_each_once(drawn: tuple[Document, int, int]) -> None:
    document, start, stop = drawn
    found = targets(document, start, stop)
    assert len(found) == len(set(found))
    assert set(found) == {target for token in range(start, stop) for target, _ in expected_view(document, token)}


def test_a_view_by_hand() -> None:
    """The picture of S3: later grants lie further left, and an ended one closes its gap."""
    a, b, c = Document("a", [0] * 3), Document("b", [0] * 5), Document("c", [0] * 7)
    document = Document("d", [0] * 10)
    document.grants = [DocumentGrant(2, a, 6), DocumentGrant(4, b), DocumentGrant(8, c), DocumentGrant(8, a)]
    assert segments(document, 0, 10) == [
        Segment(0, 2, ()),
        Segment(2, 4, (Read(a, 3),)),
        Segment(4, 6, (Read(a, 3), Read(b, 8))),
        Segment(6, 8, (Read(b, 5),)),
        Segment(8, 10, (Read(b, 5), Read(c, 12), Read(a, 15))),
    ]
    assert targets(document, 5, 8) == [a, b]
    assert targets(document, 6, 8) == [b]


def test_a_document_without_grants_is_one_segment() -> None:
    assert segments(Document("d", [0] * 5), 1, 4) == [Segment(1, 4, ())]
    assert segments(Document("d", [0] * 5), 2, 2) == []
    assert targets(Document("d", [0] * 5), 0, 5) == []
