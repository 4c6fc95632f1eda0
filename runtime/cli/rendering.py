"""A stream of events as it is shown: on a terminal with its links and documents, or as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console

from ds2ds.cli.styled_text import LinkMarker, WordWrap, printable
from ds2ds.cli.summary import count, resolution
from ds2ds.documents.link_formats import DEFAULT_FORMAT, LINK_FORMATS, LinkFormat
from ds2ds.generation.events import DocumentClosed, DocumentOpened, Event, LinkClosed, TokenWritten
from ds2ds.generation.stop_filter import StopFilter


class Renderer(Protocol):
    """Shows events as they come."""

    def show(self, event: Event) -> None: ...

    def finish(self) -> None:
        """Show what is held back, and end the line. Nothing comes after."""


class PlainRenderer:
    """The root's text and nothing else."""

    def __init__(self, out: TextIO, stop: Sequence[str] = ()) -> None:
        self._out = out
        self._text = StopFilter(stop)
        self._open = 0
        self._last = "\n"

    def show(self, event: Event) -> None:
        # Documents are opened and closed one within the other: the root is written while no other is open.
        if isinstance(event, DocumentOpened):
            self._open += 1
            if self._open == 1:
                self._write(self._text.start(event.text))
        elif isinstance(event, TokenWritten) and self._open == 1:
            self._write(self._text.feed(event.text))
        elif isinstance(event, DocumentClosed):
            self._open -= 1
            if self._open == 0:
                self._write(self._text.flush(event.document.text))

    def finish(self) -> None:
        self._write(self._text.flush())
        if not self._last.endswith("\n"):
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._last = text
            self._out.write(text)
            self._out.flush()


@dataclass
class _Open:
    """A document that is open; `notice` is the line that tells of it, `link` what it says of the link to it."""

    text: StopFilter
    title: str
    depth: int
    source: str
    notice: str
    link: str
    marker: LinkMarker

    @property
    def written(self) -> bool:
        return self.source == "generated"


class TerminalRenderer:
    """The root as it is written, with its links marked; below each of its lines the documents that its links brought
    in. A document that the model writes is shown with a margin where it comes in the way.
    """

    def __init__(
        self,
        console: Console,
        stop: Sequence[str] = (),
        link_format: LinkFormat = LINK_FORMATS[DEFAULT_FORMAT],
    ) -> None:
        self._console = console
        self._stop = stop
        self._link_format = link_format
        self._stack: list[_Open] = []
        self._brought_in: list[_Open] = []
        self._link = ""  # how the last link found its document, if not by its title
        self._wrap = WordWrap(self._write, lambda: console.width)

    def show(self, event: Event) -> None:
        if isinstance(event, DocumentOpened):
            self._opened(event)
        elif isinstance(event, TokenWritten):
            document = self._stack[-1]
            self._write_text(document.marker.feed(document.text.feed(event.text)))
        elif isinstance(event, LinkClosed):
            self._link = "".join(f", {how}" for how in resolution(event.target, event.resolved_by, event.score))
        elif isinstance(event, DocumentClosed):
            self._closed(event)

    def finish(self) -> None:
        while self._stack:
            document = self._stack.pop()
            if document.written:
                self._write_text(document.marker.feed(document.text.flush()) + document.marker.flush())
        self.interrupt()
        self._wrap.margin = ""

    def _opened(self, event: DocumentOpened) -> None:
        document = _Open(
            StopFilter(self._stop),
            printable(event.title),
            event.depth,
            event.source,
            event.source,
            self._link,
            LinkMarker(self._link_format, event.title),
        )
        self._stack.append(document)
        if event.depth:
            self._brought_in.append(document)
        if document.written:
            if event.depth:
                document.notice = "being written"
                self.interrupt()
            self._wrap.margin = _margin(event.depth)
            self._write_text(document.marker.feed(document.text.start(event.text), "bold"))

    def _closed(self, event: DocumentClosed) -> None:
        document = self._stack.pop()
        tokens = count(len(event.document.tokens or ()), "token")
        if not document.written:
            cut = ", cut" if event.document.truncated else ""
            document.notice = f"{document.source}, {tokens}{cut}{document.link}"
            return
        rest = document.text.flush(event.document.text)
        self._write_text(document.marker.feed(rest) + document.marker.flush())
        self.interrupt()
        if document.depth:
            document.notice = f"{tokens}, {event.finish_reason}"
            self._show_notice(document, "<-")
            writing = next((other for other in reversed(self._stack) if other.written), None)
            self._wrap.margin = _margin(writing.depth) if writing else ""

    def _write_text(self, pieces: list[tuple[str, str]]) -> None:
        for text, style in pieces:
            line, *others = printable(text).split("\n")
            self._wrap.write(line, style)
            for line in others:
                self._wrap.newline()
                self._show_brought_in()
                self._wrap.write(line, style)

    def interrupt(self) -> None:
        """End the line, for something else than the document that is being written."""
        self._wrap.interrupt()
        self._show_brought_in()

    def _show_brought_in(self) -> None:
        for document in self._brought_in:
            self._show_notice(document)
        self._brought_in.clear()

    def _show_notice(self, document: _Open, arrow: str = "->") -> None:
        self._write(f"{'  ' * document.depth}{arrow} {document.title} ({document.notice})\n", "dim")

    def _write(self, text: str, style: str) -> None:
        if text:
            self._console.out(text, style=style or None, highlight=False, end="")


def _margin(depth: int) -> str:
    return "  " * (depth - 1) + "  | " if depth else ""
