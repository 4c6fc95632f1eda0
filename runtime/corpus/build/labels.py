r"""What `\label`s stand for: the parts of a LaTeX file that `\ref`s lead to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_SECTIONS = ("part", "chapter", "section", "subsection", "subsubsection", "paragraph", "subparagraph")
_HIDDEN = re.compile(
    r"\\[^a-zA-Z]|%[^\n]*|\\begin\s*\{(verbatim\*?|Verbatim|lstlisting|minted|comment)\}.*?\\end\s*\{\1\}", re.DOTALL
)
_MARK = re.compile(
    rf"\\(?:(?P<edge>begin|end)\s*\{{(?P<name>[^{{}}]*)\}}|(?P<section>{'|'.join(_SECTIONS)})\*?(?![A-Za-z])"
    r"|label\s*\{(?P<label>[^{}\\]+)\})"
)


@dataclass(slots=True)
class _Part:
    """An environment (level None) or section that is open, and the labels within it."""

    name: str
    level: int | None
    start: int
    labels: list[str] = field(default_factory=list)


def labelled_parts(source: str) -> Iterator[tuple[str, str]]:
    r"""Each label of a file and what it stands for: its environment, or its section up to the next of its rank.

    Comments and verbatim environments hold no labels. What is labelled before the first section is left out.
    """
    hidden = _HIDDEN.sub(lambda match: " " * len(match[0]), source)
    open_parts: list[_Part] = []

    def close(down_to: int, end: int) -> Iterator[tuple[str, str]]:
        for part in reversed(open_parts[down_to:]):
            for label in part.labels:
                yield label, source[part.start : end].strip()
        del open_parts[down_to:]

    for mark in _MARK.finditer(hidden):
        if mark["label"]:
            label = " ".join(mark["label"].split())
            if open_parts and label:
                open_parts[-1].labels.append(label)
        elif mark["section"]:
            level = _SECTIONS.index(mark["section"])
            lower = (at for at, part in enumerate(open_parts) if part.level is None or part.level >= level)
            yield from close(next(lower, len(open_parts)), mark.start())
            open_parts.append(_Part(mark["section"], level, mark.start()))
        elif mark["edge"] == "begin" and mark["name"] != "document":
            open_parts.append(_Part(mark["name"], None, mark.start()))
        elif mark["edge"] == "end":
            begun = [at for at, part in enumerate(open_parts) if part.level is None and part.name == mark["name"]]
            if mark["name"] == "document":
                yield from close(0, mark.start())
            elif begun:
                yield from close(begun[-1], mark.end())
    yield from close(0, len(source))
