"""Eviction policies through the window, each against a plain reading of its rule over random sequences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from scripted import Texts, follow, grants, small_runtime

from ds2ds import DocumentContext, GenerationConfig
from ds2ds.documents.document import Document
from ds2ds.documents.eviction import EVICTION_POLICIES, EvictionPolicy

ROOM = 40
MOST = 4


@dataclass
class Known:
    """What the rules look at, kept beside the window: `arrived` and `linked` are times of one clock."""

    document: Document
    arrived: int
    linked: int


def came_first(known: list[Known]) -> Known:
    return min(known, key=lambda one: one.arrived)


def linked_longest_ago(known: list[Known]) -> Known:
    return min(known, key=lambda one: one.linked)


def longest(known: list[Known]) -> Known:
    """Of equally long ones, the one that came first."""
    most = max(len(one.document.tokens) for one in known)
    return came_first([one for one in known if len(one.document.tokens) == most])


RULES: dict[str, Callable[[list[Known]], Known]] = {
    "drop_oldest": came_first,
    "stop_new": came_first,
    "least_recently_linked": linked_longest_ago,
    "largest_first": longest,
}


class Window(RuleBasedStateMachine):
    """Documents come and are linked; those that leave must be the ones that the rule names, one after the other."""

    policy: str
    seen: Counter[str]

    @initialize(root=st.integers(0, 8))
    def start(self, root: int) -> None:
        self.context = DocumentContext(ROOM, MOST, self.policy, max_tokens_per_document=30)
        self.context.initialize_root([1] * root, "Root")
        self.clock = 0
        self.count = 0
        self.window: dict[Document, Known] = {}
        self.gone: list[Document] = []
        self.evictions = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def came(self, document: Document) -> None:
        """Linked for the first time, or back."""
        linked = self.tick()
        self.window[document] = Known(document, linked, linked)

    @property
    def candidates(self) -> list[Known]:
        return [known for known in self.window.values() if not known.document.in_progress]

    def title(self) -> str:
        self.count += 1
        return f"d{self.count}"

    def fits(self, tokens: int, more: int) -> bool:
        total = len(self.context.root.tokens) + sum(len(document.tokens) for document in self.window)
        return total + tokens <= ROOM and len(self.window) + more <= MOST

    def named_by_the_rule(self, tokens: int, more: int) -> list[Document]:
        """Who leaves, one after the other, until so many tokens, of so many more documents, fit. They are gone then."""
        named = []
        while not self.fits(tokens, more) and self.candidates:
            named.append(RULES[self.policy](self.candidates).document)
            del self.window[named[-1]]
        return named

    def leave(self, documents: list[Document]) -> None:
        self.gone += documents
        self.evictions += len(documents)

    def make_room(self, tokens: int) -> bool:
        """For a new document; what fits without evictions stays as it is, and so does what cannot fit."""
        before, window = list(self.context.window), dict(self.window)
        leaving = [] if self.policy == "stop_new" else self.named_by_the_rule(tokens, 1)
        expected = self.fits(tokens, 1)
        if not expected:
            self.window, leaving = window, []
        self.leave(leaving)
        fits, reason = self.context.make_room(tokens)
        assert fits == expected == (not reason)
        assert self.context.window == [document for document in before if document not in leaving]
        self.seen[f"{len(leaving)} left"] += 1
        self.seen["refused"] += not fits
        return fits

    @rule(tokens=st.integers(1, 14))
    def add_from_corpus(self, tokens: int) -> None:
        if self.make_room(tokens):
            self.came(self.context.add_corpus_document(self.title(), [1] * tokens))

    @rule(tokens=st.integers(1, 5))
    def start_writing(self, tokens: int) -> None:
        if self.make_room(tokens):
            self.came(self.context.start_auxiliary_generation(self.title(), [1] * tokens))

    @rule(tokens=st.integers(1, 12))
    def write(self, tokens: int) -> None:
        """Room for the next tokens is made under any policy."""
        leaving = self.named_by_the_rule(tokens, 0)
        self.leave(leaving)
        assert self.context.evict_if_needed(tokens) == leaving
        self.seen["left for the next token"] += len(leaving)
        if self.fits(tokens, 0):
            for _ in range(tokens):
                self.context.append_token_to_current(2)

    @precondition(lambda self: self.context.current is not self.context.root)
    @rule()
    def end_writing(self) -> None:
        self.context.complete_current_document()

    @precondition(lambda self: self.window)
    @rule(data=st.data())
    def link(self, data: st.DataObject) -> None:
        document = data.draw(st.sampled_from(list(self.window)))
        self.context.note_link(document)
        self.window[document].linked = self.tick()
        if not document.in_progress:
            self.context.current.add_grant(len(self.context.current.tokens), document)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def bring_back(self, data: st.DataObject) -> None:
        """As a link to an evicted document does."""
        document = data.draw(st.sampled_from(self.gone))
        if self.make_room(len(document.tokens)):
            self.context.readmit(document)
            self.context.note_link(document)
            self.came(document)
            self.gone.remove(document)

    @invariant()
    def the_root_and_what_is_being_written_are_there(self) -> None:
        if not hasattr(self, "window"):
            return
        assert self.context.window == [self.context.root, *self.window]
        current: Document | None = self.context.current
        while current is not None:
            assert current in self.context.window
            current = current.parent
        assert self.context.total_tokens <= ROOM and len(self.window) <= MOST
        assert self.context.evictions == self.evictions
        for reader in self.context.window:
            if reader.in_progress:
                assert not any(reader.has_open_grant(document) for document in self.gone)


@pytest.mark.parametrize("policy", RULES)
def test_those_leave_that_the_rule_names(policy: str) -> None:
    seen: Counter[str] = Counter()
    machine = type("Machine", (Window,), {"policy": policy, "seen": seen})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=50, deadline=None, derandomize=True)
    )
    assert min(seen["refused"], seen["left for the next token"]) >= 10
    assert policy == "stop_new" or min(seen["1 left"], seen["2 left"]) >= 5


def test_every_policy_has_its_rule_here() -> None:
    assert set(RULES) == set(EVICTION_POLICIES)


def window(policy: str, *sizes: int) -> DocumentContext:
    """A root of one token and documents "a", "b", ... of these sizes, in a window that they fill."""
    context = DocumentContext(1 + sum(sizes), 9, policy)
    context.initialize_root([1], "Root")
    for title, size in zip("abcdef", sizes, strict=False):
        context.add_corpus_document(title, [1] * size)
    return context


def titles(context: DocumentContext) -> str:
    return "".join(document.title for document in context.window[1:])


@pytest.mark.parametrize(
    ("policy", "left"),
    [("drop_oldest", "bcd"), ("stop_new", "abcd"), ("least_recently_linked", "acd"), ("largest_first", "abd")],
)
def test_each_policy_by_hand(policy: str, left: str) -> None:
    """Four documents, of which all but the second are linked again; the third and the fourth are the longest."""
    context = window(policy, 2, 2, 3, 3)
    for document in (context.window[4], context.window[1], context.window[3]):
        context.note_link(document)
    fits, reason = context.make_room(2)
    assert titles(context) == left
    assert (fits, reason) == (
        (False, "13 tokens would exceed max_context_length 11") if policy == "stop_new" else (True, "")
    )


@pytest.mark.parametrize("policy", EVICTION_POLICIES)
def test_neither_the_root_nor_what_is_being_written_ever_leaves(policy: str) -> None:
    """Under a rule that would name them: the longest, and those that came first, and were linked longest ago."""
    context = DocumentContext(20, 9, policy)
    context.initialize_root([1] * 8, "Root")
    context.start_auxiliary_generation("writing", [1] * 7)
    context.add_corpus_document("a", [1] * 2)
    context.add_corpus_document("b", [1] * 2)
    assert [document.title for document in context.evict_if_needed(100)] == ["a", "b"]
    assert titles(context) == "writing"
    assert context.make_room(6) == (
        (False, "21 tokens would exceed max_context_length 20")
        if policy == "stop_new"
        else (False, "6 tokens do not fit beside the documents in progress")
    )
    assert context.evict_if_needed(100) == []


def test_a_document_that_returns_is_the_newest() -> None:
    context = window("drop_oldest", 2, 2, 2)
    first = context.window[1]
    context.evict(first)
    context.readmit(first)
    assert context.make_room(3) == (True, "")
    assert titles(context) == "a"


# A policy of one's own


def test_a_policy_that_is_added_works(monkeypatch: pytest.MonkeyPatch) -> None:
    smallest = EvictionPolicy(lambda candidate: (len(candidate.document.tokens), -candidate.arrived))
    monkeypatch.setitem(EVICTION_POLICIES, "smallest_first", smallest)
    assert GenerationConfig(eviction_policy="smallest_first").eviction_policy == "smallest_first"
    context = window("smallest_first", 5, 2, 3, 2)
    assert context.make_room(3) == (True, "")
    assert titles(context) == "ac"  # of equal ones the later first
    assert [document.title for document in context.evict_if_needed(7)] == ["c"]


def test_a_policy_that_is_added_may_refuse_new_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = EvictionPolicy(lambda candidate: (-candidate.linked,), admits=False)
    monkeypatch.setitem(EVICTION_POLICIES, "stubborn", stubborn)
    context = window("stubborn", 2, 2, 2)
    context.note_link(context.window[2])
    assert context.make_room(1) == (False, "8 tokens would exceed max_context_length 7")
    assert titles(context) == "abc"
    assert [document.title for document in context.evict_if_needed(3)] == ["b", "c"]


def test_a_policy_that_is_gone_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(EVICTION_POLICIES, "largest_first")
    for make in (lambda: window("largest_first"), lambda: GenerationConfig(eviction_policy="largest_first")):
        with pytest.raises(ValueError, match=r"eviction_policy must be one of .*, got 'largest_first'"):
            make()


def test_a_link_to_a_document_in_view_keeps_it_there(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, {"": " [a](A) [b](B) [a](A) [c](C) x"})
    corpus = Texts({title: f"about {title}" for title in "ABC"})
    limits = {"max_auxiliary_documents": 2, "max_new_tokens": 60, "seed": 0}
    result = small_runtime().generate("p", corpus=corpus, eviction_policy="least_recently_linked", **limits)
    assert [title for _, title, end in grants(result.root_document) if end is not None] == ["B"]
