"""The part of a link between `](` and its `)`: where it ends, and which target it names.

The deviations from CommonMark that act here are listed in `ds2ds.documents.link_scanner`.
"""

from __future__ import annotations

import html
import re
from html.entities import html5
from typing import Final

LEFT_PAREN, RIGHT_PAREN, LESS_THAN, GREATER_THAN, NEWLINE = b"()<>\n"
_QUOTES: Final = b"\"'"
_WHITESPACE: Final = b" \t\r\n"

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]*);")
_ESCAPE_OR_ENTITY = re.compile(r"\\[!-/:-@\[-`{-~]|" + _ENTITY.pattern)
_LINE_BREAK = re.compile(rb"[ \t]*\r?\n[ \t]*")
_WRITTEN_BREAK = re.compile(r"\s*[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]\s*")  # by an entity


def resolve_entities(text: str) -> str:
    """`text` with HTML entities, `&...;`, resolved; a name that HTML does not have stays as it is."""
    return _ENTITY.sub(_resolve, text)


def unescape(source: bytes) -> str:
    """`source` as text: UTF-8 (what is invalid becomes U+FFFD), backslash escapes of ASCII punctuation
    and HTML entities resolved."""
    return _ESCAPE_OR_ENTITY.sub(_resolve, source.decode("utf-8", errors="replace"))


def _resolve(match: re.Match[str]) -> str:
    written: str = match[0]
    if written[0] == "\\":
        return written[1]
    # html.unescape also takes the start of a name for one: `&lt` in `&ltx;`.
    return html.unescape(written) if written[1] == "#" or written[1:] in html5 else written


class Destination:
    """Follows one destination, from the byte after `](` to the `)` that ends the link.

    It is fed the unescaped bytes of `( ) < > " '` and newlines, in order; all else reaches it as the gap
    before these. A raw destination is followed under two readings at once: the whole is the target, with
    balanced parentheses; or it ends in a quoted title, in which parentheses do not count. Whichever a `)`
    completes first ends the link.
    """

    __slots__ = ("_blank", "_depth", "_quote", "_read_to", "_titled", "angle", "dead", "end", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        """Offset at which the target starts."""
        self.end: int | None = None
        """Offset at which the target ends; None: at the link's `)`."""
        self.angle = False
        """Whether this is a `<...>` destination."""
        self.dead = False
        """Whether no `)` can complete it any more."""
        self._read_to = start
        self._blank = True  # nothing but whitespace so far
        self._depth = 0  # parentheses open, all of it read as a target
        self._quote = 0  # the byte that closes the title now open
        self._titled = False  # a title has closed, and only whitespace came after it

    def feed(self, byte: int, at: int, buffer: bytearray, base: int) -> bool:
        """Whether `byte`, at offset `at`, is the `)` that ends the link. `buffer` starts at offset `base`."""
        gap = buffer[self._read_to - base : at - base].strip()
        after_space = buffer[at - base - 1] in _WHITESPACE
        self._read_to = at + 1
        if self._blank:
            if byte == NEWLINE and not gap:
                return False
            self._blank = False
            if not gap and byte == LESS_THAN:
                self.angle = True
                self.start = at + 1
                return False
            if not gap and byte in _QUOTES:  # a target may start with a quote; a title has a target before it
                return False
        if self.angle:
            return self._feed_angle(byte, at, bool(gap), after_space)
        return self._feed_raw(byte, at, bool(gap), after_space)

    def _feed_raw(self, byte: int, at: int, gap: bool, after_space: bool) -> bool:
        if self._titled and (gap or byte not in (RIGHT_PAREN, NEWLINE)):
            self._titled, self.end = False, None  # more follows, so it was part of the target
        if byte == RIGHT_PAREN:
            if self._titled:
                return True
            if self._depth == 0:
                self.end = None  # a title still open is part of the target
                return True
            self._depth -= 1
        elif byte == LEFT_PAREN:
            self._depth += 1
        elif byte in _QUOTES:
            if byte == self._quote:
                self._quote, self._titled = 0, True
            elif not self._quote and after_space and self._depth == 0:
                self._quote, self.end = byte, at
        return False

    def _feed_angle(self, byte: int, at: int, gap: bool, after_space: bool) -> bool:
        if self.end is None:  # within <...>
            if byte == GREATER_THAN:
                self.end = at
            self.dead = byte in (LESS_THAN, NEWLINE)
        elif self._quote:  # within the title
            if byte == self._quote:
                self._quote, self._titled = 0, True
            self.dead = self._quote == RIGHT_PAREN and byte == LEFT_PAREN
        elif gap:
            self.dead = True
        elif byte == RIGHT_PAREN:
            return True
        elif not self._titled and after_space and (byte == LEFT_PAREN or byte in _QUOTES):
            self._quote = RIGHT_PAREN if byte == LEFT_PAREN else byte
        else:
            self.dead = byte != NEWLINE
        return False

    def target(self, at: int, buffer: bytearray, base: int) -> str:
        """The target, once the `)` at offset `at` has ended the link."""
        source = bytes(buffer[self.start - base : (at if self.end is None else self.end) - base])
        target = unescape(source if self.angle else _LINE_BREAK.sub(b" ", source.strip())).strip()
        return _WRITTEN_BREAK.sub(" ", target)  # a title is a line
