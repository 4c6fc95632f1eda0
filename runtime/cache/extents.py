"""Contiguous runs of slots in the arena: first fit, aligned to a block, neighbours merged when freed."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(eq=False)
class Extent:
    """Slots [start, start + length). `start` changes when the arena is compacted, so hold the extent, not a number."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


class Move(NamedTuple):
    """Slots [source, source + length) are to become [destination, destination + length)."""

    source: int
    destination: int
    length: int


class ExtentAllocator:
    """Hands out extents of [0, capacity).

    Args:
        capacity: number of slots, a multiple of block.
        block: starts and lengths are multiples of this (the block mask's KV block).

    Attributes:
        extents: in order of start.
        used: slots that are handed out.
    """

    def __init__(self, capacity: int, block: int) -> None:
        if block < 1 or capacity < block or capacity % block:
            raise ValueError(f"capacity must be a positive multiple of block {block}, got {capacity}")
        self.capacity = capacity
        self.block = block
        self.extents: list[Extent] = []
        self.used = 0

    @property
    def free(self) -> int:
        return self.capacity - self.used

    def rounded(self, length: int) -> int:
        """Slots that an extent for `length` tokens takes."""
        return -(-max(length, 1) // self.block) * self.block

    def allocate(self, length: int) -> Extent | None:
        """An extent for at least `length` tokens in the first gap that holds it; None if no gap does."""
        need = self.rounded(length)
        at = 0
        for index, extent in enumerate(self.extents):
            if extent.start - at >= need:
                return self._insert(index, Extent(at, need))
            at = extent.stop
        if self.capacity - at >= need:
            return self._insert(len(self.extents), Extent(at, need))
        return None

    def trim(self, extent: Extent, length: int) -> int:
        """Give back what lies beyond the first `length` tokens; returns how many slots."""
        self._index(extent)
        beyond = extent.length - min(extent.length, self.rounded(length))
        self.used -= beyond
        extent.length -= beyond
        return beyond

    def release(self, extent: Extent) -> None:
        del self.extents[self._index(extent)]
        self.used -= extent.length

    def compact(self) -> list[Move]:
        """Slide all extents down over the gaps. Returns the moves, ascending; extents that stay side by side are one.

        Every destination is below its source and at or above the end of the destination before it, so that moving in
        this order in place loses nothing.
        """
        moves: list[Move] = []
        at = 0
        for extent in self.extents:
            if extent.start != at:
                last = moves[-1] if moves else None
                if last is not None and last.source + last.length == extent.start:
                    moves[-1] = last._replace(length=last.length + extent.length)
                else:
                    moves.append(Move(extent.start, at, extent.length))
                extent.start = at
            at = extent.stop
        return moves

    def check_integrity(self) -> None:
        """Raise RuntimeError unless extents are aligned, ascending, disjoint, inside the arena, and add up."""
        at = 0
        for extent in self.extents:
            if extent.start < at or extent.stop > self.capacity or extent.length < 1:
                raise RuntimeError(f"extent [{extent.start}, {extent.stop}) overlaps or leaves [0, {self.capacity})")
            if extent.start % self.block or extent.length % self.block:
                raise RuntimeError(f"extent [{extent.start}, {extent.stop}) is not aligned to {self.block}")
            at = extent.stop
        total = sum(extent.length for extent in self.extents)
        if total != self.used:
            raise RuntimeError(f"extents add up to {total} slots, but {self.used} count as used")

    def _insert(self, index: int, extent: Extent) -> Extent:
        self.extents.insert(index, extent)
        self.used += extent.length
        return extent

    def _index(self, extent: Extent) -> int:
        index = bisect_left(self.extents, extent.start, key=lambda held: held.start)
        if index < len(self.extents) and self.extents[index] is extent:
            return index
        raise ValueError(f"extent [{extent.start}, {extent.stop}) is not held by this allocator")
