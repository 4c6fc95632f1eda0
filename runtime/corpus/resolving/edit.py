"""edit: the one title that is a few edits away."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator
from typing import Any

from rapidfuzz import process
from rapidfuzz.distance import OSA

from ds2ds.corpus.resolving.digits import same_digits
from ds2ds.corpus.resolving.resolver import Lazy, Titles
from ds2ds.documents.title_match import Match
from ds2ds.documents.title_utils import title_key
from ds2ds.errors import ConfigError

MINIMUM = 0.85


class EditResolver:
    """The title most alike, if it is alike enough and no other is as alike.

    Likeness is 1 - edits / length of the longer title, where an edit inserts, removes or replaces a character or swaps
    two neighbours (rapidfuzz's OSA), and titles are compared by their ``title_key``: case and spacing do not count,
    punctuation does. Digits must be the same: "X.25" and "X.29" are two things, not one with a slip.

    Keeps the keys in memory, made at the first look-up, sorted by length, for only titles of about the same length can
    be alike. A look-up goes through those.

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

    def _alike(self, key: str, minimum: float) -> Iterator[tuple[list[str], array[int]]]:
        """The keys that can be so alike, the nearest lengths first: a difference in length takes as many edits."""
        by_length = self._by_length()
        for length in sorted(by_length, key=lambda length: abs(length - len(key))):
            if 1 - abs(length - len(key)) / max(length, len(key)) >= minimum:
                yield by_length[length]

    def find(self, title: str) -> Match | None:
        key = title_key(title)
        if not key:
            return None
        best, found = self.minimum, list[int]()
        for keys, numbers in self._alike(key, self.minimum):
            alike = process.extract(key, keys, scorer=OSA.normalized_similarity, score_cutoff=best, limit=None)
            for other, score, place in alike:  # the most alike first
                if score < best:
                    break
                if same_digits(key, other):
                    if score > best:
                        found.clear()
                    best = score
                    found.append(numbers[place])
        only = self._titles.only(found)
        return None if only is None else Match(only, self.name, round(best, 4))

    def closest(self, title: str, limit: int, minimum: float) -> list[Match]:
        """The titles most alike, whatever their digits, for a person to choose from; the most alike first."""
        key = title_key(title)
        if not key:
            return []
        scorer = OSA.normalized_similarity
        scored = [
            (score, numbers[place])
            for keys, numbers in self._alike(key, minimum)
            for _, score, place in process.extract(key, keys, scorer=scorer, score_cutoff=minimum, limit=limit)
        ]
        best = heapq.nsmallest(limit, scored, key=lambda pair: (-pair[0], pair[1]))
        return [Match(self._titles[number], self.name, round(score, 4)) for score, number in best]
