"""The events of a run as the page is told them: documents have numbers, links have places in the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ds2ds.documents.generation_result import GeneratedDocument
from ds2ds.documents.link_formats import DEFAULT_FORMAT, LINK_FORMATS, LinkFormat, Scanner
from ds2ds.documents.link_spans import LinkSpan, link_spans
from ds2ds.documents.title_utils import title_key
from ds2ds.generation.events import DocumentClosed, DocumentOpened, Done, Event, LinkAsked, LinkClosed, TokenWritten


@dataclass
class _Open:
    """A document that is being written, or brought in: its text so far, and links not told yet."""

    number: int
    scanner: Scanner
    data: bytearray = field(default_factory=bytearray)
    links: list[LinkSpan] = field(default_factory=list)

    def feed(self, text: str) -> None:
        piece = text.encode(errors="replace")
        self.data += piece
        self.links += link_spans(self.scanner.feed(piece), self.data)

    def place(self, text: str, target: str) -> dict[str, Any]:
        """Where the first such link stands, and what is to be read of it; those before it are forgotten."""
        for at, span in enumerate(self.links):
            if span.link.text == text and target in (span.link.target, *span.link.candidates):
                del self.links[:at]
                return self._told(span)
        return {"place": None, "words": text}

    def rest(self) -> list[dict[str, Any]]:
        """Links that nothing was told of, as those of documents whose links are not followed."""
        return [{**self._told(span), "text": span.link.text, "target": span.link.target} for span in self.links]

    def _told(self, span: LinkSpan) -> dict[str, Any]:
        """The place in UTF-16 units, as a browser counts."""
        start, end = span.words
        words = span.link.text if (start, end) != (span.start, span.end) else self.data[start:end].decode()
        return {"place": (self._units(span.start), self._units(span.end)), "words": words}

    def _units(self, end: int) -> int:
        return len(self.data[:end].decode(errors="replace").encode("utf-16-le")) // 2


class Telling:
    """Turns events into (name, data), data being plain JSON types.

    Args:
        link_format: how the documents' links are written.

    Attributes:
        numbers: of each document but the root by its title, counted as they are opened. The root is 0.
    """

    def __init__(self, link_format: LinkFormat = LINK_FORMATS[DEFAULT_FORMAT]) -> None:
        self.numbers: dict[str, int] = {}
        self._format = link_format
        self._open: list[_Open] = []

    def tell(self, event: Event) -> tuple[str, dict[str, Any]]:
        if isinstance(event, DocumentOpened):
            return "opened", self._opened(event)
        if isinstance(event, TokenWritten):
            self._open[-1].feed(event.text)
            return "text", {"document": self._open[-1].number, "text": event.text}
        if isinstance(event, LinkAsked):
            return "asked", self._asked(event)
        if isinstance(event, LinkClosed):
            return "link", self._link(event)
        if isinstance(event, DocumentClosed):
            return "closed", self._closed(event.document)
        if isinstance(event, Done):
            root = event.result.root_document
            return "done", {"finish_reason": root.finish_reason, "trace": asdict(event.result.trace)}
        raise TypeError(f"not an event: {event!r}")

    def _opened(self, event: DocumentOpened) -> dict[str, Any]:
        number = len(self.numbers) + 1 if self._open else 0
        parent = self._open[-1].number if self._open else None
        if parent is not None:
            self.numbers[event.title] = number
        self._open.append(_Open(number, self._format.scanner(event.title)))
        self._open[-1].feed(event.text)
        told = {"title": event.title, "source": event.source, "depth": event.depth, "text": event.text}
        return {"document": number, "parent": parent, **told}

    def _asked(self, event: LinkAsked) -> dict[str, Any]:
        place = self._open[-1].place(event.question.text, event.question.target)
        return {"document": self._open[-1].number, **place, **asdict(event.question)}

    def _link(self, event: LinkClosed) -> dict[str, Any]:
        document = self._open[-1]
        place = document.place(event.text, event.target)
        if place["place"] is not None:
            document.links.pop(0)
        leads_to = None if event.outcome in ("not_followed", "skipped") else self._known(event.target)
        return {"document": document.number, **place, "leads_to": leads_to, **_plain(asdict(event))}

    def _known(self, target: str) -> int | None:
        """The document that a target most likely means, if it was there before. What was read is told at its end."""
        folded = {title_key(title): number for title, number in self.numbers.items()}
        return self.numbers.get(target, folded.get(title_key(target)))

    def _closed(self, document: GeneratedDocument) -> dict[str, Any]:
        closed = self._open.pop()
        grants = [
            {"document": self.numbers[grant.title], "position": grant.position, "end": grant.end}
            for grant in document.grants
            if grant.title in self.numbers
        ]
        return {
            "document": closed.number,
            "links": closed.rest(),
            "tokens": len(document.tokens or ()),
            "finish_reason": document.finish_reason,
            "truncated": document.truncated,
            "grants": grants,
        }


def _plain(link: Mapping[str, Any]) -> dict[str, Any]:
    """Of a link's fields those that are of use to a reader."""
    return {name: link[name] for name in ("text", "target", "position", "outcome", "reason")}
