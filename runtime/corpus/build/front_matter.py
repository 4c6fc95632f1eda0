"""The YAML block at the head of a note."""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml  # type: ignore[import-untyped]

_BLOCK = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class FrontMatter:
    """What a note says of itself: its title (None if it does not), other names, and what is wrong with the block."""

    title: str | None = None
    aliases: tuple[str, ...] = ()
    problem: str | None = None


def _one_line(value: object) -> str:
    if not isinstance(value, str):
        return ""
    # PyYAML leaves the halves of "\ud83d\ude00", as JSON writes characters beyond U+FFFF, apart; one alone is no text.
    whole = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return " ".join(whole.split())


def read_front_matter(text: str) -> tuple[FrontMatter, str]:
    """Split a note (line ends ``\\n``) into its front matter and its body.

    A block that is no YAML mapping counts as absent and is reported in ``problem``: such notes are common (templates,
    unquoted colons), and the editors they come from show them all the same.
    """
    match = _BLOCK.match(text)
    if match is None:
        return FrontMatter(), text
    body = text[match.end() :]
    try:
        # BaseLoader leaves every scalar a string: a title may look like a number or a date.
        fields = yaml.load(match[1], Loader=yaml.BaseLoader)
    # The others: an escape beyond the last character, "\U00110000" or "\UFFFFFFFF"; brackets nested a thousand deep.
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        return FrontMatter(problem=" ".join(str(error).split())), body
    if not fields:
        return FrontMatter(), body
    if not isinstance(fields, dict):
        return FrontMatter(problem=f"expected a mapping, got {type(fields).__name__}"), body
    named = fields.get("aliases", fields.get("alias")) or []
    aliases = named.split(",") if isinstance(named, str) else named if isinstance(named, list) else []
    names = tuple(name for name in map(_one_line, aliases) if name)
    return FrontMatter(title=_one_line(fields.get("title")) or None, aliases=names), body
