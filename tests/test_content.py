"""Content digests: equal exactly for documents whose keys and values are the same function of the weights (S5)."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.documents import content as content_module
from ds2ds.documents.content import DIGEST_BYTES, Content, ContentGrant, content_of, make_content, prefix_content
from ds2ds.documents.document import Document, DocumentGrant

MANY = settings(max_examples=300, deadline=None, derandomize=True)


def nested(document: Document) -> tuple[Any, ...]:
    """The same in plain words: tokens, and what is read in the order of the grants, each with the tokens that do."""
    read = []
    for grant in document.grants:
        readers = tuple(token for token in range(len(document.tokens)) if grant.covers(token))
        if readers:
            read.append((readers, nested(grant.target)))
    return tuple(document.tokens), tuple(read)


@st.composite
def graphs(draw: st.DrawFn) -> list[Document]:
    """Documents of few different tokens and grants, so that many are equal, but their titles never."""
    documents: list[Document] = []
    for index in range(draw(st.integers(2, 7))):
        document = Document(f"d{index}", draw(st.lists(st.integers(0, 1), max_size=2)), depth=index)
        for _ in range(draw(st.integers(0, 2)) if documents else 0):
            position = draw(st.integers(0, 2))
            target = draw(st.sampled_from(documents))
            document.grants.append(DocumentGrant(position, target, draw(st.sampled_from([None, 0, 1, 2]))))
        documents.append(document)
    return documents


@MANY
@given(graphs())
def test_digests_are_equal_exactly_where_contents_are(documents: list[Document]) -> None:
    for one in documents:
        for other in documents:
            equal = content_of(one).digest == content_of(other).digest
            assert equal == (nested(one) == nested(other))


@MANY
@given(graphs())
def test_a_content_is_the_document_without_its_name(documents: list[Document]) -> None:
    def plain(content: Content) -> tuple[Any, ...]:
        read = ((g.position, len(content) if g.end is None else g.end, plain(g.target)) for g in content.grants)
        return tuple(content.tokens.tolist()), tuple((tuple(range(start, end)), target) for start, end, target in read)

    for document in documents:
        content = content_of(document)
        assert plain(content) == nested(document)
        assert content.tokens.dtype == np.int32 and len(content) == len(document.tokens)
        assert len(content.digest) == DIGEST_BYTES
        again = make_content(content.tokens, content.grants)
        assert again.digest == content.digest


@MANY
@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6), st.data())
def test_each_token_counts_with_all_its_bits(tokens: list[int], data: st.DataObject) -> None:
    at, bit = data.draw(st.integers(0, len(tokens) - 1)), data.draw(st.integers(0, 30))
    other = [*tokens[:at], tokens[at] ^ 1 << bit, *tokens[at + 1 :]]
    assert digest(tokens) != digest(other)
    assert digest(tokens) == digest(list(tokens))


def digest(tokens: list[int], *grants: tuple[int, Document, int | None]) -> bytes:
    return content_of(Document("d", tokens, grants=[DocumentGrant(*grant) for grant in grants])).digest


def test_each_part_counts() -> None:
    a, b, same_as_a = Document("a", [1, 2]), Document("b", [3]), Document("x", [1, 2])
    reference = digest([5, 6, 7, 9], (1, a, None), (2, b, 3))
    assert digest([5, 6, 7, 9], (1, same_as_a, None), (2, b, 3)) == reference
    others = [
        digest([5, 6, 8, 9], (1, a, None), (2, b, 3)),
        digest([5, 6, 7], (1, a, None), (2, b, 3)),
        digest([5, 6, 7, 9, 0], (1, a, None), (2, b, 3)),
        digest([5, 6, 7, 9], (0, a, None), (2, b, 3)),
        digest([5, 6, 7, 9], (1, a, 3), (2, b, 3)),
        digest([5, 6, 7, 9], (1, a, 2), (2, b, 3)),
        digest([5, 6, 7, 9], (1, a, None), (2, b, None)),
        digest([5, 6, 7, 9], (1, b, None), (2, a, 3)),
        digest([5, 6, 7, 9], (1, a, None)),
        digest([5, 6, 7, 9], (1, a, None), (2, b, 3), (2, b, 3)),
        digest([5, 6, 7, 9]),
    ]
    assert len({reference, *others}) == len(others) + 1


def test_a_grant_that_no_token_reads_does_not_count() -> None:
    """A link that closes in the last token, or whose target was evicted before the next one; even one still written."""
    a, b, writing = Document("a", [1]), Document("b", [2]), Document("w", [3], capacity=9)
    reference = digest([5, 6, 7], (1, a, None))
    assert digest([5, 6, 7], (1, a, None), (3, b, None)) == reference
    assert digest([5, 6, 7], (0, b, 0), (1, a, None), (2, b, 2), (3, writing, None)) == reference
    assert digest([5, 6, 7], (1, a, None), (2, b, None)) != reference


def test_an_end_after_the_last_token_is_none() -> None:
    a = Document("a", [1])
    reference = digest([5, 6, 7], (1, a, None))
    assert digest([5, 6, 7], (1, a, 3)) == digest([5, 6, 7], (1, a, 4)) == reference
    assert digest([5, 6, 7], (1, a, 2)) != reference


def test_of_two_links_at_one_token_the_order_counts() -> None:
    """The one granted later lies further left (S3)."""
    a, b = Document("a", [1]), Document("b", [2])
    assert digest([5, 6], (1, a, None), (1, b, None)) != digest([5, 6], (1, b, None), (1, a, None))


def test_a_change_deep_down_counts_and_a_title_does_not() -> None:
    def chain(leaf: int, title: str = "t") -> bytes:
        document = Document(title, [leaf])
        for depth in range(5):
            document = Document(f"{title}{depth}", [depth], grants=[DocumentGrant(0, document)])
        return content_of(document).digest

    assert chain(1) == chain(1, "another")
    assert chain(1) != chain(2)


def test_nothing_else_about_a_document_counts() -> None:
    parent = Document("p", [9])
    plain = Document("a", [1, 2, 3])
    other = Document("b", [1, 2, 3], source="corpus", depth=3, parent=parent, settled=2)
    other.finish_reason, other.truncated, other.text_end = "eos", True, 1
    other.logprobs = [-1.0] * 3
    assert content_of(plain).digest == content_of(other).digest


def bytes_as_tokens(data: bytes) -> list[int]:
    return np.frombuffer(data, dtype="<i4").tolist()


def bytes_as_ints(data: bytes) -> list[int]:
    return np.frombuffer(data, dtype="<i8").tolist()


def test_where_one_part_ends_and_the_next_begins_counts() -> None:
    """Contents whose parts, one after the other, are the same bytes, cut at other places."""
    targets = [content_of(Document("t", [token])) for token in (1, 2)]
    tokens, table = [7, 8], [(0, 5), (1, 6)]
    digests = b"".join(target.digest for target in targets)
    table_bytes = [np.array(row, dtype="<i8").tobytes() for row in table]

    def made(tokens: list[int], *grants: tuple[int, Content, int]) -> bytes:
        return make_content(np.array(tokens, dtype=np.int32), tuple(ContentGrant(*grant) for grant in grants)).digest

    whole = made(tokens, (0, targets[0], 5), (1, targets[1], 6))
    # All in the tokens; or the table in the tokens, and the first digest in the place of a table.
    all_tokens = made(tokens + bytes_as_tokens(b"".join(table_bytes) + digests))
    position, end = bytes_as_ints(targets[0].digest)
    one_grant = made(tokens + bytes_as_tokens(b"".join(table_bytes)), (position, targets[1], end))
    assert len({whole, all_tokens, one_grant}) == 3


@MANY
@given(st.binary(min_size=32, max_size=32).map(bytes_as_tokens), st.integers(0, 8))
def test_no_token_list_is_a_shorter_one_and_its_grants(tokens: list[int], cut: int) -> None:
    target = content_of(Document("t", [1]))
    rest = np.array(tokens[cut : cut + 4], dtype="<i4").tobytes().ljust(16, b"\0")
    position, end = bytes_as_ints(rest)
    longer = np.array([*tokens[:cut], *bytes_as_tokens(rest), *bytes_as_tokens(target.digest)], dtype=np.int32)
    shorter = make_content(longer[:cut], (ContentGrant(position, target, end),))
    assert make_content(longer, ()).digest != shorter.digest


def test_zeros_at_the_end_count() -> None:
    found = [content_of(Document("d", [0] * n)).digest for n in range(5)]
    assert all(one != other for one, other in pairwise(found)) and len(set(found)) == 5


def test_tokens_in_any_layout_of_memory_are_the_same() -> None:
    wide = np.array([1, 0, 2, 0, 3, 0], dtype=np.int32)
    assert make_content(wide[::2], ()).digest == content_of(Document("d", [1, 2, 3])).digest
    big_endian = np.array([1, 2, 3], dtype=">i4")
    assert make_content(big_endian, ()).digest == content_of(Document("d", [1, 2, 3])).digest


@MANY
@given(graphs(), st.data())
def test_a_prefix_is_the_document_that_ended_there(documents: list[Document], data: st.DataObject) -> None:
    document = documents[-1]
    length = data.draw(st.integers(0, len(document.tokens)))
    ended = Document("ended", document.tokens[:length], grants=document.grants)
    document.capacity = 99  # it may go on
    assert prefix_content(document, length).digest == content_of(ended).digest
    assert document.content is None


def test_what_only_later_tokens_read_is_no_part_of_a_prefix() -> None:
    a, writing = Document("a", [1]), Document("w", [2], capacity=9)
    document = Document("d", [5, 6, 7, 8], capacity=9)
    document.grants = [DocumentGrant(1, a, 3), DocumentGrant(2, writing)]
    assert prefix_content(document, 2).digest == digest([5, 6], (1, a, None))
    with pytest.raises(ValueError, match="document 'w' is still being written"):
        prefix_content(document, 3)
    writing.capacity = None
    assert prefix_content(document, 3).digest == digest([5, 6, 7], (1, a, None), (2, writing, None))
    assert prefix_content(document, 4).digest == digest([5, 6, 7, 8], (1, a, 3), (2, writing, None))


def test_a_content_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[int]] = []

    def counting(tokens: Any, grants: Any) -> Content:
        made.append(tokens.tolist())
        return make_content(tokens, grants)

    monkeypatch.setattr(content_module, "make_content", counting)
    leaf = Document("leaf", [1])
    middle = [Document(f"m{i}", [2, i], grants=[DocumentGrant(0, leaf)]) for i in range(3)]
    top = Document("top", [3], grants=[DocumentGrant(0, document) for document in middle])
    first = content_of(top)
    assert sorted(made) == [[1], [2, 0], [2, 1], [2, 2], [3]]
    assert content_of(top) is first is top.content
    assert content_of(leaf) is first.grants[0].target.grants[0].target
    assert len(made) == 5


def test_a_ladder_of_shared_documents_takes_no_exponential_time() -> None:
    """Each reads the one before it twice: 2^60 ways down."""
    document = Document("d", [0])
    for step in range(60):
        document = Document("d", [step], grants=[DocumentGrant(0, document), DocumentGrant(1, document)])
    assert len(content_of(document).digest) == DIGEST_BYTES


def test_a_chain_may_be_longer_than_pythons_stack_is_deep() -> None:
    document = Document("d", [0])
    for step in range(3000):
        document = Document("d", [step], grants=[DocumentGrant(0, document)])
    assert len(content_of(document).digest) == DIGEST_BYTES


def test_what_is_still_being_written_has_no_content() -> None:
    writing = Document("Draft", [1, 2], capacity=9)
    reader = Document("Reader", [3], grants=[DocumentGrant(0, writing)])
    for document in (writing, reader):
        with pytest.raises(ValueError, match="document 'Draft' is still being written: its content may change"):
            content_of(document)
        assert document.content is None
    writing.tokens.append(4)
    writing.capacity = None
    assert content_of(reader).grants[0].target.tokens.tolist() == [1, 2, 4]


def test_a_content_does_not_change_with_the_documents_list_of_tokens() -> None:
    document = Document("d", [1, 2])
    content = content_of(document)
    before = copy.copy(content.tokens)
    document.tokens[0] = 9
    assert np.array_equal(content.tokens, before)
