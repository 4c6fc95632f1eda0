r"""LaTeX's citations, inputs and, if asked for, references as links, found in a stream of bytes that is read once.

- `\cite[...]{a,b}`, natbib's `\citep`, `\citet` and the like, biblatex's `\parencite`, `\textcite`, `\autocite`, ...,
  starred or not, with up to two optional arguments: a link for each key, to the document of that title.
- `\input{sec/intro}`, `\input sec/intro`, `\include{...}`: a link to a file of the folder. A file's title is its path
  with its ending, "sec/intro.tex", and so never a key. It is looked for from the document's own folder on upwards, as
  the folder of the main file, from which LaTeX counts, is one of these; where there is none, the target is the path
  from the top folder.
- `\ref{a}`, `\eqref`, `\pageref`, `\autoref`, `\nameref`, `\vref`, and `\cref{a,b}`: only in the format "latex+ref". A
  link for each label, to the document of that title.

A link fires at its `}`. Comments, `\verb`, `\lstinline`, `\url` and verbatim environments hide what they hold; a blank
line ends an argument that is open, as in LaTeX. The format "arxiv" is what training runs of that name were fed: all
between the braces of a citation is one title, whatever it holds.

LaTeX is not expanded: what macros of a document's own stand for is not known (an argument with a backslash, a brace
or a `#` in it is no link), nor what `\iffalse` or a changed category code hides. An argument of more than 4 KiB is
none, and citations in another's optional argument are read 8 deep.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ds2ds.documents.link_formats.latex_commands import (
    CITATIONS,
    INPUTS,
    REFERENCES,
    SEVERAL_LABELS,
    VERBATIM_COMMANDS,
    VERBATIM_ENVIRONMENTS,
    file_titles,
)
from ds2ds.documents.link_formats.state_scanner import State, StateScanner
from ds2ds.documents.link_scanner import ScannedLink

_LONGEST_ARGUMENT = 4096
_LONGEST_NAME = 32
_DEEPEST = 8
_OPTIONAL_ARGUMENTS = 2

_BACKSLASH, _PERCENT, _NEWLINE, _STAR = b"\\%\n*"
_LEFT_BRACKET, _RIGHT_BRACKET, _LEFT_BRACE, _RIGHT_BRACE = b"[]{}"
_SPACE = re.compile(rb"[ \t\r]+")
_LETTERS = re.compile(rb"[A-Za-z]+")
_IN_TEXT = re.compile(rb"[\\%]")
_IN_OPTIONAL = re.compile(rb"[\\%\]{}\n]")
_IN_ARGUMENT = re.compile(rb"[\\%#{}\n]")
_FILE = re.compile(rb"[^\s\\%#{}\[\]]+")
_SPACES = re.compile(r"\s+")


@dataclass(slots=True)
class _Command:
    """A command that may become links: its name, its backslash's offset, its optional arguments so far, and how many
    braces are open in the one that is open."""

    name: str
    start: int
    optional: int = 0
    braces: int = 0
    starred: bool = False


class _LatexScanner(StateScanner):
    def __init__(self, document_title: str, references: bool, several_keys: bool) -> None:
        self._title = document_title
        self._several_keys = several_keys
        self._known = CITATIONS | INPUTS | (REFERENCES if references else frozenset())
        super().__init__()

    def reset(self) -> None:
        """The document ends: what is open is none."""
        self._read = self._read_text
        self._after_comment: State = self._read_text
        self._line_empty = True
        self._name = bytearray()  # of the command being read, or of the environment
        self._name_at = 0
        self._open: list[_Command] = []
        self._argument = bytearray()
        self._argument_at = 0
        self._delimiter = 0  # what ends a \verb; 0 before it has begun
        self._braces = 0
        self._closing = b""
        self._tail = b""

    # The states.

    def _read_text(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        """Text, also that of the optional argument of the last open command."""
        special = (_IN_OPTIONAL if self._open else _IN_TEXT).search(data, at)
        end = len(data) if special is None else special.start()
        if self._open and data[at:end].strip():
            self._line_empty = False
        if special is None:
            return end
        byte = data[end]
        if byte == _BACKSLASH:
            self._name.clear()
            self._name_at = offset + end
            self._read = self._read_command
        elif byte == _PERCENT:
            self._begin_comment()
        elif byte == _NEWLINE:
            self._end_line()
        else:
            self._read_delimiter(byte)
        if byte != _NEWLINE:
            self._line_empty = False
        return end + 1

    def _read_delimiter(self, byte: int) -> None:
        """A closing bracket, or a brace, within an optional argument."""
        command = self._open[-1]
        if byte == _LEFT_BRACE:
            command.braces += 1
        elif byte == _RIGHT_BRACE:
            command.braces -= 1
            if command.braces < 0:
                self._forget()
        elif byte == _RIGHT_BRACKET and not command.braces:
            self._read = self._read_between

    def _forget(self) -> None:
        """No command that is open becomes a link."""
        self._open.clear()
        self._argument.clear()
        self._read = self._read_text

    def _end_line(self) -> bool:
        """Whether the paragraph ends with this line, and with it all that is open."""
        ends = self._line_empty
        if ends:
            self._forget()
        self._line_empty = True
        return ends

    def _begin_comment(self) -> None:
        self._after_comment, self._read = self._read, self._read_comment

    def _read_comment(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        end = data.find(b"\n", at)
        if end < 0:
            return len(data)
        self._read, self._line_empty = self._after_comment, True
        return end + 1

    def _read_command(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        if letters := _LETTERS.match(data, at):
            self._name += letters[0][: _LONGEST_NAME + 1]
            del self._name[_LONGEST_NAME + 1 :]  # longer than any known name
            return letters.end()
        self._read = self._read_text
        if not self._name:
            return at + 1  # a control symbol: \%, \\
        name = self._name.decode()
        if name in self._known and len(self._open) < _DEEPEST:
            self._open.append(_Command(name, self._name_at))
            self._read = self._read_between
        elif name in VERBATIM_COMMANDS:
            self._delimiter, self._read = 0, self._read_verbatim_argument
        elif name == "begin":
            self._name.clear()
            self._read = self._read_environment
        return at

    def _read_between(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        """After a command's name or one of its optional arguments."""
        command, byte = self._open[-1], data[at]
        if space := _SPACE.match(data, at):
            return space.end()
        if byte == _NEWLINE:
            self._end_line()
        elif byte == _PERCENT:
            self._begin_comment()
        elif byte == _STAR and not command.starred and not command.optional:
            command.starred = True
        elif byte == _LEFT_BRACKET and command.optional < _OPTIONAL_ARGUMENTS and command.name not in INPUTS:
            command.optional += 1
            self._read = self._read_text
        elif byte == _LEFT_BRACE:
            self._argument_at = offset + at
            self._read = self._read_argument
        elif command.name == "input" and _FILE.match(data, at):
            self._argument_at = offset + at
            self._read = self._read_file
            return at
        else:
            self._open.pop()
            self._read = self._read_text
            return at
        if byte != _NEWLINE:
            self._line_empty = False
        return at + 1

    def _read_argument(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        titles_as_written = self._open[-1].name in CITATIONS and not self._several_keys
        if titles_as_written:
            end = data.find(b"}", at)
            special = None if end < 0 else _RIGHT_BRACE
        else:
            match = _IN_ARGUMENT.search(data, at)
            end, special = (-1, None) if match is None else (match.start(), data[match.start()])
        end = len(data) if end < 0 else end
        text = data[at:end]
        self._argument += text
        if text.strip():
            self._line_empty = False
        if len(self._argument) > _LONGEST_ARGUMENT:
            self._forget()
            return end
        if special is None:
            return end
        if special == _RIGHT_BRACE:
            self._complete(offset + end + 1, links)
        elif special == _NEWLINE:
            if not self._end_line():
                self._argument.append(0x20)
        elif special == _PERCENT:
            self._begin_comment()
        else:
            self._forget()
            return end
        return end + 1

    def _read_file(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        """The path of an `\\input` without braces, up to what cannot be part of it."""
        if name := _FILE.match(data, at):
            self._argument += name[0]
            if len(self._argument) > _LONGEST_ARGUMENT:
                self._forget()
            return name.end()
        self._complete(offset + at + 1, links)
        return at

    def _complete(self, end: int, links: list[ScannedLink]) -> None:
        command = self._open.pop()
        argument = self._argument.decode(errors="replace")
        self._argument.clear()
        self._read = self._read_text  # of the command around this one, if there is one
        several = self._several_keys if command.name in CITATIONS else command.name in SEVERAL_LABELS
        for written in argument.split(",") if several else [argument]:
            text = _SPACES.sub(" ", written).strip()
            if command.name in INPUTS:
                include = command.name == "include"
                candidates = file_titles(text, include, self._title)
                from_top = file_titles(text, include, "")
                target = next(iter([*from_top, *candidates]), "")
            else:
                # Keys and labels are meant just so; a title is looked up as titles are.
                candidates, target = ([text] if several or command.name in REFERENCES else []), text
            if target:
                links.append(ScannedLink(text, target, command.start, end, self._argument_at, tuple(candidates)))

    def _read_verbatim_argument(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        r"""The argument of `\verb|...|` or `\url{...}`, up to its end or that of the line."""
        byte = data[at]
        if not self._delimiter:
            if byte in b"* \t":
                return at + 1
            if byte == _LEFT_BRACKET:  # \lstinline[language=C]|...|
                self._delimiter, self._braces = _RIGHT_BRACKET, 0
            elif byte in b"\r\n" or _LETTERS.match(data, at):
                self._read = self._read_text
                return at
            else:
                self._delimiter, self._braces = _RIGHT_BRACE if byte == _LEFT_BRACE else byte, 1
            return at + 1
        if byte == _NEWLINE:
            self._read = self._read_text
            return at
        if byte == _LEFT_BRACE and self._delimiter == _RIGHT_BRACE:
            self._braces += 1
        elif byte == self._delimiter:
            self._braces -= 1
            if self._braces < 0:
                self._delimiter = 0
            elif not self._braces:
                self._read = self._read_text
        return at + 1

    def _read_environment(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        r"""The name after `\begin`."""
        byte = data[at]
        if not self._name and byte in b" \t":
            return at + 1
        if byte == _RIGHT_BRACE and bytes(self._name[1:]) in VERBATIM_ENVIRONMENTS:
            self._closing = b"\\end{" + bytes(self._name[1:]) + b"}"
            self._tail, self._read = b"", self._read_verbatim
            return at + 1
        if (byte == _LEFT_BRACE) == (not self._name) and byte not in b"\\}%\n" and len(self._name) <= _LONGEST_NAME:
            self._name.append(byte)
            return at + 1
        # What was read is text; of its braces only the first can matter, to an optional argument around it.
        if self._open and self._name:
            self._open[-1].braces += 1
        self._read = self._read_text
        return at

    def _read_verbatim(self, data: bytes, at: int, offset: int, links: list[ScannedLink]) -> int:
        seen = self._tail + data[at:]
        end = seen.find(self._closing)
        if end < 0:
            self._tail = seen[-len(self._closing) + 1 :]
            return len(data)
        self._read = self._read_text
        return at + end + len(self._closing) - len(self._tail)


@dataclass(frozen=True)
class Latex:
    r"""LaTeX. A link's `text` is the key, label or path as written, its `start` the backslash, its `middle` where the
    argument starts.

    Attributes:
        references: whether `\ref` and the like are links.
        several_keys: whether a comma in a citation separates keys; else all between its braces is one title.
    """

    name: str = "latex"
    references: bool = False
    several_keys: bool = True

    def scanner(self, document_title: str = "") -> _LatexScanner:
        return _LatexScanner(document_title, self.references, self.several_keys)
