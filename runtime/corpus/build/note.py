"""One markdown file: its title, its other names and its body."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ds2ds.corpus.build.front_matter import read_front_matter
from ds2ds.corpus.names import is_unicode
from ds2ds.documents.title_utils import title_key
from ds2ds.errors import CorpusError

_HEADING = re.compile(
    r"\s*^ {0,3}(?:#[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*|(\S.*?)[ \t]*\n {0,3}=+[ \t]*)(?:\n|\Z)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Note:
    """A markdown file of a folder.

    Attributes:
        path: relative to the folder, NFC.
        file: where it lies.
        title: the document's, distinct within the folder once a Vault has them all.
        own_title: what the note itself says: of the front matter, else as asked for, else the file's name without
            its ending.
        aliases: other names that links may use: its file's, which need not be its title, and those of the front matter.
        problem: what is wrong with its front matter, or None.
        empty: whether nothing is left below its title.
    """

    path: PurePosixPath
    file: Path
    title: str
    own_title: str
    aliases: tuple[str, ...]
    problem: str | None
    empty: bool


def read_markdown(file: Path) -> str:
    """A file's text, with ``\\n`` line ends and without a byte order mark.

    Raises:
        CorpusError: it cannot be read, or it or its name, which becomes a title, is not UTF-8.
    """
    if not is_unicode(str(file)):
        raise CorpusError(f"{str(file)!a}: its name is not UTF-8")
    if file.exists() and not file.is_file():  # to read a pipe would be to wait for a writer
        raise CorpusError(f"{file}: cannot read it (not a regular file)")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise CorpusError(f"{file}: cannot read it ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file}: not UTF-8 (byte {error.start})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def skipped(error: CorpusError, skip_unreadable: bool) -> str:
    """The remark on a file that cannot be read, and is left out.

    Raises:
        CorpusError: such files are not to be left out.
    """
    if not skip_unreadable:
        raise CorpusError(f"{error}; mend it, or leave it out by --skip-unreadable (skip_unreadable=True)") from error
    return f"skipped: {error}"


def _split_heading(body: str) -> tuple[str | None, str]:
    match = _HEADING.match(body)
    return (None, body) if match is None else (" ".join((match[1] or match[2]).split()), body[match.end() :])


def note_body(text: str, titles: set[str]) -> str:
    """A note's text without front matter, and without a first heading that only repeats one of its `titles` (the
    layout writes it at run time)."""
    _, body = read_front_matter(text)
    heading, rest = _split_heading(body)
    if heading is not None and title_key(unicodedata.normalize("NFC", heading)) in set(map(title_key, titles)):
        body = rest
    return body.rstrip().lstrip("\n")


def read_note(file: Path, path: PurePosixPath, title_from: str) -> Note:
    """Read what a note is called. `title_from`: "name" (of the file) or "heading" (the first one, at its head).

    Raises:
        CorpusError: it cannot be read.
    """
    text = read_markdown(file)
    matter, body = read_front_matter(text)
    # A name of nothing but spaces is called by its ending.
    stem = unicodedata.normalize("NFC", " ".join(path.stem.split()) or path.suffix)
    heading = _split_heading(body)[0] if title_from == "heading" else None
    title = unicodedata.normalize("NFC", matter.title or heading or stem)
    empty = not note_body(text, {title, stem}).strip()
    aliases = (unicodedata.normalize("NFC", alias) for alias in matter.aliases)
    return Note(path, file, title, title, (stem, *aliases), matter.problem, empty)
