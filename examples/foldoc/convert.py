"""Converts FOLDOC (Debian's dict-foldoc) into a ds2ds corpus of linked markdown documents.

    python examples/foldoc/convert.py SOURCE OUT [--markdown DIR] [--links FILE]

SOURCE is the .deb, or a folder with foldoc.dict.dz and foldoc.index. The result depends on SOURCE alone.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dictd import Entry, SourceError, read_entries
from entry_markdown import entry_pieces, sole_reference
from link_syntax import render
from references import NameIndex


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its title, its markdown body, and the links in it as (end byte in the body, target title)."""

    title: str
    body: str
    links: list[tuple[int, str]]


@dataclass(slots=True)
class Conversion:
    """What the converter made of a dictionary: the documents, and what it could not link or folded away."""

    documents: list[Document] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    unresolved: Counter[str] = field(default_factory=Counter)


def convert(entries: list[Entry]) -> Conversion:
    """Documents in the order of the dictionary; pure redirects are folded into the documents they lead to."""
    entries = _merged_by_title(entries)
    redirects = _redirects(entries)
    names = NameIndex(_names(entries, redirects))
    result = Conversion(redirects=redirects)
    for entry in entries:
        title = entry.headwords[0]
        if title in redirects:
            continue

        def resolve(name: str, title: str = title) -> str | None:
            target = names.resolve(" ".join(name.split()))
            if target is None:
                result.unresolved[name] += 1
            return None if target == title else target

        body, links = render(entry_pieces(entry.text, resolve))
        result.documents.append(Document(title, body, links))
    return result


def _merged_by_title(entries: list[Entry]) -> list[Entry]:
    merged: dict[str, Entry] = {}
    for entry in entries:
        title = entry.headwords[0]
        if title in merged:
            first = merged[title]
            headwords = tuple(dict.fromkeys(first.headwords + entry.headwords))
            entry = Entry(headwords, first.text.rstrip("\n") + "\n\n" + entry.text)
        merged[title] = entry
    return list(merged.values())


def _redirects(entries: list[Entry]) -> dict[str, str]:
    """Title of each pure redirect -> title of the document it leads to, through however many others.

    A redirect to nothing, or in a circle, stays a document: its text still says what its name stands for.
    """
    names = NameIndex(_names(entries, {}))
    step: dict[str, str] = {}
    for entry in entries:
        reference = sole_reference(entry.text)
        target = names.resolve(reference) if reference is not None else None
        if target is not None:
            step[entry.headwords[0]] = target
    redirects = {}
    for title in step:
        seen = {title}
        target = step[title]
        while target in step and target not in seen:
            seen.add(target)
            target = step[target]
        if target not in seen:
            redirects[title] = target
    return redirects


def _names(entries: list[Entry], redirects: dict[str, str]) -> list[tuple[str, str]]:
    """(name, title of its document): titles first, then the other headwords."""
    titles = [(entry.headwords[0], entry.headwords[0]) for entry in entries]
    others = [(name, entry.headwords[0]) for entry in entries for name in entry.headwords[1:]]
    return [(name, redirects.get(title, title)) for name, title in titles + others]


def save_links(path: Path, documents: list[Document]) -> None:
    """Writes the record of links, one JSON object a line, gzip-compressed and reproducible byte for byte."""
    lines = (json.dumps({"title": d.title, "links": d.links}, ensure_ascii=False) + "\n" for d in documents)
    with path.open("wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as archive:
        archive.write("".join(lines).encode("utf-8"))


def load_links(path: str | Path) -> dict[str, list[tuple[int, str]]]:
    """The converter's record of links: title -> [(end, target)], end one past the `)` in the body's UTF-8 bytes."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = map(json.loads, file)
        return {record["title"]: [(end, target) for end, target in record["links"]] for record in records}
