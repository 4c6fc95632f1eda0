"""What a resolver is, and what it asks of a corpus."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from ds2ds.documents.title_match import Match
from ds2ds.errors import ConfigError

T = TypeVar("T")


class Resolver(Protocol):
    """Finds the document of a corpus that a title means. Threads share it.

    Attributes:
        name: what results call it.
    """

    @property
    def name(self) -> str: ...

    def find(self, title: str) -> Match | None:
        """The document, or None: there is none, or several are as good."""
        ...


class _Listed:
    """The titles of a corpus that gives none by number."""

    def __init__(self, titles: Iterable[str]) -> None:
        self._titles = list(titles)

    def __len__(self) -> int:
        return len(self._titles)

    def titles(self) -> Iterator[str]:
        return iter(self._titles)

    def title_at(self, number: int) -> str:
        return self._titles[number]


class Titles:
    """The raw titles of a corpus by number, from 0: read from disk where the corpus can do that, else kept in a list.

    Args:
        corpus: has `titles()`, an iterable of strings; perhaps `title_at(number)` and a length, which saves keeping
            them.
        what: the resolver that asks, for the message.

    Raises:
        ConfigError: the corpus cannot list its titles.
    """

    def __init__(self, corpus: Any, what: str) -> None:
        if not hasattr(corpus, "titles"):
            raise ConfigError(
                f"resolver {what!r} needs a corpus that lists its titles, by a method titles(): "
                f"{type(corpus).__name__} has none"
            )
        self._corpus = corpus if hasattr(corpus, "title_at") else _Listed(corpus.titles())

    def __len__(self) -> int:
        return len(self._corpus)

    def __iter__(self) -> Iterator[str]:
        return iter(self._corpus.titles())

    def __getitem__(self, number: int) -> str:
        title: str = self._corpus.title_at(number)
        return title

    def only(self, numbers: Iterable[int]) -> str | None:
        """The title that all of these numbers have; None where there are two, or no numbers."""
        found: str | None = None
        for number in numbers:
            title = self[number]
            if found is not None and title != found:
                return None
            found = title
        return found


class Lazy(Generic[T]):
    """A value that is made when it is first asked for, once for all threads, and anew if that failed."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: tuple[T] | None = None
        self._lock = (os.getpid(), threading.Lock())

    def __call__(self) -> T:
        if self._made is None:
            if self._lock[0] != os.getpid():
                # A thread of the parent may have held the lock at the fork, and is not here to let go of it.
                self._lock = (os.getpid(), threading.Lock())
            with self._lock[1]:
                if self._made is None:
                    self._made = (self._make(),)
        return self._made[0]
