"""A document's text with its links: which of them lead to documents of the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ds2ds.documents.generation_result import GenerationResult
from ds2ds.documents.link_scanner import LinkScanner, ScannedLink
from ds2ds.documents.title_utils import title_key


@dataclass(frozen=True)
class Piece:
    """A stretch of text; with a link it is all of the link as it is written.

    Attributes:
        target: the document that the link leads to, by its index in the result; None: to none of them.
    """

    text: str
    link: ScannedLink | None = None
    target: int | None = None


class LinkedTexts:
    """The texts of a result's documents.

    What a link means is told by the grants of the document it stands in, which know links as they were written, whoever
    found their targets; and where nothing was granted, by its target's title.
    """

    def __init__(self, result: GenerationResult) -> None:
        self.documents = result.get_all_documents()
        # Not the root: it is never a target. Exact titles win over folded ones, the first of equals.
        self._exact: dict[str, int] = {}
        self._folded: dict[str, int] = {}
        for index, document in enumerate(self.documents[1:], start=1):
            self._exact.setdefault(document.title, index)
            self._folded.setdefault(title_key(document.title), index)
        self._granted = [
            {grant.link: self._exact[grant.title] for grant in document.grants if grant.title in self._exact}
            for document in self.documents
        ]

    def pieces(self, index: int) -> Iterator[Piece]:
        """The text of a document from its start to its end."""
        data = (self.documents[index].text or "").encode(errors="replace")
        at = 0
        for link in LinkScanner().feed(data):
            if link.start > at:
                yield Piece(data[at : link.start].decode(errors="replace"))
            granted = self._granted[index].get(link.target)
            target = self._find(link.target) if granted is None else granted
            yield Piece(data[link.start : link.end].decode(errors="replace"), link, target)
            at = link.end
        if at < len(data):
            yield Piece(data[at:].decode(errors="replace"))

    def link_text(self, index: int, target: int) -> str | None:
        """What the first link from one document to another reads; None where none is found."""
        links = (piece.link for piece in self.pieces(index) if piece.link is not None and piece.target == target)
        return next((link.text for link in links), None)

    def _find(self, title: str) -> int | None:
        exact = self._exact.get(title)
        return self._folded.get(title_key(title)) if exact is None else exact
