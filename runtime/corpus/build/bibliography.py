"""BibTeX files, as far as a corpus needs them: keys, fields and their text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_ENTRY = re.compile(r"@\s*([A-Za-z]+)\s*([{(])")
_KEY = re.compile(r"\s*([^\s,={}()\"#%]+)\s*(?=[,})])")
_NAME = re.compile(r"[\s,]*([^\s,={}()\"#%]+)\s*=\s*")
_WORD = re.compile(r"[^\s,={}()\"#%]+")
_MARK = re.compile(r'[{}]|(?<!\\)"')
_JOIN = re.compile(r"\s*#\s*")
_NO_ENTRIES = ("comment", "preamble")


@dataclass(frozen=True, slots=True)
class Entry:
    """A work: its key, what kind it is ("article") and its fields (names in lower case), braces and all."""

    key: str
    kind: str
    fields: Mapping[str, str]


def _value_ends(source: str) -> dict[int, int]:
    """Where each value that would start at a `{` or `"` ends, one past it: at the brace that closes it, or at the next
    quote as deep in braces. What never ends is left out. All in one pass, however many do not."""
    ends: dict[int, int] = {}
    braces: list[int] = []
    quotes: dict[int, int] = {}  # the last one at each depth
    depth = 0
    for mark in _MARK.finditer(source):
        at = mark.start()
        if mark[0] == "{":
            depth += 1
            braces.append(at)
        elif mark[0] == "}":
            depth -= 1
            if braces:
                ends[braces.pop()] = at + 1
        else:
            if depth in quotes:
                ends[quotes[depth]] = at + 1
            quotes[depth] = at
    return ends


def _value(source: str, at: int, ends: Mapping[int, int], strings: Mapping[str, str]) -> tuple[str, int]:
    """The value that starts at `at`, its parts joined, and where it ends; -1 if it never does."""
    parts = []
    while True:
        if at < len(source) and source[at] in '{"':
            end = ends.get(at, -1)
            if end < 0:
                return "", -1
            parts.append(source[at + 1 : end - 1])
        elif word := _WORD.match(source, at):
            end = word.end()
            parts.append(strings.get(word[0].lower(), word[0]))
        else:
            return "", -1
        joined = _JOIN.match(source, end)
        if joined is None:
            return "".join(parts), end
        at = joined.end()


def read_bibliography(source: str) -> Iterator[Entry]:
    """The entries of a BibTeX file, in order: ``@string`` names are resolved, comments and preambles passed over.

    An entry that is cut off or damaged ends where it stops making sense; what it had until then counts.
    """
    ends = _value_ends(source)
    strings: dict[str, str] = {}
    at = 0
    while start := _ENTRY.search(source, at):
        kind, at = start[1].lower(), start.end()
        if kind in _NO_ENTRIES:
            at = ends.get(start.end() - 1, at)
            continue
        key = None if kind == "string" else _KEY.match(source, at)
        if key is not None:
            at = key.end()
        elif kind != "string":
            continue
        fields: dict[str, str] = {}
        while name := _NAME.match(source, at):
            value, end = _value(source, name.end(), ends, strings)
            if end < 0:
                break
            fields.setdefault(name[1].lower(), " ".join(value.split()))
            at = end
        if key is None:
            strings.update(fields)
        else:
            yield Entry(key[1], kind, fields)


def entry_text(entry: Entry) -> str:
    """A work as a document's body: title, who and where, abstract, without braces. Without a title, its fields."""
    fields = {name: re.sub(r"(?<!\\)[{}]", "", value) for name, value in entry.fields.items()}
    who = fields.get("author") or fields.get("editor")
    where = next((fields[name] for name in ("journal", "journaltitle", "booktitle", "publisher", "school",
                                            "institution", "howpublished") if fields.get(name)), None)  # fmt: skip
    when = fields.get("year") or fields.get("date")
    about = ". ".join(filter(None, [who and who.replace(" and ", ", "), ", ".join(filter(None, [where, when]))]))
    if not fields.get("title"):
        return "".join(f"{name}: {value}\n" for name, value in fields.items())
    paragraphs = [fields["title"], about and f"{about}.", fields.get("abstract")]
    return "\n\n".join(filter(None, paragraphs)) + "\n"
