"""Where links stand in a text, for who shows it: of a statement that makes several links each has its own name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ds2ds.documents.link_scanner import ScannedLink


@dataclass(frozen=True, slots=True)
class LinkSpan:
    """A link's place, in bytes of its stream. Spans of one text do not overlap.

    Attributes:
        start, end: all of the link as it is written; of several that one statement makes, the name of this one alone.
            Equal where that is not to be found.
        words: what is there to be read; around it stands what makes it a link.
    """

    link: ScannedLink
    start: int
    end: int
    words: tuple[int, int]


def link_spans(links: Sequence[ScannedLink], data: bytes | bytearray) -> Iterator[LinkSpan]:
    """The places of links, in order.

    Args:
        links: what a scanner found in one call or more. A statement's links, which it finds at once, must all be there.
        data: the stream from its start, at least up to the last link's end.
    """
    for (start, end), group in groupby(links, key=lambda link: (link.start, link.end)):
        found = list(group)
        end = start + len(data[start:end].rstrip())  # an import ends with its line
        if len(found) == 1:
            yield LinkSpan(found[0], start, end, _words(found[0], data, end))
        else:
            yield from _names(found, data, end)


def _words(link: ScannedLink, data: bytes | bytearray, end: int) -> tuple[int, int]:
    """Markdown's `[words](target)`, `[[target|words]]` of wikis; in other formats it is all to be read."""
    if data.startswith(b"[[", link.start):
        return (link.middle + 1, end - 2) if data.startswith(b"|", link.middle) else (link.start + 2, link.middle)
    if data.startswith(b"[", link.start) and data.startswith(b"](", link.middle):
        return link.start + 1, link.middle
    return link.start, end


def _names(links: Sequence[ScannedLink], data: bytes | bytearray, end: int) -> Iterator[LinkSpan]:
    """`import a, b`, `from a import b, c`, `\\cite{a,b}`: names in order, at the statement's end."""
    spans, before = [], end
    for link in reversed(links):
        for name in (link.text, link.text.rpartition(".")[2]):
            there = re.compile(rb"(?<!\w)%b(?!\w)" % re.escape(name.encode(errors="replace")))
            places = [match.span() for match in there.finditer(data, link.start, before)] if name else []
            if places:
                start, stop = places[-1]
                break
        else:
            start = stop = before
        spans.append(LinkSpan(link, start, stop, (start, stop)))
        before = start
    return reversed(spans)
