"""Finds markdown links, `[text](target)`, in a stream of bytes that is read once: each link at its `)`.

The syntax is CommonMark's inline links (https://spec.commonmark.org/0.31.2/#links): balanced or escaped
brackets in the text, raw destinations with balanced or escaped parentheses, `<...>` destinations, an
optional title, backslash escapes, HTML entities. Images and code spans are not links. Of links within links
the innermost counts. Targets are as written once escapes and entities are resolved; percent-encoding is
left to whoever resolves paths.

Where it deviates from CommonMark, on purpose:

1. A raw destination may hold whitespace (no blank line), since titles have spaces. What stands around the
   target is stripped, and a line break within it becomes one space. A quoted string at its end, after
   whitespace, is the link's title, as in CommonMark: `[a](Some page "quoted")` has the target `Some page`.
2. Parentheses at the end of a raw destination are part of it, not a title: `[a](Smalltalk (language))`.
   After a `<...>` destination they are a title.
3. Nothing waits for later text. A `)` completes a link though the destination of another one is open around
   it (`[a](b[c](d))` is a link to `d`), and though a title is open in it: `[a](Algol '68)` is a link to
   `Algol '68`.
4. An open run of backticks counts as a code span, and so hides links, until it is closed or its paragraph
   ends.
5. Autolinks, HTML tags and HTML comments are text: a bracket within `<...>` or `<!-- ... -->` is a bracket.
6. Of the block structure only blank lines and fences of backticks at the start of a line are seen: a
   heading or a list item does not end a paragraph. There are no reference links.
7. At most 32 destinations are followed at once; beyond that the outermost is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ds2ds.documents.link_destination import LEFT_PAREN, NEWLINE, Destination, unescape

LEFT_BRACKET, RIGHT_BRACKET, BANG, BACKSLASH, BACKTICK = b"[]!\\`"

# Bytes that can start something while nothing is open, and bytes that matter while something is.
_OPENING = re.compile(rb"[\[!\\`\n]")
_SPECIAL = re.compile(rb"`+|[\[\]!\\()<>\"'\n]")

_EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*://|(?:mailto|tel|data|javascript):\S|//|#", re.IGNORECASE)
_MAX_DESTINATIONS = 32
_FENCE_LENGTH = 3


def is_external(target: str) -> bool:
    """Whether `target` is an address and not a title.

    Addresses are `scheme://...`, `//host`, `#fragment`, and `mailto:`, `tel:`, `data:`, `javascript:` with
    no space behind, so that "C: the language" and "std::vector" are titles.
    """
    return _EXTERNAL.match(target) is not None


@dataclass(frozen=True, slots=True)
class ScannedLink:
    """A link in a byte stream.

    Attributes:
        text: what stands between the brackets, escapes and entities resolved, markup as written.
        target: the destination, escapes and entities resolved. May be empty, or external (see `is_external`).
        start: offset of its `[` in the whole stream, in bytes.
        end: offset one past its `)`.
        middle: offset of the `](` between the two; what it is in other formats, each of them says.
        candidates: titles, spelt exactly so, of which the first that is there is meant; `target` is one of them, and
            what is written where none is. Empty: `target` alone is meant, looked up as titles are.
    """

    text: str
    target: str
    start: int
    end: int
    middle: int
    candidates: tuple[str, ...] = ()

    def choose(self, exists: Callable[[str], bool]) -> str:
        """The first candidate that exists; `target` if none does."""
        return next(filter(exists, self.candidates), self.target)


class _Opener:
    """A `[` or `![` not yet paired, on a stack that is a linked list: a `](` can keep what was below it."""

    __slots__ = ("above_image", "at", "below", "image")

    def __init__(self, at: int, image: bool, below: _Opener | None) -> None:
        self.at = at
        self.image = image
        self.below = below
        self.above_image: bool = image or (below is not None and below.above_image)


@dataclass(slots=True)
class _Candidate:
    """A link or image that has come as far as `](`; if it is completed, nothing after `](` was markup."""

    opener: _Opener
    middle: int
    destination: Destination


class LinkScanner:
    """Scans a stream fed in pieces of any size; the pieces may split UTF-8 characters.

    Every byte costs O(1) amortised. What is kept of the stream is at most the paragraph that is open, and
    nothing while no bracket or backtick is.
    """

    def __init__(self) -> None:
        self.position = 0
        """Bytes fed so far."""
        self._buffer = bytearray()  # the stream from _base on, while something is open
        self._base = 0
        self._idle = True
        # Offsets of what a byte does to the one right after it.
        self._escaped_at = -1
        self._image_at = -1
        self._middle_at = -1
        self._closed: _Opener | None = None  # its `]` is the byte before _middle_at
        self._line_start = 0
        self._inactive_before = 0  # a `[` before this offset holds a link already
        self._forget()

    def _forget(self) -> None:
        """The paragraph ends: drop everything that is open."""
        self._openers: _Opener | None = None
        self._candidates: list[_Candidate] = []
        self._closed = None
        self._run_start = self._run_end = 0  # a run of backticks that may go on; none if empty
        self._code = 0  # length of the run that opened a code span, 0 outside
        self._fence = False  # that run is a fence, and its line is over
        self._fence_line = False  # that run may be a fence, if its line has no other backticks

    def reset(self) -> None:
        """The document ends: no link spans this point. Offsets go on."""
        self._forget()
        self._buffer.clear()
        self._idle = True
        self._escaped_at = self._image_at = self._middle_at = -1
        self._line_start = self.position

    def feed(self, data: bytes) -> list[ScannedLink]:
        """The links whose `)` lies in `data`, in order."""
        offset = self.position
        self.position = offset + len(data)
        if self._idle:
            if _OPENING.search(data) is None:
                return []
            self._base = offset
        self._buffer += data
        links = []
        for match in _SPECIAL.finditer(data):
            link = self._read(data[match.start()], offset + match.start(), offset + match.end())
            if link is not None:
                links.append(link)
        self._idle = not (
            self._openers
            or self._candidates
            or self._code
            or self._run_end
            or (self._closed and self._middle_at == self.position)
        )
        if self._idle:
            self._buffer.clear()
        return links

    def _read(self, byte: int, at: int, end: int) -> ScannedLink | None:
        if byte == BACKTICK:
            self._read_backticks(at, end)
            return None
        if self._run_end:
            self._end_run()
        if byte == NEWLINE:
            self._end_line(at)
        elif at == self._escaped_at:
            return None
        if byte == BACKSLASH:
            self._escaped_at = end
        elif byte == BANG:
            self._image_at = end
        elif byte == LEFT_BRACKET:
            if not self._code:
                self._openers = _Opener(at, at == self._image_at, self._openers)
        elif byte == RIGHT_BRACKET:
            if not self._code and self._openers:
                opener, self._openers = self._openers, self._openers.below
                active = opener.image or opener.at >= self._inactive_before
                self._closed, self._middle_at = opener if active else None, end
        else:
            return self._read_destinations(byte, at)
        return None

    def _read_backticks(self, at: int, end: int) -> None:
        if self._run_end == at and self._run_start < at:
            self._run_end = end
            return
        self._end_run()
        if at == self._escaped_at and not self._code:
            at += 1
        if at < end:
            self._run_start, self._run_end = at, end

    def _end_run(self) -> None:
        length = self._run_end - self._run_start
        starts_line = self._run_start == self._line_start
        self._run_start = self._run_end = 0
        if not length:
            return
        if not self._code:
            self._code = length
            self._fence_line = starts_line and length >= _FENCE_LENGTH
        elif self._fence:
            if starts_line and length >= self._code:
                self._code, self._fence = 0, False
        else:
            self._fence_line = False
            if length == self._code:
                self._code = 0

    def _end_line(self, at: int) -> None:
        if self._fence_line:
            length = self._code
            self._forget()
            self._code, self._fence = length, True
        elif not self._fence:
            line = self._buffer[max(0, self._line_start - self._base) : at - self._base]
            if not line.strip():
                self._forget()
        self._line_start = at + 1

    def _read_destinations(self, byte: int, at: int) -> ScannedLink | None:
        for index, candidate in enumerate(self._candidates):
            # Where one `)` completes several, the outermost is the link, as in CommonMark.
            if candidate.destination.feed(byte, at, self._buffer, self._base):
                return self._complete(index, at)
        if self._candidates:
            self._candidates = [candidate for candidate in self._candidates if not candidate.destination.dead]
        if byte == LEFT_PAREN and self._closed and at == self._middle_at:
            self._candidates.append(_Candidate(self._closed, at - 1, Destination(at + 1)))
            del self._candidates[:-_MAX_DESTINATIONS]
        return None

    def _complete(self, index: int, at: int) -> ScannedLink | None:
        """The `)` at `at` completes a candidate: nothing that opened within its destination counts."""
        candidate = self._candidates[index]
        opener = candidate.opener
        self._openers = opener.below
        self._closed = None
        self._code = 0
        self._fence_line = False
        if opener.image:
            del self._candidates[index:]  # those around it stay open: an image may stand in a destination
            return None
        self._candidates = []
        self._inactive_before = at
        if self._openers and not self._openers.above_image:
            self._openers = None  # all inactive, with no image around them that could still close
        text = bytes(self._buffer[opener.at + 1 - self._base : candidate.middle - self._base])
        return ScannedLink(
            text=unescape(text),
            target=candidate.destination.target(at, self._buffer, self._base),
            start=opener.at,
            end=at + 1,
            middle=candidate.middle,
        )
