"""The store under random requests: every resident document always reads its own keys and values, and no one else's.

Each slot is written with a number that stands for what S5 says keys and values are a function of: the weights, the
document's tokens so far, and all of what those read. So whoever shares an entry that is not exactly its own, reads
what was moved wrongly, or was computed with other weights, reads other numbers than it should.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_store import SLACK, DocumentStore
from ds2ds.cache.entry import Entry
from ds2ds.cache.retention import RETENTIONS
from ds2ds.documents.content import Content, ContentGrant, content_of
from ds2ds.documents.document import Document, DocumentGrant
from ds2ds.errors import ArenaFullError

BLOCK = 4
BLOCKS = 10
REQUESTS = 3
READER = Document("reader", [])  # stands for whatever links to a document, and makes it another than a root

# Tokens, and grants as (position, which of these, end). Two are the same.
POOL: list[tuple[list[int], list[tuple[int, int, int | None]]]] = [
    ([1, 1], []),
    ([1, 0, 1, 1, 0], []),
    ([1, 1], []),
    ([0, 1, 0], [(1, 0, None)]),
    ([0, 1, 0], [(1, 1, None)]),
    ([1] * 9, [(0, 3, 4), (2, 2, None)]),
]


def reading(
    tokens: Sequence[int], grants: Sequence[DocumentGrant] | Sequence[ContentGrant], last: int
) -> tuple[Any, ...]:
    """What the keys and values of token `last` are a function of, in plain words."""
    read = [
        (g.position, last + 1 if g.end is None else min(g.end, last + 1), whole(g.target))
        for g in grants
        if g.position <= last
    ]
    return tuple(int(token) for token in tokens[: last + 1]), tuple(read)


def whole(of: Document | Content) -> tuple[Any, ...]:
    return reading(of.tokens, of.grants, len(of.tokens) - 1)


def value(weights: bytes, of: Document | Content, token: int) -> float:
    """A float32 that stands for it."""
    return float(hash((int.from_bytes(weights, "little"), reading(of.tokens, of.grants, token))) % 2**24)


class Requests(RuleBasedStateMachine):
    """`expected`: for each resident document, what the slots of its computed tokens hold."""

    retention: str
    share: bool
    seen: Counter[str]

    @initialize()
    def start(self) -> None:
        self.store = DocumentStore(KVArena(1, 1, 2, BLOCKS * BLOCK, BLOCK), RETENTIONS[self.retention](), self.share)
        self.store.arena.data.fill_(-1)
        self.requests: list[list[Document]] = [[] for _ in range(REQUESTS)]
        self.expected: dict[Document, list[float]] = {}
        self.count = 0

    # Documents

    @property
    def documents(self) -> list[Document]:
        return [document for request in self.requests for document in request]

    @property
    def drafts(self) -> list[Document]:
        return [document for document in self.documents if document.in_progress]

    @property
    def unfinished(self) -> list[Document]:
        return [document for document, values in self.expected.items() if len(values) < len(document.tokens)]

    def new(
        self, request: int, tokens: Sequence[int], capacity: int | None = None, parent: Document | None = READER
    ) -> Document:
        self.count += 1
        document = Document(f"{request}.{self.count}", list(tokens), parent=parent, capacity=capacity)
        self.requests[request].append(document)
        return document

    def from_pool(self, request: int, index: int) -> Document:
        """A document of its own for this request, as are those that it reads."""
        tokens, grants = POOL[index]
        targets = [self.from_pool(request, target) for _, target, _ in grants]
        document = self.new(request, tokens)
        for (position, _, end), target in zip(grants, targets, strict=True):
            document.grants.append(DocumentGrant(position, target, end))
        return document

    @precondition(lambda self: len(self.documents) < 25)
    @rule(
        request=st.integers(0, REQUESTS - 1),
        tokens=st.lists(st.integers(0, 1), max_size=2) | st.sampled_from([tokens for tokens, _ in POOL]),
        room=st.integers(0, 9),
        parent=st.sampled_from([None, READER]),
        data=st.data(),
    )
    def open(self, request: int, tokens: list[int], room: int, parent: Document | None, data: st.DataObject) -> None:
        self.reserve(self.new(request, tokens, len(tokens) + room, parent), data)

    @precondition(lambda self: self.expected and len(self.documents) < 25)
    @rule(data=st.data(), room=st.integers(0, 5), parent=st.sampled_from([None, READER]), completed=st.booleans())
    def write_the_same(self, data: st.DataObject, room: int, parent: Document | None, completed: bool) -> None:
        """Another document comes to hold what is there."""
        model = data.draw(st.sampled_from(list(self.expected)))
        request = next(index for index, request in enumerate(self.requests) if model in request)
        document = self.new(request, model.tokens, len(model.tokens) + room, parent)
        document.grants = list(model.grants)
        self.reserve(document, data)
        if document in self.unfinished:
            self.compute(document, data, 1.0)
        if completed:
            self.complete(document)

    @precondition(lambda self: len(self.documents) < 25)
    @rule(
        request=st.integers(0, REQUESTS - 1),
        index=st.integers(0, len(POOL) - 1),
        written=st.integers(0, 6),
        leaves=st.booleans(),
        data=st.data(),
    )
    def ask(self, request: int, index: int, written: int, leaves: bool, data: st.DataObject) -> None:
        """A root whose prompt has links; it is computed, and something written."""
        model = self.from_pool(request, index)
        root = self.new(request, model.tokens, len(model.tokens) + written, None)
        root.grants = list(model.grants)
        self.reserve(root, data)
        for _ in range(written):
            root.append(1, -1.0)
        if root in self.unfinished:
            self.compute(root, data, 1.0)
        if leaves:
            self.let_go(root)

    @precondition(lambda self: self.drafts)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=3))
    def append(self, data: st.DataObject, tokens: list[int]) -> None:
        document = data.draw(st.sampled_from(self.drafts))
        assert document.capacity is not None
        for token in tokens[: document.capacity - len(document.tokens)]:
            document.append(token, -1.0)

    @precondition(lambda self: self.drafts)
    @rule(data=st.data())
    def grant(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.drafts))
        request = next(request for request in self.requests if reader in request)
        targets = [document for document in request if not document.in_progress]
        if targets:
            reader.add_grant(len(reader.tokens), data.draw(st.sampled_from(targets)))

    @precondition(lambda self: any(document.grants for document in self.drafts))
    @rule(data=st.data())
    def end_grant(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from([document for document in self.drafts if document.grants]))
        reader.end_grants(data.draw(st.sampled_from(reader.grants)).target)

    @precondition(lambda self: self.drafts)
    @rule(data=st.data())
    def complete_any(self, data: st.DataObject) -> None:
        self.complete(data.draw(st.sampled_from(self.drafts)))

    def complete(self, document: Document) -> None:
        entry, free = self.store.entry(document), self.store.arena.allocator.free
        reserved = 0 if entry is None else entry.extent.length
        document.capacity = None
        self.store.complete(document)
        now = self.store.entry(document)
        given_back = self.store.arena.allocator.free - free
        if entry is None:
            assert now is None and given_back == 0
        elif now is entry:
            assert given_back == reserved - self.rounded(document)
        else:
            self.seen["two equal ones became one"] += 1
            assert now is not None and given_back == reserved
            assert now.computed >= len(self.expected[document])
            self.expected[document] = self.pure(document, now.computed)
        self.store.complete(document)
        assert self.store.entry(document) is now

    # Bringing in and computing

    @precondition(lambda self: len(self.documents) < 25)
    @rule(request=st.integers(0, REQUESTS - 1), index=st.integers(0, len(POOL) - 1), data=st.data())
    def bring_from_pool(self, request: int, index: int, data: st.DataObject) -> None:
        document = self.from_pool(request, index)
        self.bring(document, data)
        if document in self.unfinished and data.draw(st.booleans()):
            self.compute(document, data, 1.0)

    @precondition(lambda self: len(self.expected) < len(self.documents))
    @rule(data=st.data())
    def bring_back(self, data: st.DataObject) -> None:
        """What was dropped, or never had room."""
        self.bring(data.draw(st.sampled_from([d for d in self.documents if d not in self.expected])), data)

    def bring(self, document: Document, data: st.DataObject) -> None:
        found = self.store.attach(document)
        if found is None:
            self.reserve(document, data)
            return
        assert self.share and not document.in_progress
        self.seen["attached"] += 1
        self.seen["attached, and computed in part"] += 0 < found < len(document.tokens)
        self.seen["attached to what no one used"] += len(self.store.entry(document).documents) == 1  # type: ignore
        self.expected[document] = self.pure(document, found)

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data(), seconds=st.sampled_from([None, 0.0, 0.5, 4.0]))
    def compute_any(self, data: st.DataObject, seconds: float | None) -> None:
        self.compute(data.draw(st.sampled_from(self.unfinished)), data, seconds)

    def compute(self, document: Document, data: st.DataObject, seconds: float | None) -> None:
        done = len(self.expected[document])
        stop = data.draw(st.integers(done + 1, len(document.tokens)))
        start = self.store.start(document)
        for token in range(done, stop):
            self.store.arena.data[..., start + token, :] = value(self.store.weights, document, token)
        self.store.advance(document, stop, seconds)
        entry = self.store.entry(document)
        for sharing, values in self.expected.items():
            if self.store.entry(sharing) is entry:
                values += [value(self.store.weights, sharing, token) for token in range(done, stop)]
                self.seen["computed for another too"] += sharing is not document
        assert document.settled >= stop

    # Room

    def rounded(self, document: Document) -> int:
        tokens = len(document.tokens) if document.capacity is None else document.capacity
        return max(1, -(-tokens // BLOCK)) * BLOCK

    @rule(blocks=st.integers(1, BLOCKS + 1), data=st.data())
    def reserve_much(self, blocks: int, data: st.DataObject) -> None:
        """Once, and given back: a document that no one asks for again."""
        large = Document("large", [2] * (blocks * BLOCK))
        self.reserve(large, data)
        self.store.release(large)
        self.expected.pop(large, None)

    def reserve(self, document: Document, data: st.DataObject) -> None:
        pinned = data.draw(st.sets(st.sampled_from(self.documents), max_size=5)) if self.documents else set()
        pinned |= {document}
        asked: list[bool] = []

        def pins() -> set[Document]:
            asked.append(True)
            return pinned

        before, found = self.resident(), self.store.found(document)
        assert found == self.prompt_known(document)
        allocator = self.store.arena.allocator
        free, need, had_gap = allocator.free, self.rounded(document), self.largest_gap()
        may_go = [entry for entry in self.store.retention.cheapest_first() if entry.documents.isdisjoint(pinned)]
        size = {entry: entry.extent.length for entry in may_go}
        if free + sum(size.values()) < need:
            self.seen["arena full"] += 1
            with pytest.raises(ArenaFullError, match=f"needs {need} slots .* {free + sum(size.values())} of"):
                self.store.reserve(document, pins)
            assert self.resident() == before
            return
        settled = document.settled
        assert self.store.reserve(document, pins) is self.store.entry(document) not in before
        now = self.resident()
        gone = [entry for entry in may_go if entry not in now]
        assert set(before) - set(now) == set(gone)
        assert gone == may_go[: len(gone)]  # the cheapest ones, and none that is pinned or in progress
        self.seen["dropped"] += len(gone)
        self.seen["dropped from those who use it"] += any(before[entry] for entry in gone)
        if had_gap >= need:
            assert not gone and not asked
        elif gone:
            without_last = free + sum(size[entry] for entry in gone[:-1])
            assert without_last < need + allocator.capacity // SLACK
            if without_last >= need:  # for a compaction
                self.seen["slack dropped"] += 1
                assert [extent.start for extent in allocator.extents[1:]] == [e.stop for e in allocator.extents[:-1]]
        for entry in gone:
            for user in before[entry]:
                del self.expected[user]
        computed = self.store.computed(document)
        assert computed == found or (computed == 0 and gone)  # what it was to start with had to go for it
        self.expected[document] = self.pure(document, computed)
        assert document.settled == max(settled, computed)
        self.seen["prompts copied"] += computed > 0

    def prompt_known(self, document: Document) -> int:
        """How much of it a root may start with: its prompt's tokens are those of an entry, with all that they read."""
        given = len(document.tokens)
        new = self.share and document.in_progress and document.parent is None and given == document.given > 0
        if not new:
            return 0
        wanted = reading(document.tokens, document.grants, given - 1)
        return max(
            (
                given - 1
                for entry in self.store.shared()
                if entry.content is not None and whole(entry.content) == wanted and entry.computed == given
            ),
            default=0,
        )

    def resident(self) -> dict[Entry, frozenset[Document]]:
        entries = [self.store.entry(document) for document in self.store.documents()]
        return {entry: frozenset(entry.documents) for entry in (*entries, *self.store.shared()) if entry is not None}

    def largest_gap(self) -> int:
        at, largest = 0, 0
        for extent in self.store.arena.allocator.extents:
            largest = max(largest, extent.start - at)
            at = extent.stop
        return max(largest, BLOCKS * BLOCK - at)

    @rule()
    def compact(self) -> None:
        self.seen["slots moved"] += self.store.arena.compact()

    # Letting go

    @precondition(lambda self: self.documents)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """As a request does that is suspended: it has the document still, and will bring it back."""
        self.let_go(data.draw(st.sampled_from(self.documents)))

    @rule(request=st.integers(0, REQUESTS - 1))
    def finish(self, request: int) -> None:
        for document in self.requests[request]:
            self.let_go(document)
        self.requests[request] = []

    def let_go(self, document: Document) -> None:
        entry = self.store.entry(document)
        is_root = document.parent is None and entry is not None and entry.key is None
        self.store.release(document)
        self.expected.pop(document, None)
        stays = entry is not None and entry in self.resident()
        if stays and is_root:
            assert entry is not None and entry.computed == document.given
            assert entry.extent.length == -(-document.given // BLOCK) * BLOCK
            self.seen["prompts kept"] += 1
        elif document.in_progress or not self.share:
            assert not stays

    @rule()
    def clear(self) -> None:
        self.store.clear()
        assert all(users for users in self.resident().values())

    @rule(weights=st.sampled_from([b"", b"\1", b"\2"]))
    def use_weights(self, weights: bytes) -> None:
        others = weights != self.store.weights
        self.store.use_weights(weights)
        if others:
            self.seen["weights changed while documents were in use"] += bool(self.expected)
            assert self.store.shared() == []

    @rule(index=st.integers(0, len(POOL) - 1), cost=st.sampled_from([0.0, 1.0, 9.0]), uses=st.integers(0, 3))
    def insert(self, index: int, cost: float, uses: int) -> None:
        made: list[Document] = []
        self.requests.append(made)
        content = content_of(self.from_pool(REQUESTS, index))
        self.requests.pop()
        known, before, free = self.store.holds(content), self.resident(), self.store.arena.allocator.free
        entry = self.store.insert(content, cost, uses)
        if entry is None:
            assert known or not self.share or free < self.rounded(made[-1])
            assert self.resident() == before
            return
        assert not known and self.resident() == {**before, entry: frozenset()}
        self.seen["inserted"] += 1
        for token in range(len(content)):
            self.store.arena.data[..., entry.extent.start + token, :] = value(self.store.weights, content, token)

    # What must always hold

    def pure(self, document: Document | Content, computed: int) -> list[float]:
        """What these weights alone would compute."""
        return [value(self.store.weights, document, token) for token in range(computed)]

    def reads(self, entry: Entry) -> list[list[float]]:
        """All planes of its computed slots, each [computed * head_dim]."""
        slots = self.store.arena.data[..., entry.extent.start : entry.extent.start + entry.computed, :]
        return slots.reshape(2, -1).tolist()

    @invariant()
    def every_document_reads_its_own(self) -> None:
        if not hasattr(self, "store"):
            return
        self.seen["steps"] += 1
        assert set(self.store.documents()) == set(self.expected)
        for document, values in self.expected.items():
            entry = self.store.entry(document)
            assert entry is not None and entry.computed == self.store.computed(document) == len(values)
            assert self.reads(entry) == [[v for v in values for _ in range(2)]] * 2, document.title
        for entry in self.store.shared():
            assert entry.content is not None
            values = self.pure(entry.content, entry.computed)
            assert self.reads(entry) == [[v for v in values for _ in range(2)]] * 2

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "store"):
            return
        self.store.check_integrity()
        entries = self.resident()
        allocator = self.store.arena.allocator
        assert allocator.used == sum(entry.extent.length for entry in entries)
        assert allocator.free + allocator.used == allocator.capacity == BLOCKS * BLOCK
        writing = {entry for entry, users in entries.items() if any(user.in_progress for user in users)}
        assert set(self.store.retention.cheapest_first()) == set(entries) - writing
        if not self.share:
            assert all(len(users) == 1 for users in entries.values())

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        for request in range(REQUESTS):
            self.finish(request)
        self.store.clear()
        assert self.store.arena.allocator.used == 0
        self.store.check_integrity()


def play(retention: str, share: bool, examples: int) -> Counter[str]:
    """Returns how often which situation arose."""
    seen: Counter[str] = Counter()
    machine = type("Machine", (Requests,), {"retention": retention, "share": share, "seen": seen})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return seen


SITUATIONS = [
    "two equal ones became one",
    "attached",
    "attached, and computed in part",
    "attached to what no one used",
    "computed for another too",
    "arena full",
    "dropped",
    "dropped from those who use it",
    "slack dropped",
    "slots moved",
    "weights changed while documents were in use",
    "inserted",
    "prompts kept",
    "prompts copied",
]


@pytest.mark.parametrize("retention", RETENTIONS)
def test_random_requests_that_share(retention: str) -> None:
    seen = play(retention, True, 150)
    assert {situation: seen[situation] for situation in SITUATIONS if seen[situation] < 5} == {}


def test_random_requests_that_do_not_share() -> None:
    seen = play("gdsf", False, 60)
    assert seen["attached"] == seen["two equal ones became one"] == seen["inserted"] == 0
    assert min(seen["dropped"], seen["arena full"], seen["slots moved"]) >= 10
