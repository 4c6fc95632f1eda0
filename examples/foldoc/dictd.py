"""Reads FOLDOC as Debian packages it: a dictd database (text plus index), inside a .deb or in a folder.

A dictd index is lines of `headword TAB offset TAB length`, the numbers in base 64 (dictd's own digits, most
significant first), counted in bytes of the uncompressed text. Several headwords may name the same bytes.
A .deb is an `ar` archive whose member data.tar.* holds the files.
"""

from __future__ import annotations

import gzip
import io
import string
import tarfile
from dataclasses import dataclass
from pathlib import Path

TEXT_NAME = "foldoc.dict.dz"
INDEX_NAME = "foldoc.index"

_DIGITS = {c: i for i, c in enumerate(string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/")}
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60


class SourceError(ValueError):
    """The source is not the dictionary this converter reads."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One dictionary entry: its headwords (the first is the title) and its text, still hard-wrapped."""

    headwords: tuple[str, ...]
    text: str


def read_entries(source: Path) -> list[Entry]:
    """Every FOLDOC entry of a .deb, or of a folder with foldoc.dict.dz and foldoc.index, in the file's order.

    Left out: dictd's own `00-database-*` records, and what Debian appended from its file Dictionary.debian,
    which is under another licence. Raises SourceError naming the file and what is wrong with it.
    """
    files = _files_of_deb(source) if source.is_file() else _files_of_folder(source)
    text = gzip.decompress(files[TEXT_NAME])
    spans = _parse_index(files[INDEX_NAME].decode("utf-8"), len(text))
    entries = []
    for (offset, length), names in sorted(spans.items()):
        if any(name.startswith("00-database") for name in names):
            continue
        entry = _parse_entry(text[offset : offset + length].decode("utf-8"))
        if entry.headwords[0] == "Dictionary.debian":
            break  # appended behind the last FOLDOC entry
        entries.append(entry)
    if not entries:
        raise SourceError(f"{source}: the index names no entries")
    return entries


def _parse_entry(record: str) -> Entry:
    # dictfmt leaves empty lines in front of a few headwords.
    head, _, text = record.lstrip("\n").partition("\n\n")
    headwords = tuple(" ".join(line.split()) for line in head.split("\n") if line.strip())
    if not headwords:
        raise SourceError(f"an entry without a headword: {record[:60]!r}")
    return Entry(headwords, text)


def _parse_index(index: str, text_bytes: int) -> dict[tuple[int, int], list[str]]:
    spans: dict[tuple[int, int], list[str]] = {}
    for number, line in enumerate(index.splitlines(), start=1):
        where = f"{INDEX_NAME} line {number}"
        fields = line.split("\t")
        if len(fields) != 3:
            raise SourceError(f"{where}: expected 3 tab-separated fields, got {len(fields)}")
        offset, length = _number(fields[1]), _number(fields[2])
        if offset + length > text_bytes:
            raise SourceError(f"{where}: {length} bytes at {offset} lie beyond the text's {text_bytes}")
        spans.setdefault((offset, length), []).append(fields[0])
    return spans


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        if digit not in _DIGITS:
            raise SourceError(f"{INDEX_NAME}: {digits!r} is not a dictd base-64 number")
        value = value * 64 + _DIGITS[digit]
    return value


def _files_of_folder(folder: Path) -> dict[str, bytes]:
    for name in (TEXT_NAME, INDEX_NAME):
        if not (folder / name).is_file():
            raise SourceError(f"{folder}: no {name} there; expected a .deb or a folder with both dictd files")
    return {name: (folder / name).read_bytes() for name in (TEXT_NAME, INDEX_NAME)}


def _files_of_deb(deb: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(_data_member(deb))) as archive:
        for member in archive:
            name = member.name.rsplit("/", 1)[-1]
            content = archive.extractfile(member) if name in (TEXT_NAME, INDEX_NAME) else None
            if content is not None:
                files[name] = content.read()
    missing = {TEXT_NAME, INDEX_NAME} - files.keys()
    if missing:
        raise SourceError(f"{deb}: holds no {', '.join(sorted(missing))}")
    return files


def _data_member(deb: Path) -> bytes:
    """The bytes of data.tar.*.

    An ar member is a 60-byte header (16 bytes of name; at 48, the size in decimal) and its data, padded to 2.
    """
    archive = deb.read_bytes()
    if not archive.startswith(_AR_MAGIC):
        raise SourceError(f"{deb}: not a .deb (no ar archive)")
    position = len(_AR_MAGIC)
    while position + _AR_HEADER_BYTES <= len(archive):
        header = archive[position : position + _AR_HEADER_BYTES]
        size = int(header[48:58])
        position += _AR_HEADER_BYTES
        if header[:16].startswith(b"data.tar"):
            return archive[position : position + size]
        position += size + size % 2
    raise SourceError(f"{deb}: no data.tar member")
