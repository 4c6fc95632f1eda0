"""Converts FOLDOC (Debian's dict-foldoc) into a ds2ds corpus of linked markdown documents.

    python examples/foldoc/convert.py SOURCE OUT [--markdown DIR] [--links FILE] [--force]

SOURCE is the .deb, or a folder with foldoc.dict.dz and foldoc.index. The result depends on SOURCE alone.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from dictd import Entry, SourceError, read_entries
from entry_markdown import entry_pieces, sole_reference
from link_syntax import render
from references import NameIndex

from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.documents.title_utils import create_filename
from ds2ds.errors import Ds2dsError

NOTICE = Path(__file__).parent / "notice"

# Of `{text (name)}` only the name is looked for in vain; addresses (`{news:...}`) are not names.
_NO_NAME = re.compile(r"\(|\w:\S|^/|\.html$|^\W*$")


@dataclass(frozen=True, slots=True)
class Document:
    """One document: title, markdown body, and the links in it as (end in the body's bytes, target title)."""

    title: str
    body: str
    links: list[tuple[int, str]]


@dataclass(slots=True)
class Conversion:
    """What the converter made of a dictionary: the documents, and what it could not link or folded away."""

    documents: list[Document] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)  # title folded away -> title of the document it leads to
    unresolved: Counter[str] = field(default_factory=Counter)  # name that no document has -> documents that use it


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
        missing: set[str] = set()
        body, links = render(entry_pieces(entry.text, partial(_resolve, names, title, missing)))
        result.unresolved.update(missing)
        result.documents.append(Document(title, body, links))
    return result


def _resolve(names: NameIndex, title: str, missing: set[str], reference: str) -> str | None:
    """The target of a reference in the document `title`; None if it is the document itself, or nothing."""
    target = names.resolve(reference)
    if target is None and not _NO_NAME.search(reference):
        missing.add(reference)
    return None if target == title else target


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


def save_markdown(folder: Path, documents: list[Document]) -> None:
    """Writes each document as `normalized_title_hash.md`, its title the heading."""
    folder.mkdir(parents=True, exist_ok=True)
    for document in documents:
        path = folder / f"{create_filename(document.title)}.md"
        path.write_text(f"# {document.title}\n\n{document.body}\n", encoding="utf-8")


def load_links(path: str | Path) -> dict[str, list[tuple[int, str]]]:
    """The record of links: title -> [(end, target)], end one past the `)` in the body's UTF-8 bytes."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = map(json.loads, file)
        return {record["title"]: [(end, target) for end, target in record["links"]] for record in records}


def main(
    source: Annotated[Path, typer.Argument(help="dict-foldoc's .deb, or a folder with its two dictd files.")],
    out: Annotated[Path, typer.Argument(help="Folder for the corpus.")],
    markdown: Annotated[Path | None, typer.Option(help="Also write markdown files here.")] = None,
    links: Annotated[Path | None, typer.Option(help="Also write the links here (.jsonl.gz).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a corpus that is already there.")] = False,
) -> None:
    """Convert FOLDOC into a ds2ds corpus and print what came of it."""
    try:
        result = convert(read_entries(source))
        documents = [SourceDocument(document.title, document.body) for document in result.documents]
        summary = write_corpus(out, documents, redirects=result.redirects, force=force)
    except (OSError, SourceError, Ds2dsError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for notice in sorted(NOTICE.iterdir()):
        shutil.copyfile(notice, out / notice.name)
    if markdown is not None:
        save_markdown(markdown, result.documents)
    if links is not None:
        save_links(links, result.documents)
    typer.echo(f"documents   {summary.documents:>9,}")
    typer.echo(f"links       {sum(len(document.links) for document in result.documents):>9,}")
    typer.echo(f"tokens      {summary.tokens:>9,} (GPT-2)")
    typer.echo(f"redirects   {len(result.redirects):>9,} folded into the documents they lead to")
    most_used = ", ".join(f"{name} ({count})" for name, count in result.unresolved.most_common(6))
    typer.echo(f"unresolved  {len(result.unresolved):>9,} names, left as plain text: {most_used}, ...")


if __name__ == "__main__":
    typer.run(main)
