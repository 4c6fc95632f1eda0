"""Resolvers, tried in order."""

from __future__ import annotations

from collections.abc import Sequence

from ds2ds.corpus.names import is_unicode
from ds2ds.corpus.resolving.resolver import Resolver
from ds2ds.documents.title_match import Match


class ResolverChain:
    """What the first resolver finds that finds anything."""

    def __init__(self, resolvers: Sequence[Resolver]) -> None:
        self.resolvers = tuple(resolvers)

    def find(self, title: str) -> Match | None:
        if not is_unicode(title):
            return None  # half of a surrogate pair: no corpus has such a title
        for resolver in self.resolvers:
            match = resolver.find(title)
            if match is not None:
                return match
        return None
