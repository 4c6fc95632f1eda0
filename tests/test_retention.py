"""Retention against plain models that look at every entry each time, and what it makes of loads of documents."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_store import DocumentStore
from ds2ds.cache.entry import Entry
from ds2ds.cache.extents import Extent
from ds2ds.cache.retention import RETENTIONS, GreedyDualSizeFrequency, LeastRecentlyUsed, Retention
from ds2ds.documents.document import Document


def entry(size: int = 1, uses: int = 1, cost: float = 1.0) -> Entry:
    return Entry(Extent(0, size), uses=uses, cost=cost)


def order(retention: Retention) -> list[Entry]:
    return list(retention.cheapest_first())


class Model(RuleBasedStateMachine):
    """Per entry, what the rule says of it now; found by looking at all."""

    make: Callable[[], Retention]

    @initialize()
    def start(self) -> None:
        self.retention = self.make()
        self.pool = [entry(size) for size in (1, 1, 2, 3, 8, 16)]
        self.noted: dict[Entry, tuple[float, int]] = {}
        self.time = 0
        self.inflation = 0.0

    def rule_of_worth(self, of: Entry) -> float:
        raise NotImplementedError

    @rule(index=st.integers(0, 5), uses=st.integers(0, 3), cost=st.sampled_from([0.0, 0.0, 0.25, 1.0]))
    def note(self, index: int, uses: int, cost: float) -> None:
        of = self.pool[index]
        of.uses += uses
        of.cost += cost
        self.retention.note(of)
        self.time += 1
        self.noted[of] = (self.rule_of_worth(of), self.time)
        assert of in self.retention

    @rule(index=st.integers(0, 5))
    def forget(self, index: int) -> None:
        self.retention.forget(self.pool[index])
        self.noted.pop(self.pool[index], None)
        assert self.pool[index] not in self.retention

    @precondition(lambda self: self.noted)
    @rule(count=st.integers(1, 6))
    def drop(self, count: int) -> None:
        """For lack of room the cheapest go."""
        cheapest = self.expected()[:count]
        assert order(self.retention)[:count] == cheapest
        for of in cheapest:
            self.inflation = max(self.inflation, self.noted.pop(of)[0])
            self.retention.drop(of)

    @precondition(lambda self: self.noted)
    @rule(data=st.data())
    def drop_any(self, data: st.DataObject) -> None:
        """Cheaper ones may be pinned."""
        of = self.expected()[data.draw(st.integers(0, len(self.noted) - 1))]
        self.inflation = max(self.inflation, self.noted.pop(of)[0])
        self.retention.drop(of)

    @rule(count=st.integers(0, 6))
    def look_at_some(self, count: int) -> None:
        entries = self.retention.cheapest_first()
        assert [of for _, of in zip(range(count), entries, strict=False)] == self.expected()[:count]
        entries.close()

    def expected(self) -> list[Entry]:
        return sorted(self.noted, key=lambda of: self.noted[of])

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "noted"):
            return
        assert order(self.retention) == self.expected()
        assert [of in self.retention for of in self.pool] == [of in self.noted for of in self.pool]


class LeastRecentlyUsedModel(Model):
    make = LeastRecentlyUsed

    def rule_of_worth(self, of: Entry) -> float:
        return self.time


class GreedyDualModel(Model):
    make = GreedyDualSizeFrequency

    def rule_of_worth(self, of: Entry) -> float:
        """Cherkasova (1998): clock + frequency * cost / size."""
        return self.inflation + of.uses * of.cost / of.extent.length

    @invariant()
    def inflation_agrees(self) -> None:
        if hasattr(self, "retention"):
            assert isinstance(self.retention, GreedyDualSizeFrequency)
            assert self.retention.inflation == self.inflation


TestLeastRecentlyUsed = LeastRecentlyUsedModel.TestCase
TestGreedyDual = GreedyDualModel.TestCase
TestLeastRecentlyUsed.settings = settings(max_examples=60, stateful_step_count=50, deadline=None, derandomize=True)
TestGreedyDual.settings = TestLeastRecentlyUsed.settings


def test_names() -> None:
    assert {"lru": LeastRecentlyUsed, "gdsf": GreedyDualSizeFrequency} == RETENTIONS


def test_least_recently_used_looks_at_nothing_but_time() -> None:
    retention = LeastRecentlyUsed()
    a, b, c = entry(1, 99, 99.0), entry(50), entry()
    for of in (a, b, c, a, b):
        retention.note(of)
    assert order(retention) == [c, a, b]


@pytest.mark.parametrize(
    ("dearer", "cheaper"),
    [(entry(cost=2.0), entry(cost=1.0)), (entry(uses=3), entry(uses=2)), (entry(size=4), entry(size=5))],
    ids=["cost", "uses", "size"],
)
def test_worth_is_cost_times_uses_per_slot(dearer: Entry, cheaper: Entry) -> None:
    for noted in ((dearer, cheaper), (cheaper, dearer)):
        retention = GreedyDualSizeFrequency()
        for of in noted:
            retention.note(of)
        assert order(retention) == [cheaper, dearer]
    assert (dearer.worth, cheaper.worth) == tuple(of.uses * of.cost / of.extent.length for of in (dearer, cheaper))


def test_of_equal_worth_the_one_noted_first_goes() -> None:
    retention = GreedyDualSizeFrequency()
    entries = [entry() for _ in range(5)]
    for of in entries:
        retention.note(of)
    assert order(retention) == entries


def test_an_entry_forgotten_does_not_raise_inflation_and_one_dropped_does() -> None:
    retention = GreedyDualSizeFrequency()
    one, other = entry(cost=3.0), entry(cost=5.0)
    retention.note(one)
    retention.note(other)
    retention.forget(one)
    assert retention.inflation == 0
    retention.drop(other)
    assert retention.inflation == 5
    retention.note(one)
    retention.drop(one)
    assert retention.inflation == one.worth == 8
    cheap = entry(cost=0.0)
    cheap.worth = 1.0  # a pinned one may have kept a worth from before
    retention.drop(cheap)
    assert retention.inflation == 8


@pytest.mark.parametrize("name", RETENTIONS)
@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_looking_at_the_cheapest_changes_nothing(name: str, taken: int) -> None:
    retention = RETENTIONS[name]()
    entries = [entry(size) for size in (5, 4, 3, 2, 1)]
    for of in [*entries, entries[0], entries[0], entries[3]]:
        retention.note(of)
    before = order(retention)
    assert len(before) == 5
    cheapest = retention.cheapest_first()
    assert [next(cheapest) for _ in range(taken)] == before[:taken]
    cheapest.close()
    assert order(retention) == before
    retention.drop(before[0])
    assert order(retention) == before[1:]


@pytest.mark.parametrize("name", RETENTIONS)
def test_the_heap_stays_in_proportion_to_the_entries(name: str) -> None:
    retention = RETENTIONS[name]()
    entries = [entry() for _ in range(50)]
    for use in range(5000):
        entries[use % 50].uses += 1
        retention.note(entries[use % 50])
        assert len(retention._heap) <= 64 + 4 * 50
    assert order(retention) == entries
    for of in entries[1:]:
        retention.forget(of)
    for _ in range(300):
        retention.note(entries[0])
    assert len(retention._heap) <= 64 + 4
    assert order(retention) == entries[:1]


# Under load, through the store

BLOCK = 4


class Load:
    """An arena of ten documents' room, where computing takes a second a token; counts what is computed."""

    def __init__(self, retention: str) -> None:
        self.store = DocumentStore(KVArena(1, 1, 4, 10 * BLOCK, BLOCK), RETENTIONS[retention]())
        self.computed = 0

    def use(self, number: int) -> bool:
        """One request reads a document. Returns whether it was there."""
        document = Document(f"d{number}", [number] * BLOCK)
        found = self.store.attach(document)
        if found is None:
            self.store.reserve(document, set)
            self.store.advance(document, BLOCK, prefill_seconds=float(BLOCK))
            self.computed += 1
        self.store.release(document)
        self.store.check_integrity()
        return found is not None


@pytest.mark.parametrize(("retention", "stays"), [("gdsf", True), ("lru", False)])
def test_documents_read_once_flush_a_frequent_one_only_where_nothing_but_time_counts(
    retention: str, stays: bool
) -> None:
    load = Load(retention)
    for _ in range(8):
        load.use(0)
    for number in range(1, 40):
        assert not load.use(number)
    assert load.use(0) == stays


def test_what_was_frequent_long_ago_goes_at_last() -> None:
    load = Load("gdsf")
    for _ in range(8):
        load.use(0)
    for number in range(1, 200):
        load.use(number)
    assert not load.use(0)


@pytest.mark.parametrize("retention", RETENTIONS)
def test_as_many_documents_as_there_is_room_for_are_computed_once(retention: str) -> None:
    load = Load(retention)
    for _ in range(5):
        for number in range(10):
            load.use(number)
    assert load.computed == 10


def test_popular_documents_among_bursts_of_others_stay_where_uses_count() -> None:
    """Four that are read again and again, between bursts of twelve that are read once: more than there is room for."""
    found = {}
    for retention in RETENTIONS:
        load = Load(retention)
        found[retention] = 0
        for burst in range(10):
            found[retention] += sum(load.use(number) for number in (0, 1, 2, 3, 3, 2, 1, 0))
            for number in range(12):
                load.use(100 + 12 * burst + number)
    assert found["lru"] == 10 * 4  # only the second time in a row
    assert found["gdsf"] == 10 * 8 - 4
