"""Text that comes in pieces, made ready for a terminal: links are marked, lines are wrapped at words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from rich.cells import cell_len

from ds2ds.documents.link_formats import DEFAULT_FORMAT, LINK_FORMATS, LinkFormat
from ds2ds.documents.link_spans import link_spans

LINK_STYLE = "cyan"
TARGET_STYLE = "dim cyan"

# What may still become a link, by format. It is given up, and shown, at the line's end or where it gets too long.
_LATEX = re.compile(rb"\\[A-Za-z]*\*?(\[[^\]\n]{0,100}\]?){0,2}(\{[^}\n]{0,200})?\Z")
_MAYBE_LINK = {
    "markdown": re.compile(rb"\[[^\[\]\n]{0,200}(\](\([^\n]{0,200})?)?\Z"),
    "wikilinks": re.compile(rb"\[(\[[^\]\n]{0,200}\]?)?\Z"),
    "python": re.compile(
        rb"^[ \t]*(fr?o?m?|im?p?o?r?t?|(from|import)\b([^\n(]{0,200}|[^\n(]{0,200}\([^)]{0,400}))\Z", re.MULTILINE
    ),
    "latex": _LATEX,
    "arxiv": _LATEX,
}
_NOTHING = re.compile(rb"(?!)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WORDS = re.compile(r"\s+|\S+")


def printable(text: str) -> str:
    """The text without what a terminal would act on: models write escape sequences, too."""
    return _CONTROL.sub("�", text.replace("\r", "").replace("\t", "    "))


class LinkMarker:
    """Styles the links in a text that grows. A link is held back until it closes, the rest is passed on at once.

    Args:
        link_format: how links are written. Of a format of another package only the ends are styled: nothing is held
            back, since where its links start is not known.
        title: the document's.
    """

    def __init__(self, link_format: LinkFormat = LINK_FORMATS[DEFAULT_FORMAT], title: str = "") -> None:
        self._scanner = link_format.scanner(title)
        self._maybe = _MAYBE_LINK.get(link_format.name.partition("+")[0], _NOTHING)
        self._position = 0
        self._held = b""

    def feed(self, text: str, style: str = "") -> list[tuple[str, str]]:
        """The (text, style) pieces that can be shown now; what is no link has the style given."""
        data = text.encode("utf-8", errors="replace")
        base = self._position - len(self._held)
        self._position += len(data)
        links = self._scanner.feed(data)
        data = self._held + data
        pieces, at = [], 0
        # Of a link that was too long to be held back, the start has been shown.
        here = [
            replace(link, start=max(link.start - base, 0), middle=max(link.middle - base, 0), end=link.end - base)
            for link in links
        ]
        for span in link_spans(here, data):
            start, end = span.words
            pieces += [(data[at : span.start], style), (data[span.start : start], TARGET_STYLE)]
            pieces += [(data[start:end], LINK_STYLE), (data[end : span.end], TARGET_STYLE)]
            at = span.end
        maybe = self._maybe.search(data, at)
        stop = maybe.start() if maybe else len(data)
        pieces.append((data[at:stop], style))
        self._held = data[stop:]
        return [(piece.decode(), piece_style) for piece, piece_style in pieces if piece]

    def flush(self) -> list[tuple[str, str]]:
        """What is held back."""
        held, self._held = self._held, b""
        return [(held.decode(), "")] if held else []


class WordWrap:
    """Writes styled text that comes in pieces, with lines broken at words. A word is written once it is whole.

    Args:
        write: writes (text, style).
        width: gives the number of columns there are now.

    Attributes:
        margin: what each line starts with.
    """

    def __init__(self, write: Callable[[str, str], None], width: Callable[[], int]) -> None:
        self.margin = ""
        self._write = write
        self._width = width
        self._column = 0
        self._space = ""
        self._word: list[tuple[str, str]] = []
        self._continued = False  # this line goes on with one that was broken: no space at its start

    def write(self, text: str, style: str = "") -> None:
        """Add text of one line."""
        for piece in _WORDS.findall(text):
            if not piece.isspace():
                self._word.append((piece, style))
                continue
            self._end_word()
            if self._column or not self._continued:
                self._space += piece

    def newline(self) -> None:
        """End the line."""
        self._end_word()
        if self._column or not self._continued:
            if not self._column:
                self._write(self.margin.rstrip(), "dim")
            self._write("\n", "")
        self._start_line(continued=False)

    def interrupt(self) -> None:
        """Go to the start of a line, if not there already; what comes next goes on with the text."""
        self._end_word()
        if self._column:
            self._write("\n", "")
            self._start_line(continued=True)

    def _end_word(self) -> None:
        if not self._word:
            return
        length = sum(cell_len(text) for text, _ in self._word)
        if self._column and self._column + len(self._space) + length > self._width():
            self._write("\n", "")
            self._start_line(continued=True)
        if not self._column:
            self._write(self.margin, "dim")
            self._column = cell_len(self.margin)
        self._write(self._space, "")
        for text, style in self._word:
            self._write(text, style)
        self._column += len(self._space) + length
        self._space, self._word = "", []

    def _start_line(self, continued: bool) -> None:
        self._column, self._space, self._continued = 0, "", continued
