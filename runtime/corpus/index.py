"""The SQLite index beside tokenized_graph.jsonl: it makes opening a corpus independent of its size.

A row a node: its names, where its tokens lie, and where its line lies in the JSON lines (edges are read from there). An
index belongs to a graph file by that file's size and a digest of its bytes, not by its time of change, which an
installation alters. It is built into a temporary file and moved into place, so several processes may build it at once;
beside a corpus that cannot be written to, it goes to the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ds2ds.corpus.format import GRAPH_NAME
from ds2ds.documents.title_utils import title_key
from ds2ds.errors import CorpusError

INDEX_NAME = "index.sqlite"
_SCHEMA_VERSION = "1"

# A graph file up to this size is digested whole; of a larger one, evenly spaced blocks of this size in all.
_DIGEST_BYTES = 8 << 20
_DIGEST_BLOCKS = 64

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE nodes (
    id INTEGER PRIMARY KEY, title TEXT, identifier TEXT, key TEXT,
    shard INTEGER, offset INTEGER, length INTEGER, line_start INTEGER, line_length INTEGER
);
"""
_INDEXES = """
CREATE INDEX by_title ON nodes (title);
CREATE INDEX by_identifier ON nodes (identifier);
CREATE INDEX by_key ON nodes (key);
"""
_FIELDS: dict[str, type] = {
    "normed_identifier": str,
    "raw_identifier": str,
    "outgoing": list,
    "incoming": list,
    "tok_shard_idx": int,
    "tok_offset_bytes": int,
    "tok_len": int,
}


def parse_node(line: bytes, path: Path, line_number: int) -> dict[str, Any]:
    """The fields of one line of the graph file.

    Raises:
        CorpusError: it is no JSON object, or a field is missing or of another type; names the line.
    """
    try:
        node = json.loads(line)
    except ValueError as error:
        raise CorpusError(f"{path}, line {line_number}: not valid JSON ({error})") from error
    if not isinstance(node, dict):
        raise CorpusError(f"{path}, line {line_number}: expected a JSON object, got {type(node).__name__}")
    for name, kind in _FIELDS.items():
        if name not in node:
            raise CorpusError(f"{path}, line {line_number}: missing {name}")
        if not isinstance(node[name], kind) or isinstance(node[name], bool):
            raise CorpusError(f"{path}, line {line_number}: {name} must be {kind.__name__}, got {node[name]!r}")
    return node


def graph_fingerprint(path: Path) -> str:
    """The size of the graph file and a digest of its bytes: all of them up to 8 MiB, 64 spaced blocks beyond."""
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if size <= _DIGEST_BYTES:
            digest.update(file.read())
        else:
            block = _DIGEST_BYTES // _DIGEST_BLOCKS
            for i in range(_DIGEST_BLOCKS):
                file.seek(i * (size - block) // (_DIGEST_BLOCKS - 1))
                digest.update(file.read(block))
    return f"{size}-{digest.hexdigest()}"


def _rows(graph: Path) -> Iterator[tuple[object, ...]]:
    start = 0
    with graph.open("rb") as file:
        for number, line in enumerate(file):
            node = parse_node(line, graph, number + 1)
            title = node["raw_identifier"]
            yield (
                number,
                title,
                node["normed_identifier"],
                title_key(title),
                node["tok_shard_idx"],
                node["tok_offset_bytes"],
                node["tok_len"],
                start,
                len(line),
            )
            start += len(line)


def build_index(graph: Path, out: Path) -> None:
    """Index the graph file `graph` as the SQLite file `out`, which appears complete or not at all.

    Raises:
        CorpusError: a line of `graph` is malformed (names it), or there is none.
        OSError, sqlite3.OperationalError: `out` cannot be written.
    """

    def fill(database: sqlite3.Connection) -> None:
        database.executescript(_SCHEMA)
        database.executemany("INSERT INTO nodes VALUES (?,?,?,?,?,?,?,?,?)", _rows(graph))
        (count,) = database.execute("SELECT count(*) FROM nodes").fetchone()
        if not count:
            raise CorpusError(f"{graph}: the graph has no documents")
        database.executescript(_INDEXES)

    build_database(out, graph, _SCHEMA_VERSION, fill)


def build_database(
    out: Path, graph: Path, schema_version: str, fill: Callable[[sqlite3.Connection], None]
) -> None:
    """Build the SQLite file `out` for the graph file `graph`: filled elsewhere, marked, then moved into place."""
    fingerprint = graph_fingerprint(graph)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    try:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as database:
            # Nobody sees the file before it is whole, so a journal would only cost time.
            database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN")
            fill(database)
            database.execute("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
            database.executemany(
                "INSERT INTO meta VALUES (?, ?)", [("schema", schema_version), ("graph", fingerprint)]
            )
            if database.in_transaction:
                database.execute("COMMIT")
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
