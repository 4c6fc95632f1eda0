"""exact: the corpus' own rule."""

from __future__ import annotations

from typing import Any

from ds2ds.documents.title_match import Match

EXACT = "exact"


class ExactResolver:
    """What the corpus itself takes a title to mean: its `resolve(title)`, or else whether it `has_document(title)`.

    A DocumentCorpus tries the title as it is, spacing, the identifier and `title_key` (``names.title_variants``).
    """

    name = EXACT

    def __init__(self, corpus: Any) -> None:
        self._corpus = corpus

    def find(self, title: str) -> Match | None:
        resolve = getattr(self._corpus, "resolve", None)
        if resolve is not None:
            found: str | None = resolve(title)
            return None if found is None else Match(found, EXACT)
        return Match(title, EXACT) if self._corpus.has_document(title) else None
