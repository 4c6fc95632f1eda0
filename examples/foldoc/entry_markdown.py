"""The markdown of one FOLDOC entry: hard-wrapped text with `{cross references}` to paragraphs with links.

FOLDOC indents prose by 3 columns and code, verse, tables and pictures by more. Prose is unfolded into one
line a paragraph; the rest keeps its lines and becomes an indented code block, or, with references, a list.
Packaging has broken long lines at their last space, the rest of the line standing in column 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

PROSE_COLUMN = 3
# Prose stood in column 8 of FOLDOC's own file, where the tabs were set.
_MOVED_LEFT = 8 - PROSE_COLUMN

# A date stamp says when the entry was last edited; some are slightly broken.
_DATE_STAMP = re.compile(r"\(?\d{4,5}-\d\d?-\d\d?\)?\.?|\(\d{4}\?\)")
_REFERENCE = re.compile(r"(?<!\\)\{([^{}]*)\}")
# Braces around this are not FOLDOC's, but the text's own.
_CODE_LIKE = re.compile(r"[=;|\\<>]|: |^\s|\s$|^\W*$")
_NAMED = re.compile(r"(.*?)\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)", re.DOTALL)
# Pages of FOLDOC's own site, and pictures on it, are of no use outside it.
_SITE_ADDRESS = re.compile(r"img:|/|[\w-]+\.html$")
_BLOCK_REFERENCE = re.compile(r"(?<![\w\\/])\{[^\W\d_][\w .-]{2,}\}")


@dataclass(frozen=True, slots=True)
class Link:
    """A reference that resolves: the text shown and the title of the document it leads to."""

    text: str
    target: str


Piece = str | Link
Resolve = Callable[[str], str | None]


def paragraphs(text: str) -> list[str]:
    """The entry's paragraphs, wrapped lines mended and tabs expanded, without its date stamps."""
    text = re.sub(r"\n[ \t]+\n(?=\S)", "\n", "\n" + text)
    blocks = re.split(r"\n(?:[ \t]*\n)+", text.strip("\n"))
    lines = ["\n".join(map(_without_tabs, block.split("\n"))) for block in blocks]
    return [block for block in lines if block.strip() and not _DATE_STAMP.fullmatch(block.strip())]


def _without_tabs(line: str) -> str:
    return (" " * _MOVED_LEFT + line).expandtabs()[_MOVED_LEFT:].rstrip()


def sole_reference(text: str) -> str | None:
    """The name an entry refers to if that is all it does (`<tag> {name}.` or `See {name}.`), else None."""
    body = " ".join(" ".join(paragraphs(text)).split())
    match = re.fullmatch(r'(?:<[^<>]*> ?)?(?:[Ss]ee:? )?"?\{([^{}]*)\}"?\.?', body)
    return match[1] if match else None


def entry_pieces(text: str, resolve: Resolve) -> list[Piece]:
    """The entry as plain text and links in order; paragraphs are two newlines apart."""
    pieces: list[Piece] = []
    for paragraph in paragraphs(text):
        for block in _blocks(paragraph):
            if pieces:
                pieces.append("\n\n")
            if _is_prose(block[0]):
                pieces += _prose(block, resolve)
            else:
                pieces += _indented(block, resolve)
    return _merged(pieces)


def _is_prose(line: str) -> bool:
    return _column(line) <= PROSE_COLUMN


def _column(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _blocks(paragraph: str) -> list[list[str]]:
    """A paragraph's lines, split where prose and indented lines meet."""
    blocks: list[list[str]] = []
    for line in paragraph.split("\n"):
        numbered = blocks and re.match(r" {3}\d+\. ", blocks[-1][0])
        if blocks and _column(line) == 0 and not _is_prose(blocks[-1][0]):
            blocks[-1][-1] += " " + line  # the broken-off end of a long line
        elif blocks and (numbered or _is_prose(line) == _is_prose(blocks[-1][0])):
            blocks[-1].append(line)
        else:
            blocks.append([line])
    return blocks


def _prose(lines: list[str], resolve: Resolve) -> list[Piece]:
    return _linked(" ".join(" ".join(lines).split()), lambda inner: _reference(inner, resolve))


def _indented(lines: list[str], resolve: Resolve) -> list[Piece]:
    margin = min(_column(line) for line in lines)
    block = "\n".join(line[margin:] for line in lines)
    if re.match(r"<[a-z, ]+> [A-Z]", block):
        return _prose(lines, resolve)  # a definition that was indented by mistake
    braces = _REFERENCE.findall(block)
    if not braces or len(_BLOCK_REFERENCE.findall(block)) < len(braces) or not any(map(resolve, braces)):
        return [re.sub(r"^(?=.)", "    ", block, flags=re.MULTILINE)]
    items = re.sub(r"^ *(?=\S)", lambda m: "- " if not m[0] else "  ", block, flags=re.MULTILINE)
    return _linked(items, lambda inner: _reference(inner, resolve))


def _linked(text: str, render: Callable[[str], list[Piece]]) -> list[Piece]:
    pieces: list[Piece] = []
    end = 0
    for match in _REFERENCE.finditer(text):
        pieces += [text[end : match.start()], *render(match[1])]
        end = match.end()
    return [*pieces, text[end:]]


def _reference(inner: str, resolve: Resolve) -> list[Piece]:
    """The pieces of `{name}`, `{text (name)}`, `{text (address)}`, or of braces that are no reference."""
    title = resolve(inner)
    if title is not None:
        return [Link(inner, title)]
    named = _NAMED.fullmatch(inner)
    if named is None:
        return ["{" + inner + "}" if _CODE_LIKE.search(inner) else inner]
    text, name = named[1], named[2]
    title = resolve(name)
    if title is not None:
        return [Link(text or name, title)]
    if _SITE_ADDRESS.match(name) and text:
        return [text]
    return [inner]


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring plain text joined, so that what is escaped can see what stands next to it."""
    merged: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and merged and isinstance(merged[-1], str):
            merged[-1] += piece
        elif piece:
            merged.append(piece)
    return merged
