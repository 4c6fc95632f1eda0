"""The window of documents where mutation testing found no test: docs/mutation.md."""

from __future__ import annotations

import math

import pytest

from ds2ds import DocumentContext
from ds2ds.documents.document import Document, DocumentGrant
from ds2ds.documents.eviction import EVICTION_POLICIES, Candidate
from ds2ds.documents.title_match import Match


def titles(documents: list[Document]) -> list[str]:
    return [document.title for document in documents]


def context_with(*sizes: int, **settings: object) -> DocumentContext:
    """A root of ten tokens, and complete documents A, B, ... of these sizes."""
    context = DocumentContext(**{"max_context_length": 100, **settings})  # type: ignore[arg-type]
    context.initialize_root([1] * 10, "Root")
    for title, size in zip("ABCDE", sizes, strict=False):
        context.add_corpus_document(title, [1] * size)
    return context


def test_the_defaults_are_those_of_the_generation_config() -> None:
    context = DocumentContext()
    assert (context.max_context_length, context.max_auxiliary_documents) == (2048, 5)
    assert (context.eviction_policy, context.max_tokens_per_document) == ("drop_oldest", 512)
    assert (context.window, context.completed, context.evictions) == ([], [], 0)


def test_an_unknown_policy_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError) as error:
        DocumentContext(eviction_policy="none")
    for policy in EVICTION_POLICIES:
        assert policy in str(error.value)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("root", "there is no root document: call initialize_root first"),
        ("current", "no document is being written: call initialize_root or switch_to_document first"),
    ],
)
def test_what_is_not_there_yet_is_an_error_that_says_what_to_call(document: str, message: str) -> None:
    with pytest.raises(RuntimeError) as error:
        getattr(DocumentContext(), document)
    assert str(error.value) == message


def test_a_context_starts_again_with_its_limits_and_the_prompt_alone() -> None:
    context = context_with(5, max_auxiliary_documents=3, eviction_policy="stop_new", max_tokens_per_document=40)
    context.append_token_to_current(7, -1.0)
    again = context.restarted()
    limits = (again.max_context_length, again.max_auxiliary_documents, again.eviction_policy)
    assert (*limits, again.max_tokens_per_document) == (100, 3, "stop_new", 40)
    assert titles(again.window) == ["Root"] and again.root is not context.root
    assert again.root.tokens == [1] * 10 and again.root.given == 10
    assert again.current is again.root and again.completed == []


def test_an_untitled_root_stays_untitled() -> None:
    context = DocumentContext()
    assert context.initialize_root([1]).title == ""
    assert context.restarted().root.title == ""


def test_the_source_of_a_document_is_what_it_was_opened_from() -> None:
    context = context_with()
    opened = context.open_corpus_document("A", [1, 2], "notes.md")
    assert (opened.source, opened.title, opened.tokens, opened.depth) == ("notes.md", "A", [1, 2], 1)
    assert opened.parent is context.root and context.current is opened


def test_tokens_of_a_started_document_are_given_and_may_be_none() -> None:
    context = context_with(max_tokens_per_document=20)
    child = context.start_auxiliary_generation("A", [3, 4])
    assert (child.title, child.tokens, child.given, child.capacity) == ("A", [3, 4], 2, 20)
    long = context.start_auxiliary_generation("B", [1] * 25)
    assert long.capacity == 25


def test_a_token_without_a_probability_has_none() -> None:
    context = context_with()
    context.append_token_to_current(5)
    assert math.isnan(context.root.logprobs[-1]) and context.root.tokens[-1] == 5


def test_titles_that_were_in_the_window_are_known_to_the_letter() -> None:
    context = context_with(1)
    context.start_auxiliary_generation("B")
    assert context.has_title("Root") and context.has_title("A") and context.has_title("B")
    assert not context.has_title("b") and not context.has_title("C")
    context.complete_current_document()
    context.evict(context.window[1])
    assert context.has_title("A")


def test_a_link_to_a_document_makes_it_the_last_to_leave_where_links_count() -> None:
    context = context_with(10, 10, 10, eviction_policy="least_recently_linked")
    a, b, c = context.window[1:]
    context.note_link(a)
    context.note_link(b)
    assert titles(context.evict_if_needed(75)) == ["C", "A"]
    assert context.window == [context.root, b]
    context.readmit(c)
    context.note_link(c)
    assert titles(context.evict_if_needed(75)) == ["B"]


def test_a_document_goes_first_whose_title_the_new_one_takes() -> None:
    context = context_with(10, 10, max_auxiliary_documents=2)
    b = context.window[2]
    assert context.could_make_room(50) == (True, "")
    assert context.could_make_room(50, instead_of=b) == (True, "")
    assert titles(context.window) == ["Root", "A", "B"] and context.evictions == 0
    assert context.make_room(50, instead_of=b) == (True, "")
    assert titles(context.window) == ["Root", "A"] and context.evictions == 1
    assert context.recall("B") is None  # it was replaced
    assert context.has_title("B")


def test_what_leaves_beside_the_replaced_one_is_only_what_must() -> None:
    context = context_with(10, 10, 30)
    c = context.window[3]
    assert context.make_room(75, instead_of=c) == (True, "")
    assert titles(context.window) == ["Root", "B"]
    assert context.recall("A") is not None and context.recall("C") is None


def test_a_document_is_not_replaced_where_the_new_one_finds_no_room() -> None:
    context = context_with(10)
    a = context.window[1]
    assert context.could_make_room(91, instead_of=a)[0] is False
    assert context.make_room(91, instead_of=a) == (False, "91 tokens do not fit beside the documents in progress")
    assert titles(context.window) == ["Root", "A"]
    context.evict(a)
    assert context.recall("A") is a


def test_a_window_that_admits_none_lets_a_document_be_replaced() -> None:
    context = context_with(40, 40, eviction_policy="stop_new")
    b = context.window[2]
    assert context.could_make_room(40) == (False, "130 tokens would exceed max_context_length 100")
    assert context.could_make_room(40, instead_of=b) == (True, "")
    assert context.could_make_room(60, instead_of=b) == (False, "110 tokens would exceed max_context_length 100")
    assert context.make_room(40, instead_of=b) == (True, "")
    assert titles(context.window) == ["Root", "A"]


def test_evicting_stops_at_the_last_token_that_must_go() -> None:
    context = context_with(10, 10, 10)
    assert context.evict_if_needed(60) == []
    assert titles(context.evict_if_needed(70)) == ["A"]
    assert context.total_tokens == 30


@pytest.mark.parametrize(
    ("policy", "leaves"),
    [
        ("drop_oldest", ["A", "B", "C"]),
        ("stop_new", ["A", "B", "C"]),
        ("least_recently_linked", ["C", "A", "B"]),
        ("largest_first", ["B", "A", "C"]),
    ],
)
def test_the_order_in_which_each_policy_lets_go(policy: str, leaves: list[str]) -> None:
    known = [
        Candidate(Document("C", [1] * 3), arrived=3, linked=1),
        Candidate(Document("B", [1] * 4), arrived=2, linked=3),
        Candidate(Document("A", [1] * 3), arrived=1, linked=2),
    ]
    ordered = sorted(known, key=EVICTION_POLICIES[policy].order)
    assert [candidate.document.title for candidate in ordered] == leaves
    assert EVICTION_POLICIES[policy].admits is (policy != "stop_new")


def test_a_title_is_found_behind_an_untitled_document_and_ones_that_do_not_match() -> None:
    context = DocumentContext()
    context.initialize_root([1])
    context.add_corpus_document("Other", [1])
    wanted = context.add_corpus_document("Big O", [1])
    assert context.find("big o") is wanted
    assert context.find("Big O") is wanted
    assert context.find("big") is None
    assert context.recall("big") is None


def test_a_grant_keeps_the_link_it_came_by() -> None:
    reader, target = Document("R", [1] * 9), Document("A", [1])
    match = Match("A", "fuzzy", 0.5)
    reader.add_grant(2, target, "a link", match)
    assert reader.grants == [DocumentGrant(2, target, None, "a link", match)]
    reader.settled = 5
    reader.end_grants(target)
    assert reader.grants == [DocumentGrant(2, target, 5, "a link", match)]
    reader.add_grant(7, target)
    assert (reader.grants[1].link, reader.grants[1].match) == ("", None)


def test_a_grant_that_no_token_has_read_goes_alone() -> None:
    reader, target, other = Document("R", [1] * 9), Document("A", [1]), Document("B", [1])
    reader.add_grant(4, target)
    reader.add_grant(6, other)
    reader.end_grants(target)
    assert [grant.target for grant in reader.grants] == [other]


def test_a_document_starts_out_written_and_not_computed() -> None:
    document = Document("A", [1, 2, 3])
    assert (document.source, document.depth, document.given, document.settled) == ("generated", 0, 3, 0)
    assert len(document.logprobs) == 3 and not document.in_progress and not document.truncated


def test_spans_tell_where_a_grant_ended_whose_target_is_back_in_the_window() -> None:
    context = context_with(2)
    a = context.window[1]
    context.root.add_grant(3, a)
    context.root.settled = 6
    context.evict(a)
    context.readmit(a)
    context.root.add_grant(8, a)
    (_, root) = context.get_doc_spans()
    assert [(grant.position, grant.target, grant.end) for grant in root.grants] == [(3, 0, 6), (8, 0, None)]
