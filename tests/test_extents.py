"""The allocator against a plain map of slots: who owns which."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ds2ds.cache.extents import Extent, ExtentAllocator, Move


class Allocator(RuleBasedStateMachine):
    """Every slot has the name of its owner, or None; the allocator must agree with this map at all times."""

    @initialize(block=st.sampled_from([1, 4, 16]), blocks=st.integers(1, 12))
    def start(self, block: int, blocks: int) -> None:
        self.block = block
        self.slots: list[int | None] = [None] * (block * blocks)
        self.allocator = ExtentAllocator(block * blocks, block)
        self.held: dict[int, Extent] = {}
        self.next_name = 0

    def rounded(self, length: int) -> int:
        need = self.block
        while need < length:
            need += self.block
        return need

    def first_gap(self, need: int) -> int | None:
        starts = range(0, len(self.slots) - need + 1, self.block)
        return next((at for at in starts if self.slots[at : at + need] == [None] * need), None)

    @rule(length=st.integers(0, 100))
    def allocate(self, length: int) -> None:
        need = self.rounded(length)
        expected = self.first_gap(need)
        extent = self.allocator.allocate(length)
        if expected is None:
            assert extent is None
        else:
            assert extent is not None
            assert (extent.start, extent.length, extent.stop) == (expected, need, expected + need)
            self.slots[extent.start : extent.stop] = [self.next_name] * need
            self.held[self.next_name] = extent
            self.next_name += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data(), length=st.integers(0, 100))
    def trim(self, data: st.DataObject, length: int) -> None:
        extent = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        start, stop = extent.start, extent.stop
        self.allocator.trim(extent, length)
        kept = min(start + self.rounded(length), stop)
        assert (extent.start, extent.stop) == (start, kept)
        self.slots[kept:stop] = [None] * (stop - kept)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.held)))
        self.allocator.release(self.held.pop(name))
        self.slots = [None if owner == name else owner for owner in self.slots]

    @rule()
    def compact(self) -> None:
        owners = [owner for owner in self.slots if owner is not None]
        stays = next((at for at, owner in enumerate(self.slots) if owner is None), len(self.slots))
        moves = self.allocator.compact()
        source_end = destination_end = stays
        for source, destination, length in moves:
            assert destination == destination_end < source
            # A gap lies below each: what is side by side moves at once.
            assert source > source_end and self.slots[source - 1] is None
            # In place: what lies at the destination is gone afterwards.
            self.slots[destination : destination + length] = self.slots[source : source + length]
            source_end, destination_end = source + length, destination + length
        assert destination_end == len(owners)
        assert self.slots[: len(owners)] == owners
        self.slots[len(owners) :] = [None] * (len(self.slots) - len(owners))
        assert self.allocator.compact() == []

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "allocator"):
            return
        seen: list[int | None] = [None] * len(self.slots)
        for name, extent in self.held.items():
            assert extent.start % self.block == extent.length % self.block == 0
            assert seen[extent.start : extent.stop] == [None] * extent.length  # inside, and no overlap
            seen[extent.start : extent.stop] = [name] * extent.length
        assert seen == self.slots
        assert self.allocator.free + self.allocator.used == self.allocator.capacity == len(self.slots)
        assert self.allocator.free == self.slots.count(None)
        in_order = sorted(self.held.values(), key=lambda extent: extent.start)
        assert list(map(id, self.allocator.extents)) == list(map(id, in_order))
        self.allocator.check_integrity()


TestAllocator = Allocator.TestCase
TestAllocator.settings = settings(max_examples=120, stateful_step_count=50, deadline=None, derandomize=True)


def test_neighbours_merge_when_freed() -> None:
    allocator = ExtentAllocator(64, 16)
    extents = [allocator.allocate(16) for _ in range(4)]
    assert allocator.allocate(1) is None
    for extent in extents[1:3]:
        assert extent is not None
        allocator.release(extent)
    merged = allocator.allocate(32)
    assert merged is not None
    assert (merged.start, merged.length) == (16, 32)


def test_extents_side_by_side_move_at_once_and_those_behind_a_gap_apart() -> None:
    allocator = ExtentAllocator(112, 16)
    a, b, c, d, e, f = (allocator.allocate(16) for _ in range(6))
    for gone in (a, d):
        assert gone is not None
        allocator.release(gone)
    assert allocator.compact() == [Move(16, 0, 32), Move(64, 32, 32)]
    assert [extent and extent.start for extent in (b, c, e, f)] == [0, 16, 32, 48]


def test_trimming_gives_whole_blocks_back_and_never_takes_any() -> None:
    allocator = ExtentAllocator(64, 16)
    extent = allocator.allocate(40)
    assert extent is not None
    for length, kept in ((100, 48), (33, 48), (32, 32), (48, 32), (0, 16)):
        allocator.trim(extent, length)
        assert (extent.length, allocator.used, allocator.free) == (kept, kept, 64 - kept)
        allocator.check_integrity()


def test_extents_are_told_apart_by_identity() -> None:
    assert Extent(0, 16) != Extent(0, 16)
    allocator = ExtentAllocator(32, 16)
    allocator.allocate(16)
    for call in (allocator.release, lambda extent: allocator.trim(extent, 1)):
        with pytest.raises(ValueError, match=r"extent \[0, 16\) is not held"):
            call(Extent(0, 16))
    assert allocator.used == 16


def test_an_extent_is_released_once() -> None:
    allocator = ExtentAllocator(32, 16)
    extent = allocator.allocate(16)
    assert extent is not None
    allocator.release(extent)
    with pytest.raises(ValueError, match="not held"):
        allocator.release(extent)
    assert allocator.free == 32


@pytest.mark.parametrize(("capacity", "block"), [(0, 16), (-16, 16), (8, 16), (40, 16), (16, 0), (16, -4)])
def test_capacity_must_be_whole_blocks(capacity: int, block: int) -> None:
    with pytest.raises(ValueError, match=rf"multiple of block {block}, got {capacity}"):
        ExtentAllocator(capacity, block)


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ([(0, 32), (16, 16)], r"\[16, 32\) overlaps"),
        ([(32, 16), (0, 16)], r"\[0, 16\) overlaps"),
        ([(48, 32)], r"\[48, 80\) overlaps or leaves \[0, 64\)"),
        ([(-16, 16)], r"\[-16, 0\) overlaps or leaves"),
        ([(0, 0)], r"\[0, 0\) overlaps or leaves"),
        ([(8, 16)], r"\[8, 24\) is not aligned to 16"),
        ([(16, 20)], r"\[16, 36\) is not aligned to 16"),
    ],
)
def test_planted_damage_is_found(planted: list[tuple[int, int]], message: str) -> None:
    allocator = ExtentAllocator(64, 16)
    allocator.check_integrity()
    allocator.extents = [Extent(*extent) for extent in planted]
    with pytest.raises(RuntimeError, match=message):
        allocator.check_integrity()


@pytest.mark.parametrize("wrong", [-16, 16])
def test_a_wrong_count_is_found(wrong: int) -> None:
    allocator = ExtentAllocator(64, 16)
    allocator.allocate(20)
    allocator.check_integrity()
    allocator.used += wrong
    with pytest.raises(RuntimeError, match=f"extents add up to 32 slots, but {32 + wrong} count as used"):
        allocator.check_integrity()
