"""edit: the one title that is a few edits away."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
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


def letters(keys: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Which characters each of some keys of one length has, not empty: a set of 64 bits, in which some share a bit.

    An edit changes at most two: one character goes, another comes.
    """
    codes = np.frombuffer("".join(keys).encode("utf-32-le", "surrogatepass"), dtype="<u4").reshape(len(keys), -1)
    sets: npt.NDArray[np.uint64] = np.bitwise_or.reduce(np.uint64(1) << (codes & 63).astype(np.uint64), axis=1)
    return sets


class _Keys(NamedTuple):
    """Keys of one length, the numbers of their titles, and the `letters` of each."""

    keys: list[str]
    numbers: array[int]
    letters: npt.NDArray[np.uint64]


_NO_KEYS = _Keys([], array("I"), np.zeros(0, dtype=np.uint64))


class EditResolver:
    """The title with the fewest edits, if these are few and no other title has as few.

    An edit inserts, removes or replaces a character or swaps two neighbours (rapidfuzz's OSA). At most MOST_EDITS, and
    so few that the likeness, 1 - edits / length of the longer title, reaches the minimum. Titles are compared by their
    ``title_key``: case and spacing do not count, punctuation does. Digits must be the same: "X.25" and "X.29" are two
    things, not one with a slip.

    Keeps the keys in memory, made at the first look-up, by length. A look-up is part of an engine's step, and all
    requests wait for it: of the keys of about its own length it compares only those of about the same letters.

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

    def _build(self) -> dict[int, _Keys]:
        """Those of each length."""
        by_length: dict[int, tuple[list[str], array[int]]] = {}
        for number, title in enumerate(self._titles):
            key = title_key(title)
            keys, numbers = by_length.setdefault(len(key), ([], array("I")))
            keys.append(key)
            numbers.append(number)
        by_length.pop(0, None)
        return {length: _Keys(keys, numbers, letters(keys)) for length, (keys, numbers) in by_length.items()}

    def find(self, title: str) -> Match | None:
        key = title_key(title)
        if not key:
            return None
        by_length, wanted = self._by_length(), letters([key])
        fewest, likest, found = MOST_EDITS, 0.0, list[int]()
        # The nearest lengths first; a difference in length takes as many edits.
        for difference in (0, 1, -1, 2, -2):
            keys, numbers, sets = by_length.get(len(key) + difference, _NO_KEYS)
            longer = len(key) + max(difference, 0)
            allowed = [edits for edits in range(fewest + 1) if likeness(edits, longer) >= self.minimum]
            if not allowed or allowed[-1] < abs(difference):
                continue
            apart = sets ^ wanted
            for _ in range(2 * allowed[-1]):
                apart &= apart - np.uint64(1)  # without its lowest bit; 0 stays 0
            likely = {place: keys[place] for place in np.flatnonzero(apart == 0).tolist()}
            near = process.extract(key, likely, scorer=OSA.distance, score_cutoff=allowed[-1], limit=None)
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
            for keys, numbers, _ in self._by_length().values()
            for _, score, place in process.extract(
                key, keys, scorer=OSA.normalized_similarity, score_cutoff=minimum, limit=limit
            )
        ]
        best = heapq.nsmallest(limit, scored, key=lambda pair: (-pair[0], pair[1]))
        return [Match(self._titles[number], self.name, round(score, 4)) for score, number in best]
