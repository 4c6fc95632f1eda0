"""A folder of notes: which files it has, what each is called, and which of them a link means."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ds2ds.corpus.build.note import Note, read_note, skipped
from ds2ds.documents.link_scanner import is_external
from ds2ds.documents.title_utils import title_key
from ds2ds.errors import CorpusError

ENDINGS = (".md", ".markdown")


def _normal(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def without_ending(path: str) -> str:
    """`path` without ``.md`` or ``.markdown``."""
    base, ending = posixpath.splitext(path)
    return base if ending.lower() in ENDINGS else path


def is_markdown(path: PurePosixPath) -> bool:
    return path.suffix.lower() in ENDINGS


def list_files(source: Path, skip_unreadable: bool, remarks: list[str]) -> list[tuple[Path, PurePosixPath]]:
    """The files under `source` with their paths in it, in order of path; hidden ones and hidden folders are left out.

    Links to folders are not followed, for they may lead round in a circle: that is noted.

    Raises:
        CorpusError: no such folder; one that cannot be read, unless those are skipped, and noted.
    """
    if not source.is_dir():
        raise CorpusError(f"no folder at {source}")

    def failed(error: OSError) -> None:
        unread = CorpusError(f"{error.filename}: cannot read it ({error.strerror or error})")
        remarks.append(skipped(unread, skip_unreadable))

    found = []
    for folder, folders, names in os.walk(source, onerror=failed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [path for path in (Path(folder) / name for name in folders) if path.is_symlink()]
        remarks += [f"{path}: left out, it is a link to a folder" for path in linked]
        for name in names:
            if not name.startswith("."):
                file = Path(folder) / name
                path = unicodedata.normalize("NFC", file.relative_to(source).as_posix())
                found.append((file, PurePosixPath(path)))
    return sorted(found, key=lambda pair: (str(pair[1]), str(pair[0])))


def _one_line(title: str) -> str:
    return " ".join(title.split())  # folders may have any spaces around them


def _distinct(notes: list[Note]) -> list[Note]:
    """The notes with titles that differ: those that share one get their folder before it, then their path behind it,
    then a number."""
    shared = Counter(note.title for note in notes)
    notes = [
        replace(note, title=_one_line(str(note.path.parent / note.title))) if shared[note.title] > 1 else note
        for note in notes
    ]
    shared = Counter(note.title for note in notes)
    titles: dict[str, Note] = {}
    for note in notes:
        title = name = _one_line(f"{note.title} ({note.path})") if shared[note.title] > 1 else note.title
        copy = 2
        while title in titles:  # paths too may be the same, but for how accents are encoded
            title, copy = f"{name} ({copy})", copy + 1
        titles[title] = replace(note, title=title)
    return list(titles.values())


class Vault:
    """The notes of a folder, by what links call them.

    Args:
        notes: in order of path.
        attachments: the names of the folder's other files.

    Attributes:
        notes: the same with distinct titles: where several notes share one, each has its folder before it ("a/Todo"),
            save in the top folder, which has none.
    """

    def __init__(self, notes: Iterable[Note], attachments: Iterable[str] = ()) -> None:
        self._attachments = {_normal(name) for name in attachments}
        self.notes = _distinct(list(notes))
        self._by_path: dict[str, list[Note]] = defaultdict(list)
        self._by_suffix: dict[str, list[Note]] = defaultdict(list)
        self._by_name: dict[str, list[Note]] = defaultdict(list)
        for note in self.notes:
            parts = _normal(str(note.path.with_suffix(""))).split("/")
            self._by_path["/".join(parts)].append(note)
            for start in range(len(parts)):
                self._by_suffix["/".join(parts[start:])].append(note)
            for key in set(map(title_key, _names(note))):
                self._by_name[key].append(note)

    def resolve(self, target: str, source: Note) -> Note | None:
        """The note that `target` (a path or a name, decoded, without ``#heading``) means in `source`, or None.

        In turn: the path from the note's folder, the path from the top folder, the end of a path, a title or alias.
        Case does not count, but of several notes it is the one written just so, else one in the same folder, else the
        one highest up, else the first in order of path.
        """
        target = unicodedata.normalize("NFC", target.strip())
        path = without_ending(target)
        folders = ["."] if path.startswith("/") else [str(source.path.parent), "."]
        path = path.lstrip("/")
        absolute = [posixpath.normpath(posixpath.join(folder, path)) for folder in folders]
        end = posixpath.normpath(path)
        while end.startswith("../"):
            end = end[3:]
        for candidates, name in [
            *((self._by_path.get(place.casefold()), place) for place in absolute),
            (self._by_suffix.get(end.casefold()), end),
            (self._by_name.get(title_key(target)), target),
        ]:
            if candidates:
                return min(candidates, key=lambda note: _rank(note, name, source))
        return None

    def redirects(self) -> dict[str, str]:
        """Name -> title, for the other names of notes that are one note's alone; in order of name."""
        titles = {title_key(note.title) for note in self.notes}
        return {
            name: note.title
            for name, note in sorted(((n, note) for note in self.notes for n in _names(note)), key=lambda pair: pair[0])
            if len(self._by_name[title_key(name)]) == 1 and title_key(name) not in titles
        }

    def is_attachment(self, target: str) -> bool:
        """Whether `target`, a path, has the name of a file that is no note."""
        return _normal(target.partition("#")[0].strip().rpartition("/")[2]) in self._attachments


def _names(note: Note) -> tuple[str, ...]:
    return (note.title, note.own_title, *note.aliases)


def _rank(note: Note, name: str, source: Note) -> tuple[bool, bool, int, str]:
    path = str(note.path.with_suffix(""))
    just_so = name in _names(note) or path == name or path.endswith(f"/{name}")
    return not just_so, note.path.parent != source.path.parent, len(note.path.parts), str(note.path)


def read_vault(source: Path, title_from: str, skip_unreadable: bool) -> tuple[Vault, list[str]]:
    """Read what the notes under `source` are called. Also returns a line for each note that is left out or odd.

    Raises:
        CorpusError: no such folder; a file that cannot be read or is not UTF-8, unless those are skipped.
    """
    notes: list[Note] = []
    remarks: list[str] = []
    files = list_files(source, skip_unreadable, remarks)
    for file, path in files:
        if not is_markdown(path):
            continue
        try:
            note = read_note(file, path, title_from)
        except CorpusError as error:
            remarks.append(skipped(error, skip_unreadable))
            continue
        if note.problem is not None:
            remarks.append(f"{file}: front matter ignored ({note.problem})")
        if note.empty:
            remarks.append(f"{file}: left out, it is empty")
            continue
        notes.append(note)
        if is_external(note.title):
            remarks.append(f"{file}: no link will lead to it, its title {note.title!r} reads as an address")
    return Vault(notes, [path.name for _, path in files if not is_markdown(path)]), remarks
