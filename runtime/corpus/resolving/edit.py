"""edit: the one title that is a few edits away."""

from __future__ import annotations

import heapq
from array import array
from typing import Any

from rapidfuzz import process
from rapidfuzz.distance import OSA

from ds2ds.corpus.resolving.digits import same_digits
from ds2ds.corpus.resolving.resolver import Lazy, Titles
from ds2ds.documents.title_match import Match
from ds2ds.documents.title_utils import title_key
from ds2ds.errors import ConfigError

# Of FOLDOC's titles with one slip (bench/results/resolving_cpu.json) 0.85 finds 72% and 0.875 67%, both with 1.8% taken
# for another; but titles whose document is not there are taken for another in 5.0% against 3.6% of all cases. A wrong
# document is worse than none, which the model writes. It is one slip in eight letters, two in sixteen.
MINIMUM = 0.875
MOST_EDITS = 2


def likeness(edits: int, longer: int) -> float:
    """1 where there are no edits, 0 where nothing is left. `longer`: the length of the longer title."""
    return 1 - edits / longer


class EditResolver:
    """The title with the fewest edits, if these are few and no other title has as few.

    An edit inserts, removes or replaces a character or swaps two neighbours (rapidfuzz's OSA). At most MOST_EDITS, and
    so few that the likeness, 1 - edits / length of the longer title, reaches the minimum. Titles are compared by their
    ``title_key``: case and spacing do not count, punctuation does. Digits must be the same: "X.25" and "X.29" are two
    things, not one with a slip.

    Keeps the keys in memory, made at the first look-up, by length: a look-up goes through those of about its own.

    Args:
        minimum: the least likeness, in (0, 1].
    """

    name = "edit"

    def __init__(self, corpus: Any, minimum: float = MINIMUM) -> None:
        if not 0 < minimum <= 1:
            raise ConfigError(f"the minimum of resolver 'edit' must be in (0, 1], got {minimum}")
        self.minimum = minimum
        self._titles = Titles(corpus, self.name)
        self._by_length = Lazy(self._build)

    def _build(self) -> dict[int, tuple[list[str], array[int]]]:
        """Length of key -> keys of that length, and the numbers of their titles."""
        by_length: dict[int, tuple[list[str], array[int]]] = {}
        for number, title in enumerate(self._titles):
            key = title_key(title)
            keys, numbers = by_length.setdefault(len(key), ([], array("I")))
            keys.append(key)
            numbers.append(number)
        return by_length

    def find(self, title: str) -> Match | None:
        key = title_key(title)
        if not key:
            return None
        by_length = self._by_length()
        fewest, likest, found = MOST_EDITS, 0.0, list[int]()
        # The nearest lengths first; a difference in length takes as many edits.
        for difference in (0, 1, -1, 2, -2):
            keys, numbers = by_length.get(len(key) + difference, ([], []))
            longer = len(key) + max(difference, 0)
            allowed = [edits for edits in range(fewest + 1) if likeness(edits, longer) >= self.minimum]
            if not allowed or allowed[-1] < abs(difference):
                continue
            near = process.extract(key, keys, scorer=OSA.distance, score_cutoff=allowed[-1], limit=None)
            for other, edits, place in near:
                if edits > fewest or not same_digits(key, other):
                    continue
                if edits < fewest:
                    found.clear()
                fewest, likest = edits, likeness(edits, longer)
                found.append(numbers[place])
        only = self._titles.only(found)
        return None if only is None else Match(only, self.name, round(likest, 4))

    def closest(self, title: str, limit: int, minimum: float) -> list[Match]:
        """The titles most alike, whatever their digits, for a person to choose from; the most alike first."""
        key = title_key(title)
        if not key:
            return []
        scored = [
            (score, numbers[place])
            for keys, numbers in self._by_length().values()
            for _, score, place in process.extract(
                key, keys, scorer=OSA.normalized_similarity, score_cutoff=minimum, limit=limit
            )
        ]
        best = heapq.nsmallest(limit, scored, key=lambda pair: (-pair[0], pair[1]))
        return [Match(self._titles[number], self.name, round(score, 4)) for score, number in best]
