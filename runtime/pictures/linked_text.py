"""A document's text with its links: which of them lead to documents of the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ds2ds.documents.generation_result import GenerationResult
from ds2ds.documents.link_scanner import ScannedLink
from ds2ds.documents.link_spans import link_spans
from ds2ds.documents.title_utils import title_key


@dataclass(frozen=True)
class Piece:
    """A stretch of text; with a link it is all of the link as it is written, or its name among a statement's links.

    Attributes:
        before, text, after: what makes it a link, what is to be read of it, and what makes it a link. Together they are
            the stretch; what is no link is all text.
        target: the document that the link leads to, by its index in the result; None: to none of them.
    """

    text: str
    link: ScannedLink | None = None
    target: int | None = None
    before: str = ""
    after: str = ""

    @property
    def whole(self) -> str:
        return self.before + self.text + self.after


class LinkedTexts:
    """The texts of a result's documents.

    What a link means is told by the grants of the document it stands in, which know links as they were written, whoever
    found their targets; and where nothing was granted, by its target's title.
    """

    def __init__(self, result: GenerationResult) -> None:
        self.documents = result.get_all_documents()
        self._format = result.link_format
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
        document = self.documents[index]
        data = (document.text or "").encode(errors="replace")

        def text(start: int, end: int) -> str:
            return data[start:end].decode(errors="replace")

        at = 0
        for span in link_spans(self._format.scanner(document.title).feed(data), data):
            if span.start > at:
                yield Piece(text(at, span.start))
            start, end = span.words
            around = text(span.start, start), text(end, span.end)
            yield Piece(text(start, end), span.link, self._target(index, span.link), *around)
            at = span.end
        if at < len(data):
            yield Piece(text(at, len(data)))

    def link_text(self, index: int, target: int) -> str | None:
        """What the first link from one document to another reads; None where none is found."""
        links = (piece.link for piece in self.pieces(index) if piece.link is not None and piece.target == target)
        return next((link.text for link in links), None)

    def _target(self, index: int, link: ScannedLink) -> int | None:
        granted = self._granted[index]
        for title in (*link.candidates, link.target):
            if title in granted:
                return granted[title]
        if link.candidates:  # they mean just what they say
            return next((self._exact[title] for title in link.candidates if title in self._exact), None)
        return self._find(link.target)

    def _find(self, title: str) -> int | None:
        exact = self._exact.get(title)
        return self._folded.get(title_key(title)) if exact is None else exact
