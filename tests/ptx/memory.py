"""Memory that knows where it may be touched, who touched it last, and what each request costs.

Who touched a byte is kept by program, and in it by stretch between barriers and by warp. Two accesses to a byte, not
both reads nor both atomic, conflict if they are by different programs of a launch, or by different warps of one program
with no barrier between them. Threads of a warp run in step, so they never conflict, unless they store different values
with one instruction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .values import Array

POISON = 0xA5
_RED_ZONE = 256
_OTHERS = np.uint32(1 << 31)


class Fault(Exception):
    """What a GPU would not survive."""


@dataclass(frozen=True)
class Access:
    """Who touches memory, and with what.

    Attributes:
        text: the instruction, and the line of the kernel.
        stamp: the program's number, times 2**32, plus that of its stretch between barriers; both from 1.
        warps: the number within the program of each thread's warp.
        early: whether each thread may be ahead of the end of the kernel that was launched before.
    """

    text: str
    stamp: int
    warps: Array
    early: Array


class _Marks:
    """For each cell of memory the last program and stretch that touched it in one way, and the warps that did."""

    def __init__(self, cells: int) -> None:
        self.stamps, self.warps = np.zeros(cells, np.int64), np.zeros(cells, np.uint32)

    def add(self, cells: Array, stamp: int, bits: Array) -> None:
        stale = cells[self.stamps[cells] != stamp]
        old = self.stamps[stale]
        # That another program has been here is not forgotten.
        self.warps[stale] = np.where((old > 0) & (old >> 32 != stamp >> 32), _OTHERS, self.warps[stale] & _OTHERS)
        self.stamps[stale] = stamp
        np.bitwise_or.at(self.warps, cells, bits)

    def conflict(self, cells: Array, stamp: int, bits: Array) -> bool:
        """Whether others have touched any of these cells, and nothing orders that before an access now."""
        seen, warps = self.stamps[cells], self.warps[cells]
        another = ((seen > 0) & (seen >> 32 != stamp >> 32)) | (warps & _OTHERS != 0)
        return bool((another | (seen == stamp) & (warps & ~bits != 0)).any())


class Memory:
    """Bytes, of which only some may be touched.

    Args:
        name: "global" or "shared".
        size: bytes.
        cell: bytes that are always touched together, 1, 2, 4 or 8.
        base: the address of the first.

    Attributes:
        findings: what went wrong, and how often.
        traffic: what each instruction has asked for, by its text.
        early: bytes that were loaded ahead of the end of the kernel before.
        fetched: how often each byte was asked to be brought closer.
    """

    def __init__(self, name: str, size: int, cell: int, base: int = 0) -> None:
        self.name, self.cell, self.base, self.size = name, cell, base, size
        self.bytes = np.full(-(-size // 8) * 8, POISON, np.uint8)
        self.open, self.known, self.early = (np.zeros(size, bool) for _ in range(3))
        self.fetched = np.zeros(size, int)
        self.findings: Counter[str] = Counter()
        self.traffic: dict[str, Traffic] = {}
        self.loads, self.stores, self.atomics = (_Marks(size // cell + 1) for _ in range(3))

    def load(self, addresses: Array, width: int, count: int, by: Access) -> Array:
        """[threads, count] words of this many bytes; those of a thread lie side by side."""
        places, cells, bits = self._touch(addresses, width, count, by)
        self._conflicts(cells, bits, by, "loads what another stores", self.stores, self.atomics)
        self._must_be_known(places, width, by)
        self.early[(addresses[by.early] - self.base)[:, None] + np.arange(width * count)] = True
        self.loads.add(cells.ravel(), by.stamp, np.broadcast_to(bits, cells.shape).ravel())
        return self._words(width)[places]

    def store(self, addresses: Array, values: Array, by: Access) -> None:
        """[threads, count] values, those of a thread side by side."""
        width = values.itemsize
        self._must_not_be_early(by)
        places, cells, bits = self._touch(addresses, width, values.shape[1], by)
        words = self._words(width)
        # To store what is there already makes no difference to others who have stored it.
        changed = (words[places] != values).any(axis=1)
        self._conflicts(cells[changed], bits[changed], by, "stores what another stores", self.stores)
        self._conflicts(cells, bits, by, "stores what another touches", self.loads, self.atomics)
        words[places] = values
        if (words[places] != values).any():
            self.findings[f"{self.name}: threads store different values to one place: {by.text}"] += 1
        self.known[places[:, :, None] * width + np.arange(width)] = True
        self.stores.add(cells.ravel(), by.stamp, np.broadcast_to(bits, cells.shape).ravel())

    def atomic(self, operation: Any, addresses: Array, values: Array, order: Array, by: Access) -> Array:
        """Change a word by each thread's value, in this order of the threads; what each found there."""
        width = values.itemsize
        self._must_not_be_early(by)
        places, cells, bits = self._touch(addresses, width, 1, by)
        self._conflicts(cells, bits, by, "changes what another touches", self.loads, self.stores)
        self._must_be_known(places, width, by)
        words, before = self._words(width), np.empty_like(values)
        for thread in order:
            before[thread] = words[places[thread, 0]]
            words[places[thread, 0]] = operation(before[thread], values[thread])
        self.atomics.add(cells.ravel(), by.stamp, np.broadcast_to(bits, cells.shape).ravel())
        return before

    def fetch(self, addresses: Array, sizes: Array, by: Access) -> None:
        """Have so many bytes from each address brought closer."""
        for at, size in zip((addresses - self.base).tolist(), sizes.tolist(), strict=True):
            if at % 16 or size % 16 or size == 0:
                raise Fault(f"{self.name}: {size} bytes from {at} on: {by.text}")
            if at < 0 or at + size > self.size or not self.open[at : at + size].all():
                self.findings[f"{self.name}: fetches what is out of bounds: {by.text}"] += 1
            self.fetched[max(at, 0) : at + size] += 1

    def forbid(self, addresses: Array, size: int) -> None:
        """Nothing is known of these bytes until they are stored again."""
        self.known[(addresses - self.base)[:, None] + np.arange(size)] = False

    def _words(self, width: int) -> Array:
        return self.bytes.view(f"u{width}")

    def _touch(self, addresses: Array, width: int, count: int, by: Access) -> tuple[Array, Array, Array]:
        """Places of the words, the cells they lie in, and a bit for the warp of each thread."""
        size = width * count
        at = addresses.astype(np.int64) - self.base
        if (addresses.astype(np.int64) % size).any():
            raise Fault(f"{self.name}: not aligned to {size} bytes: {by.text}")
        inside = (at >= 0) & (at + size <= self.size)
        if not (inside.all() and self.open[at].all() and self.open[at + size - 1].all()):
            raise Fault(f"{self.name}: out of bounds: {by.text}")
        self.traffic.setdefault(by.text, Traffic(by.text)).count(at, size, by.warps, self.name == "shared")
        places = at[:, None] // width + np.arange(count)
        cells = at[:, None] // self.cell + np.arange(size // self.cell)
        return places, cells, (np.uint32(1) << by.warps.astype(np.uint32))[:, None]

    def _must_be_known(self, places: Array, width: int, by: Access) -> None:
        if not (self.known[places * width].all() and self.known[places * width + width - 1].all()):
            self.findings[f"{self.name}: loads what nothing has stored: {by.text}"] += 1

    def _must_not_be_early(self, by: Access) -> None:
        if self.name == "global" and by.early.any():
            self.findings[f"{self.name}: writes ahead of the end of the kernel before: {by.text}"] += 1

    def _conflicts(self, cells: Array, bits: Array, by: Access, what: str, *others: _Marks) -> None:
        if any(marks.conflict(cells, by.stamp, bits) for marks in others):
            self.findings[f"{self.name}: {what}: {by.text}"] += 1


class Traffic:
    """What one instruction has asked for, over all warps of a launch.

    Attributes:
        requests: one for each warp and execution with any thread active.
        asked: bytes; those that several threads of a warp ask for at once count once.
        units: of global memory 32-byte sectors touched, of shared memory passes through its 32 banks.
        least: the fewest that as many bytes could come in.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.requests = self.asked = self.units = self.least = 0

    def count(self, at: Array, size: int, warps: Array, shared: bool) -> None:
        of_warp = warps.astype(np.int64) << 48
        single = np.unique(of_warp | at)
        each = np.unique(single >> 48, return_counts=True)[1]
        self.requests += each.size
        self.asked += single.size * size
        if not shared:
            self.units += np.unique(of_warp | at >> 5).size
            self.least += int((-(-each * size // 32)).sum())
            return
        # Banks are 4 bytes wide; what is wider is asked for by a half of the warp at a time, or by a quarter.
        words = max(1, size // 4)
        phase = (np.arange(at.size) & 31) // (32 // words)
        touched = np.unique((of_warp | phase << 40)[:, None] | (at[:, None] // 4 + np.arange(words)))
        passes = np.unique(touched >> 40, return_inverse=True)[1]
        in_bank = np.zeros((passes[-1] + 1, 32), int)
        np.add.at(in_bank, (passes, touched & 31), 1)
        self.units += int(in_bank.max(axis=1).sum())
        self.least += in_bank.shape[0]


class Space:
    """Global memory, in which arrays are placed with red zones between them.

    Args:
        arrays: by name. They are copied; `read` gives what has become of one.
        cell: bytes that are always touched together.
        beyond: how many bytes past a multiple of 256 an array is to start.
        known: which bytes of an array have a value; those of others all have.
    """

    def __init__(
        self,
        arrays: Mapping[str, Array],
        cell: int,
        beyond: Mapping[str, int] | None = None,
        known: Mapping[str, Array] | None = None,
    ) -> None:
        self.arrays = dict(arrays)
        self.pieces: dict[str, slice] = {}
        end = _RED_ZONE
        for name, array in arrays.items():
            start = end + (beyond or {}).get(name, 0)
            self.pieces[name] = slice(start, start + array.nbytes)
            end = -(-(start + array.nbytes + _RED_ZONE) // 256) * 256
        self.memory = Memory("global", end, cell, base=1 << 40)
        for name, array in arrays.items():
            piece = self.pieces[name]
            self.memory.bytes[piece] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self.memory.open[piece] = True
            self.memory.known[piece] = True if known is None or name not in known else known[name]

    def address(self, name: str) -> int:
        return self.memory.base + self.pieces[name].start

    def written(self, name: str) -> Array:
        """Which bytes of an array have been stored to."""
        marks, cell = (self.memory.stores, self.memory.atomics), self.memory.cell
        touched = np.repeat(np.logical_or(*(mark.stamps > 0 for mark in marks)), cell)
        return touched[self.pieces[name]]

    def read(self, name: str) -> Array:
        array = self.arrays[name]
        return self.memory.bytes[self.pieces[name]].view(array.dtype).reshape(array.shape).copy()
