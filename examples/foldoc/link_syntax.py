"""Writes plain text and links as markdown that reads back as exactly those links.

The syntax is CommonMark's. In plain text only what could open, close or swallow a link is escaped: backticks,
`](`, and a `!` or backslash in front of a link. A destination that is not safe as it stands goes in `<...>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from entry_markdown import Link, Piece

# What is markup even in `<...>`: entities, and `](`, with which a bracket around the link may become one.
_MARKUP = re.compile(r"[\\<>`]|&(?=#?\w+;)|\](?=\()")
# What may start a link's title behind a raw destination.
_TITLE_START = re.compile(r"(?:^|\s)[(\"']")


def render(pieces: Sequence[Piece]) -> tuple[str, list[tuple[int, str]]]:
    """The markdown body and its links as (end, target), end one past the `)` in the body's UTF-8 bytes."""
    body: list[str] = []
    links: list[tuple[int, str]] = []
    size = 0
    for index, piece in enumerate(pieces):
        if isinstance(piece, Link):
            text = f"[{escape_link_text(piece.text)}]({destination(piece.target)})"
        else:
            before_link = index + 1 < len(pieces)  # plain pieces have been merged: next to one stands a link
            text = escape_plain(piece, before_link=before_link)
        body.append(text)
        size += len(text.encode("utf-8"))
        if isinstance(piece, Link):
            links.append((size, piece.target))
    return "".join(body), links


def escape_plain(text: str, *, before_link: bool) -> str:
    """Plain text in which a reader finds no link, code span or image that is not there."""
    text = re.sub(r"(\\*)(`|\](?=\())", _escaped, text)
    if before_link:
        text = re.sub(r"(\\*)(!)$", _escaped, text)
        text = re.sub(r"\\+$", r"\g<0>\g<0>", text)
    return text


def _escaped(match: re.Match[str]) -> str:
    return match[1] * 2 + "\\" + match[2]


def escape_link_text(text: str) -> str:
    """Link text without brackets, code spans or tags of its own."""
    return re.sub(r"[\\\[\]`<]", r"\\\g<0>", text)


def destination(title: str) -> str:
    """A title as a link destination: raw, or in `<...>` where raw would be read otherwise.

    A raw destination may have spaces and balanced parentheses.
    """
    if _MARKUP.search(title) or _TITLE_START.search(title) or not _balanced(title):
        return "<" + _MARKUP.sub(r"\\\g<0>", title) + ">"
    return title


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0
