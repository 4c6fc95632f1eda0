"""The window: which documents are in view, what fits, what is evicted, and how it packs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scripted import EOS, TOKENIZER, encode, follow, small_model

from ds2ds import DocumentContext, GenerationConfig, SingleDocumentGenerator
from ds2ds.documents.document import Document


def titles(documents: list[Document]) -> list[str]:
    return [document.title for document in documents]


def grants(document: Document) -> list[tuple[int, str, int | None]]:
    return [(grant.position, grant.target.title, grant.end) for grant in document.grants]


def context_with(sizes: dict[str, int], root: int = 10, **settings: object) -> DocumentContext:
    """A root of this many tokens and complete corpus documents of these sizes."""
    context = DocumentContext(**{"max_context_length": 100, **settings})  # type: ignore[arg-type]
    context.initialize_root([1] * root, "Root")
    for title, size in sizes.items():
        context.add_corpus_document(title, [1] * size)
    return context


# Opening and closing documents


def test_settings() -> None:
    with pytest.raises(ValueError, match=r"eviction_policy must be one of .*, got 'drop_newest'"):
        DocumentContext(eviction_policy="drop_newest")


def test_before_the_root() -> None:
    context = DocumentContext()
    with pytest.raises(RuntimeError, match="there is no root document: call initialize_root first"):
        _ = context.root
    with pytest.raises(RuntimeError, match="no document is being written"):
        context.append_token_to_current(1)


def test_the_root() -> None:
    context = DocumentContext(max_context_length=100, max_tokens_per_document=20)
    root = context.initialize_root(np.array([1, 2, 3]), "Root")
    assert context.root is root is context.current and root.in_progress
    assert root.tokens == [1, 2, 3] and type(root.tokens[0]) is int
    assert (root.depth, root.parent, root.source, root.capacity) == (0, None, "generated", 20)
    with pytest.raises(RuntimeError, match="the root is 'Root' already"):
        context.initialize_root([1])


@pytest.mark.parametrize(
    ("prompt", "window", "longest", "new", "capacity"),
    [(5, 100, 20, None, 20), (30, 100, 20, None, 30), (5, 10, 20, None, 10), (5, 100, 20, 3, 8), (5, 100, 20, 90, 20)],
)
def test_a_document_reserves_what_it_may_come_to_hold(
    prompt: int, window: int, longest: int, new: int | None, capacity: int
) -> None:
    context = DocumentContext(window, max_tokens_per_document=longest, max_new_tokens=new)
    assert context.initialize_root([1] * prompt).capacity == capacity
    assert context.restarted().root.capacity == capacity
    if new is not None:
        assert context.start_auxiliary_generation("A", [1, 2]).capacity == 2 + min(new, longest - 2)


def test_a_prompt_longer_than_the_window() -> None:
    message = "the prompt has 11 tokens, more than max_context_length 10"
    with pytest.raises(ValueError, match=message):
        DocumentContext(10).initialize_root([1] * 11)
    assert DocumentContext(10).initialize_root([1] * 10).tokens == [1] * 10


def test_tokens_are_appended_to_the_current_document() -> None:
    context = context_with({})
    child = context.start_auxiliary_generation("A", [7])
    context.append_token_to_current(8, -0.5)
    context.append_token_to_current(np.int64(9))
    assert child.tokens == [7, 8, 9] and child.logprobs[1] == -0.5 and np.isnan(child.logprobs[2])
    assert len(context.root.tokens) == 10


def test_a_written_document_is_current_until_it_is_complete() -> None:
    context = context_with({})
    child = context.start_auxiliary_generation("A")
    grandchild = context.start_auxiliary_generation("B", [1])
    assert (child.depth, grandchild.depth, grandchild.parent) == (1, 2, child)
    assert (child.source, child.tokens, child.in_progress) == ("generated", [], True)
    assert context.complete_current_document() is grandchild and not grandchild.in_progress
    assert context.current is child
    context.complete_current_document()
    assert context.current is context.root
    context.complete_current_document()
    with pytest.raises(RuntimeError, match="no document is being written"):
        _ = context.current
    assert titles(context.completed) == ["B", "A", "Root"]


def test_a_corpus_document_can_be_held_open_for_its_own_links() -> None:
    context = context_with({})
    outer = context.open_corpus_document("A", [1, 2])
    inner = context.add_corpus_document("B", [3])
    assert (outer.source, outer.capacity, inner.depth, inner.parent) == ("corpus", 2, 2, outer)
    assert context.current is outer and outer.in_progress and not inner.in_progress
    context.complete_current_document()
    assert titles(context.get_all_documents()) == ["Root", "B", "A"]


def test_all_documents_are_the_root_the_completed_ones_and_those_in_progress() -> None:
    context = context_with({"A": 5, "B": 5})
    context.evict(context.window[1])
    context.start_auxiliary_generation("C")
    assert titles(context.window) == ["Root", "B", "C"]
    assert titles(context.get_all_documents()) == ["Root", "A", "B", "C"]
    context.complete_current_document()
    context.complete_current_document()
    assert titles(context.get_all_documents()) == ["Root", "A", "B", "C"]


def test_switching() -> None:
    context = context_with({"A": 5})
    child = context.start_auxiliary_generation("B")
    assert context.switch_to_document("root") is context.root is context.current
    assert context.switch_to_document("B") is child is context.current
    with pytest.raises(ValueError, match="document 'A' is complete and takes no more tokens"):
        context.switch_to_document("A")
    with pytest.raises(KeyError, match=r"no document titled 'C' in the window: \['Root', 'A', 'B'\]"):
        context.switch_to_document("C")


# Looking up


def test_titles_are_found_with_case_and_white_space_folded_and_exact_ones_first() -> None:
    context = context_with({"big O": 1, "Big O": 1})
    assert context.find("Big O") is context.window[2]
    assert context.find("BIG  o") is context.window[1]
    assert context.find("bigO") is None


def test_of_several_spellings_the_same_one_comes_first_and_then_what_is_in_the_window() -> None:
    context = context_with({"actor": 1, "Actor": 1, "ACTOR": 1})
    _, first, second, third = context.window
    context.evict(first)
    context.evict(second)
    assert context.recall("Actor") is second
    assert context.recall("aCTOR") is third
    context.evict(third)
    assert context.recall("aCTOR") is first
    assert context.recall("aCTOR", exactly=True) is None


def test_an_untitled_document_is_never_found() -> None:
    context = DocumentContext()
    context.initialize_root([1])
    assert context.find("") is None and context.find(" ") is None and context.recall("") is None


def test_evicted_documents_are_recalled() -> None:
    context = context_with({"A": 5, "B": 5})
    first = context.window[1]
    assert context.recall("a") is first
    context.evict(first)
    assert context.find("a") is None and context.recall("a") is first
    context.readmit(first)
    assert context.find("a") is context.recall("a") is first
    assert titles(context.window) == ["Root", "B", "A"]
    assert titles(context.get_all_documents()) == ["Root", "A", "B"]


# Budget


def test_total_tokens() -> None:
    assert context_with({"A": 5, "B": 7}).total_tokens == 22


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(80, (True, "")), (81, (False, "101 tokens would exceed max_context_length 100"))],
)
def test_can_add_as_far_as_the_window_goes(tokens: int, expected: tuple[bool, str]) -> None:
    assert context_with({"A": 10}).can_add_document(tokens) == expected


def test_can_add_as_many_documents_as_allowed() -> None:
    assert context_with({"A": 1}, max_auxiliary_documents=2).can_add_document(1) == (True, "")
    full = context_with({"A": 1, "B": 1}, max_auxiliary_documents=2)
    assert full.can_add_document(1) == (False, "max_auxiliary_documents 2 are in view")
    none = context_with({}, max_auxiliary_documents=0)
    assert none.can_add_document(1) == (False, "max_auxiliary_documents 0 are in view")


@pytest.mark.parametrize("policy", ["drop_oldest", "stop_new"])
def test_asking_evicts_nothing(policy: str) -> None:
    context = context_with({"A": 80}, eviction_policy=policy)
    context.can_add_document(50)
    assert titles(context.window) == ["Root", "A"]


@pytest.mark.parametrize("policy", ["drop_oldest", "stop_new"])
def test_where_a_document_fits_nothing_is_evicted(policy: str) -> None:
    context = context_with({"A": 10, "B": 10}, eviction_policy=policy)
    assert context.make_room(70) == (True, "")
    assert titles(context.window) == ["Root", "A", "B"] and context.evictions == 0


def test_room_is_made_by_evicting_the_oldest() -> None:
    context = context_with({"A": 10, "B": 10, "C": 10})
    assert context.make_room(75) == (True, "")
    assert titles(context.window) == ["Root", "C"] and context.evictions == 2
    assert context.can_add_document(75) == (True, "")


def test_room_is_made_for_one_more_document() -> None:
    context = context_with({"A": 1, "B": 1}, max_auxiliary_documents=2)
    assert context.make_room(1) == (True, "")
    assert titles(context.window) == ["Root", "B"]


def test_stop_new_refuses_and_says_why() -> None:
    context = context_with({"A": 10, "B": 10}, eviction_policy="stop_new", max_auxiliary_documents=2)
    assert context.make_room(1) == (False, "max_auxiliary_documents 2 are in view")
    context = context_with({"A": 10}, eviction_policy="stop_new")
    assert context.make_room(90) == (False, "110 tokens would exceed max_context_length 100")
    assert titles(context.window) == ["Root", "A"]


def test_nothing_is_evicted_where_that_would_not_do() -> None:
    context = context_with({"A": 10, "B": 10})
    assert context.make_room(91) == (False, "91 tokens do not fit beside the documents in progress")
    assert titles(context.window) == ["Root", "A", "B"] and context.evictions == 0
    assert context.make_room(90) == (True, "")
    assert titles(context.window) == ["Root"]


def test_documents_in_progress_are_not_evicted_for_one_more() -> None:
    context = context_with({"A": 10}, max_auxiliary_documents=2)
    context.start_auxiliary_generation("B", [1] * 10)
    assert context.make_room(1) == (True, "")
    context = context_with({"A": 10}, max_auxiliary_documents=3)
    for title in "BC":
        context.start_auxiliary_generation(title, [1] * 10)
    context.max_auxiliary_documents = 2
    assert context.make_room(1) == (False, "max_auxiliary_documents 2 are in progress")
    assert titles(context.window) == ["Root", "A", "B", "C"]


def test_the_next_token_drives_out_the_oldest_whatever_the_policy() -> None:
    for policy in ("drop_oldest", "stop_new"):
        context = context_with({"A": 30, "B": 30, "C": 30}, eviction_policy=policy)
        assert context.evict_if_needed() == []
        assert titles(context.evict_if_needed(1)) == ["A"]
        assert titles(context.window) == ["Root", "B", "C"]
        assert context.evict_if_needed(30) == []
        assert titles(context.evict_if_needed(60)) == ["B"]
        assert context.evictions == 2


def test_documents_in_progress_are_never_evicted() -> None:
    context = context_with({"A": 10})
    context.open_corpus_document("B", [1] * 10)
    context.start_auxiliary_generation("C", [1] * 10)
    context.add_corpus_document("D", [1] * 10)
    assert titles(context.evict_if_needed(1000)) == ["A", "D"]
    assert titles(context.window) == ["Root", "B", "C"]
    assert context.evict_if_needed(1000) == []


# What eviction does to grants (S4)


def test_eviction_ends_the_grants_of_documents_in_progress_at_their_next_token_to_compute() -> None:
    context = context_with({"A": 10, "B": 10})
    a, b = context.window[1:]
    root = context.root
    child = context.start_auxiliary_generation("C", [1] * 6)
    root.add_grant(2, a)
    root.add_grant(4, b)
    root.settled = 9  # the link in token 9 is what opened C
    child.add_grant(3, a)
    child.settled = 5
    context.evict(a)
    assert grants(root) == [(2, "A", 9), (4, "B", None)]
    assert grants(child) == [(3, "A", 5)]


def test_eviction_leaves_the_grants_of_complete_documents_alone() -> None:
    context = context_with({"A": 10})
    reader = context.open_corpus_document("B", [1] * 10)
    reader.add_grant(3, context.window[1])
    context.complete_current_document()
    reader.settled = 5
    context.evict(context.window[1])
    assert grants(reader) == [(3, "A", None)]


def test_a_grant_that_no_token_came_to_read_goes_without_a_trace() -> None:
    context = context_with({"A": 10})
    context.root.add_grant(4, context.window[1])
    context.evict(context.window[1])
    assert context.root.grants == []


def test_linked_again_after_its_return_is_a_new_grant() -> None:
    context = context_with({"A": 10})
    document, root = context.window[1], context.root
    root.add_grant(2, document)
    root.settled = 7
    context.evict(document)
    context.readmit(document)
    root.add_grant(9, document)
    assert grants(root) == [(2, "A", 7), (9, "A", None)]


# The window as one packed sequence


def test_packing() -> None:
    context = DocumentContext()
    context.initialize_root([1, 2, 3], "Root")
    context.add_corpus_document("A", [4, 5])
    context.add_corpus_document("B", [6])
    context.root.add_grant(1, context.window[1])
    context.root.add_grant(2, context.window[2])
    tokens = context.get_tokens_for_model()
    assert tokens.dtype == torch.int64 and tokens.tolist() == [[6, 4, 5, 1, 2, 3]]
    spans = context.get_doc_spans()
    assert [(span.title, span.start, span.end) for span in spans] == [("B", 0, 1), ("A", 1, 3), ("Root", 3, 6)]
    assert [(grant.position, grant.target, grant.end) for grant in spans[2].grants] == [(1, 1, None), (2, 0, None)]
    assert spans[0].grants == spans[1].grants == ()


def test_the_current_document_is_packed_last() -> None:
    context = context_with({"A": 2}, root=3)
    context.start_auxiliary_generation("B", [1])
    assert [span.title for span in context.get_doc_spans()] == ["A", "Root", "B"]
    context.complete_current_document()
    assert [span.title for span in context.get_doc_spans()] == ["B", "A", "Root"]


def test_a_complete_window_is_packed_too() -> None:
    context = context_with({"A": 2}, root=3)
    context.complete_current_document()
    assert context.get_tokens_for_model().shape == (1, 5)
    assert [span.title for span in context.get_doc_spans()] == ["A", "Root"]


def test_grants_of_evicted_documents_are_not_in_the_spans() -> None:
    context = context_with({"A": 2, "B": 2}, root=5)
    for position, document in zip((1, 3), context.window[1:], strict=True):
        context.root.add_grant(position, document)
    context.root.settled = 4
    context.evict(context.window[1])
    spans = context.get_doc_spans()
    assert [span.title for span in spans] == ["B", "Root"]
    assert [(grant.position, grant.target) for grant in spans[1].grants] == [(3, 0)]


@pytest.mark.parametrize("shape", ["fan-out", "chain"])
def test_the_packed_window_gives_what_cached_writing_gave(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full pass with absolute positions over [newest]...[root] is what the arena's views compute (S3)."""
    context = DocumentContext(max_context_length=200, max_tokens_per_document=100)
    root = context.initialize_root(encode("some prompt"), "Root")
    first = context.open_corpus_document("A", encode("the first of them"))
    if shape == "chain":
        first.add_grant(4, context.add_corpus_document("B", encode("the second")))
    context.complete_current_document()
    if shape == "fan-out":
        root.add_grant(3, first)
        root.add_grant(7, context.add_corpus_document("B", encode("the second")))
    else:
        root.add_grant(3, first)
    follow(monkeypatch, {"Root": "and its continuation"})
    config = GenerationConfig(max_context_length=200, eos_token_id=EOS)
    SingleDocumentGenerator(TOKENIZER).generate(small_model(), context, config)

    tokens, spans = context.get_tokens_for_model(), context.get_doc_spans()
    assert spans[-1].title == "Root" and [span.title for span in spans[:2]] == ["B", "A"]
    logprobs = small_model().forward_inference(tokens, spans)[0].log_softmax(-1)
    start = spans[-1].start
    written = np.flatnonzero(~np.isnan(root.logprobs))
    assert len(written) == len(encode("and its continuation")) + 1
    expected = [float(logprobs[start + index - 1, root.tokens[index]]) for index in written]
    np.testing.assert_allclose(np.array(root.logprobs)[written], expected, atol=1e-4)
    # And the grants matter: without them the numbers are others.
    alone = small_model().forward_inference(tokens)[0].log_softmax(-1)
    changed = [float(alone[start + index - 1, root.tokens[index]]) for index in written]
    assert np.abs(np.array(changed) - expected).max() > 1e-2
