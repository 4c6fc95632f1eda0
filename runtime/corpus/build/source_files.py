"""Source files of a folder as documents: a title each, read where they are tokenized."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ds2ds.corpus.build.note import read_markdown, skipped
from ds2ds.corpus.build.tokenizing import SourceDocument
from ds2ds.corpus.build.vault import list_files
from ds2ds.corpus.names import is_title
from ds2ds.errors import CorpusError


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that becomes the document `title`, as it is."""

    title: str
    file: Path


@dataclass(frozen=True, slots=True)
class SourceFolder:
    """The documents of a folder, in order, the name of their link format, and a line for each file left out."""

    documents: tuple[SourceFile | SourceDocument, ...]
    links: str
    remarks: tuple[str, ...]


def load_document(source: SourceFile | SourceDocument) -> SourceDocument:
    """A file's document: its text with ``\\n`` line ends. Its last line has one too: an import there is complete."""
    if isinstance(source, SourceDocument):
        return source
    return SourceDocument(source.title, read_markdown(source.file).rstrip() + "\n")


def list_sources(source: Path, skip_unreadable: bool, remarks: list[str]) -> list[tuple[Path, PurePosixPath]]:
    """The files under `source` as ``vault.list_files`` lists them, without compiled Python and virtual environments."""
    files = list_files(source, skip_unreadable, remarks)
    environments = {path.parent for _, path in files if path.name == "pyvenv.cfg"}
    return [
        (file, path)
        for file, path in files
        if "__pycache__" not in path.parts and environments.isdisjoint(path.parents)
    ]


def readable(
    files: Iterable[tuple[Path, str]], skip_unreadable: bool, remarks: list[str]
) -> list[SourceFile | SourceDocument]:
    """Files with their titles as documents; what is empty, has a path that is no title or, if asked for, is unreadable
    is left out and noted.

    Raises:
        CorpusError: a file cannot be read or is not UTF-8, unless those are skipped.
    """
    kept: list[SourceFile | SourceDocument] = []
    for file, title in files:
        try:
            text = read_markdown(file)
        except CorpusError as error:
            remarks.append(skipped(error, skip_unreadable))
            continue
        if not text.strip():
            remarks.append(f"{file}: left out, it is empty")
        elif not is_title(title):
            remarks.append(f"{str(file)!r}: left out, its path has spaces around it or a line break, and is no title")
        else:
            kept.append(SourceFile(title, file))
    return kept
