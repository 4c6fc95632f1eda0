"""A corpus of titles, in memory, which knows them only as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class Titled:
    """Each document holds one token. Counts how often its titles were listed."""

    def __init__(self, *titles: str) -> None:
        self._titles = titles
        self.listed = 0

    def titles(self) -> Iterator[str]:
        self.listed += 1
        return iter(self._titles)

    def has_document(self, title: str) -> bool:
        return title in self._titles

    def get_document(self, title: str) -> Sequence[int] | None:
        return [5] if title in self._titles else None
