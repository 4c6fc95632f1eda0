"""redirects: other names that someone wrote down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ds2ds.corpus.resolving.exact import ExactResolver
from ds2ds.documents.title_match import Match
from ds2ds.documents.title_utils import title_key
from ds2ds.errors import ConfigError, CorpusError

REDIRECTS_NAME = "redirects.json"


def read_redirects(path: Path) -> dict[str, str]:
    """Read a JSON object of other names: ``{"name": "title", ...}``.

    Raises:
        ConfigError: there is no such file; CorpusError: it is not such an object.
    """
    try:
        read = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"redirects: cannot read {path} ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(read, dict):
        raise CorpusError(f"{path}: expected a JSON object of names and titles, got {type(read).__name__}")
    for name, title in read.items():
        if not isinstance(title, str) or not title:
            raise CorpusError(f"{path}: the redirect of {name!r} must be a title, got {title!r}")
    return read


class RedirectResolver:
    """The document that a list of other names leads to, through however many of them.

    A name is looked for as it is, then by its ``title_key`` where that is one name's alone; the corpus' own documents
    end the way, so a redirect never hides one. What leads to no document in the end finds nothing.

    Args:
        redirects: name to title, or to another name.
        source: what to call them in messages.

    Raises:
        CorpusError: redirects go in a circle that has no document; names it.
    """

    name = "redirects"

    def __init__(self, corpus: Any, redirects: Mapping[str, str], source: str = "redirects") -> None:
        self._exact = ExactResolver(corpus)
        self._redirects = dict(redirects)
        self._by_key: dict[str, str | None] = {}
        for name, title in self._redirects.items():
            key = title_key(name)
            self._by_key[key] = title if self._by_key.get(key, title) == title else None
        self._check_circles(source)

    def _next(self, name: str) -> str | None:
        return self._redirects.get(name) or self._by_key.get(title_key(name))

    def _way(self, name: str) -> Iterator[str]:
        """Where `name` leads, one redirect after the other, until there is no other or it has been there."""
        seen = {name}
        while (following := self._next(name)) is not None:
            yield following
            if following in seen:
                return
            seen.add(following)
            name = following

    def _check_circles(self, source: str) -> None:
        checked: set[str] = set()
        for start in self._redirects:
            way = [start]
            for name in self._way(start):
                if name in checked:
                    break
                way.append(name)
            circle = way[way.index(way[-1]) :]
            if len(circle) > 1 and all(self._exact.find(name) is None for name in circle):
                raise CorpusError(f"{source} go in a circle: {' -> '.join(map(repr, circle))}")
            checked.update(way)

    def find(self, title: str) -> Match | None:
        for name in self._way(title):
            found = self._exact.find(name)
            if found is not None:
                return Match(found.title, self.name)
        return None
