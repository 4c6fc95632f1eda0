"""Python's import statements as links, found in a stream of bytes that is read once.

A document's title is the path of its file in the source tree, "a/b/c.py". It may have a source before it, as in
"owner/repo:a/b/c.py"; then imports lead to documents of that source.

Each name that a statement imports is a link, with candidates in the order in which Python looks for them:

- `import a.b`: a/b/__init__.py, a/b.py;
- `from a.b import c`: a/b/c/__init__.py, a/b/c.py (a module), a/b/__init__.py, a/b.py (something within a.b);
- `from a.b import *`: a/b/__init__.py, a/b.py;
- relative imports: the same, from the folder of the document on. One that leads out of the tree is no link.

The packages above (a/__init__.py of `import a.b.c`) are run too, but not named: they are no links. Where none of the
candidates is there, as with most of what comes from the standard library, the target is the module that the statement
names, as a file: a/b.py, whichever name is taken from it; for `from . import c` that is the module c beside the
document. So twenty names from `typing` are one document, typing.py, and not twenty.

A statement is complete, and fires, at its newline, `;`, comment or closing parenthesis; what only later text could
cancel is not waited for. One that the document's end completes fires not: no token could read its target any more.
Statements within functions, conditions (`if TYPE_CHECKING:`) and after `:` or `;` count, text within strings and
comments does not. `from __future__ import ...` speaks to the compiler and is no link.

Where the reading differs from Python's:

1. Only strings and comments are told from code. `import` is a keyword that stands nowhere else in a valid program, so
   brackets need no counting, and an open one, as a model may leave it, hides nothing.
2. An f-string ends at its own kind of quote, as before Python 3.12.
3. A line ends at a newline, not at a carriage return alone.
4. A statement of more than 64 KiB is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ds2ds.documents.link_formats.python_statement import parse_statement, titles_of
from ds2ds.documents.link_formats.state_scanner import StateScanner
from ds2ds.documents.link_scanner import ScannedLink

_LONGEST_STATEMENT = 1 << 16

# What matters in code; in a line that may still begin a statement, what its first word may have.
_CODE = re.compile(rb"[\n;:#\"'\\]")
_WORD = re.compile(rb"[A-Za-z0-9_\x80-\xff]+")
_SPACE = re.compile(rb"[ \t\f\r]+")
_STATEMENT = re.compile(rb"[A-Za-z0-9_\x80-\xff.,*]+")
_KEYWORDS = (b"import", b"from")
# What matters within a string, by its quote and whether there are three of them.
_IN_STRING = {
    (quote, triple): re.compile(b"[%c\\\\]" % quote if triple else b"[%c\\\\\n]" % quote)
    for quote in b"\"'"
    for triple in (False, True)
}


class _ImportScanner(StateScanner):
    def __init__(self, document_title: str) -> None:
        self._title = document_title
        super().__init__()

    def reset(self) -> None:
        """The document ends: a statement without its newline is none."""
        self._read = self._read_code
        self._fresh = True  # only white space since a statement could begin
        self._escaped = False  # a backslash came before this byte
        self._word = bytearray()  # the first word of a line
        self._word_at = 0
        self._statement = bytearray()
        self._in_parentheses = False
        self._quote = 0
        self._quotes = 0  # how many came in a row, at the start or the end of a string
        self._triple = False

    # The states.

    def _read_code(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        if self._escaped:
            return self._skip_escaped(data, at)
        if self._fresh:
            if space := _SPACE.match(data, at):
                if not self._word:
                    return space.end()
            elif word := _WORD.match(data, at):
                if not self._word:
                    self._word_at = offset + at
                self._word += word[0][:8]  # longer than any keyword is enough to be none
                del self._word[8:]
                return word.end()
            self._end_word(data[at])
            if self._read != self._read_code:
                return at
        else:
            special = _CODE.search(data, at)
            if special is None:
                return len(data)
            at = special.start()
        byte = data[at]
        if byte in b"\n;:":
            self._fresh = True
        elif byte in b"\"'":
            self._quote, self._quotes, self._triple = byte, 1, False
            self._read = self._read_opening
            self._fresh = False
        elif byte == 0x23:  # "#"
            self._read = self._read_comment
        elif byte == 0x5C:  # a backslash; before a newline it joins the lines
            self._escaped = True
        else:
            self._fresh = False
        return at + 1

    def _skip_escaped(self, data: bytes, at: int) -> int:
        """What follows a backslash means nothing; of a carriage return and a newline, both."""
        self._escaped = data[at] == 0x0D
        return at + 1

    def _end_word(self, byte: int) -> None:
        """A line's first word is complete, before `byte`."""
        word = bytes(self._word)
        self._word.clear()
        if not word:
            return
        self._fresh = False
        if word in _KEYWORDS and byte not in b"\"'":
            self._statement[:] = word
            self._in_parentheses = False
            self._read = self._read_statement

    def _read_comment(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        end = data.find(b"\n", at)
        if end < 0:
            return len(data)
        self._read = self._read_statement if self._statement else self._read_code
        return end  # the newline is read there

    def _read_opening(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        """After the first quote: a second one makes an empty string, or with a third one opens a long string."""
        if data[at] == self._quote:
            self._quotes += 1
            if self._quotes == 3:
                self._triple, self._quotes, self._read = True, 0, self._read_string
            return at + 1
        self._read = self._read_code if self._quotes == 2 else self._read_string
        return at

    def _read_string(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        if self._escaped:
            return self._skip_escaped(data, at)
        byte = data[at]
        if byte == self._quote:
            self._quotes += 1
            if self._quotes == (3 if self._triple else 1):
                self._read = self._read_code
            return at + 1
        self._quotes = 0
        if byte == 0x5C:
            self._escaped = True
            return at + 1
        if byte == 0x0A and not self._triple:  # never closed: an error, and over with its line
            self._read = self._read_code
            return at
        special = _IN_STRING[self._quote, self._triple].search(data, at + 1)
        return len(data) if special is None else special.start()

    def _read_statement(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        if self._escaped:
            return self._skip_escaped(data, at)
        if text := _STATEMENT.match(data, at):
            self._statement += text[0]
            at = text.end()
        elif _SPACE.match(data, at) or (self._in_parentheses and data[at] == 0x0A):
            if self._statement[-1] != 0x20:
                self._statement.append(0x20)
            at += 1
        elif data[at] == 0x5C:
            self._escaped = True
            if self._statement[-1] != 0x20:
                self._statement.append(0x20)
            at += 1
        elif data[at] == 0x23 and self._in_parentheses:
            self._read = self._read_comment
        elif data[at] == 0x28 and not self._in_parentheses:
            self._in_parentheses = True
            self._statement.append(0x28)
            at += 1
        elif data[at] == 0x29 and self._in_parentheses:
            self._statement.append(0x29)
            at += 1
            self._complete(offset + at, links)
        elif data[at] in b"\n;#" and not self._in_parentheses:
            self._complete(offset + at + 1, links)  # the byte itself is read as code
        else:  # no statement after all
            self._leave_statement()
        if len(self._statement) > _LONGEST_STATEMENT:
            self._leave_statement()
        return at

    def _complete(self, end: int, links: list[ScannedLink]) -> None:
        start = self._word_at
        for found in parse_statement(self._statement.decode(errors="replace")):
            if titles := titles_of(found, self._title):
                links.append(ScannedLink(str(found), titles[0], start, end, start, titles[1]))
        self._leave_statement()

    def _leave_statement(self) -> None:
        self._statement.clear()
        self._read = self._read_code


@dataclass(frozen=True)
class PythonImports:
    """Python's import statements. A link's `text` is the dotted name, `start` and `middle` are where the statement
    starts."""

    name: str = "python"

    def scanner(self, document_title: str = "") -> _ImportScanner:
        return _ImportScanner(document_title)
