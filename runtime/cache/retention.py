"""Which documents stay in the arena when no one reads them and room is needed: the one worth least goes first.

This never changes a result, only how much is computed again. What a request still sees is another matter:
`ds2ds.documents.eviction`.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Generator

from ds2ds.cache.entry import Entry


class Retention(ABC):
    """Keeps entries in order of worth; a heap whose outdated items are skipped, so that all calls are O(log n)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry]] = []
        self._latest: dict[Entry, int] = {}
        self._clock = 0

    @abstractmethod
    def worth(self, entry: Entry, clock: int) -> float:
        """What keeping the entry is worth now; `clock` counts the calls of `note`."""

    def note(self, entry: Entry) -> None:
        """An entry came in, was used once more, or has another cost now."""
        self._clock += 1
        self._latest[entry] = self._clock
        entry.worth = self.worth(entry, self._clock)
        heapq.heappush(self._heap, (entry.worth, self._clock, entry))
        if len(self._heap) > 64 + 4 * len(self._latest):
            self._heap = [item for item in self._heap if self._is_current(item)]
            heapq.heapify(self._heap)

    def forget(self, entry: Entry) -> None:
        """An entry is no longer there."""
        self._latest.pop(entry, None)

    def drop(self, entry: Entry) -> None:
        """`forget` an entry that goes for lack of room."""
        self.forget(entry)

    def cheapest_first(self) -> Generator[Entry, None, None]:
        """All entries, the least worth first. Close the iterator before anything is noted or forgotten."""
        passed = []
        try:
            while self._heap:
                item = heapq.heappop(self._heap)
                if self._is_current(item):
                    passed.append(item)
                    yield item[2]
        finally:
            for item in passed:
                heapq.heappush(self._heap, item)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._latest

    def _is_current(self, item: tuple[float, int, Entry]) -> bool:
        return self._latest.get(item[2]) == item[1]


class LeastRecentlyUsed(Retention):
    """The entry whose last use is the longest ago goes first."""

    def worth(self, entry: Entry, clock: int) -> float:
        return float(clock)


class GreedyDualSizeFrequency(Retention):
    """GDSF (Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy", 1998).

    Worth is inflation + uses * cost / size: the seconds that its prefill took, per slot it holds, as often as it was
    used. Inflation is the worth of the last entry that had to go, so that what was used much, but long ago, goes too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inflation = 0.0

    def worth(self, entry: Entry, clock: int) -> float:
        return self.inflation + entry.uses * entry.cost / entry.extent.length

    def drop(self, entry: Entry) -> None:
        super().drop(entry)
        self.inflation = max(self.inflation, entry.worth)


RETENTIONS: dict[str, type[Retention]] = {"gdsf": GreedyDualSizeFrequency, "lru": LeastRecentlyUsed}
"""By name, as Runtime's `retention` takes it."""
