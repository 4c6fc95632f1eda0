"""folded: case, punctuation, diacritics and spacing do not count."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

from ds2ds.corpus.resolving.resolver import Lazy, Titles
from ds2ds.documents.title_match import Match

# Signs that Unicode calls punctuation and names are made of: "C#", "A*", "AT&T". Symbols ("C++") are kept as well.
_KEPT = frozenset("#*@%&")
_ACCENT = 200  # canonical combining classes from here on are marks above and below letters; below it, parts of them


class _Table(dict[int, "int | None"]):
    """For str.translate: None for characters that do not count."""

    def __missing__(self, code: int) -> int | None:
        character = chr(code)
        category = unicodedata.category(character)
        punctuation = category[0] == "P" and character not in _KEPT
        dropped = punctuation or category[0] in "ZC" or unicodedata.combining(character) >= _ACCENT
        self[code] = None if dropped else code
        return self[code]


_TABLE = _Table()


def fold(title: str) -> str:
    """What titles share that differ in case, spacing, punctuation, diacritics and compatibility forms only.

    Symbols and the signs ``# * @ % &`` are kept: "C", "C++" and "C#" stay three. May be empty.
    """
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", title).casefold())
    return folded.translate(_TABLE)


class FoldedResolver:
    """The only document whose title folds to what this one folds to (see ``fold``); of several, none.

    Keeps 16 bytes a title, made at the first look-up: a hash each, sorted, and whose it is.
    """

    name = "folded"

    def __init__(self, corpus: Any) -> None:
        self._titles = Titles(corpus, self.name)
        self._index = Lazy(self._build)

    def _build(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        hashes = np.fromiter((hash(fold(title)) for title in self._titles), dtype=np.int64)
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def find(self, title: str) -> Match | None:
        folded = fold(title)
        if not folded:
            return None
        hashes, order = self._index()
        # As int64, or numpy compares as float64 and takes neighbours for equal.
        wanted = np.int64(hash(folded))
        first, last = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
        same = (int(number) for number in order[first:last] if fold(self._titles[int(number)]) == folded)
        found = self._titles.only(same)
        return None if found is None else Match(found, self.name)
