"""The SQLite index beside tokenized_graph.jsonl: it makes opening a corpus independent of its size.

A row a node: its names, where its tokens lie, where its line lies in the JSON lines (edges are read from there), and
how many documents link to it. An index belongs to a graph file by that file's size and a digest of its bytes, not by
its time of change, which an installation alters. It is built into a temporary file and moved into place, so several
processes may build it at once; beside a corpus that cannot be written to, it goes to the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ds2ds.corpus.format import GRAPH_NAME
from ds2ds.corpus.names import is_unicode
from ds2ds.documents.title_utils import title_key
from ds2ds.errors import CorpusError
from ds2ds.files import atomic_write, user_cache

INDEX_NAME = "index.sqlite"
_SCHEMA_VERSION = "2"

Progress = Callable[[int, int], None]
"""Told (done, of how many), in percent."""

_PROGRESS_ROWS = 10_000
_SORT_KB = 64 << 10  # of memory for sorting the names; the rest goes to temporary files

# A graph file up to this size is digested whole; of a larger one, evenly spaced blocks of this size in all.
_DIGEST_BYTES = 8 << 20
_DIGEST_BLOCKS = 64

_META = "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"
_SCHEMA = """
CREATE TABLE nodes (
    id INTEGER PRIMARY KEY, title TEXT, identifier TEXT, key TEXT,
    shard INTEGER, offset INTEGER, length INTEGER, line_start INTEGER, line_length INTEGER,
    incoming INTEGER
);
CREATE TABLE totals (tokens INTEGER, links INTEGER);
"""
_INDEXES = (
    "CREATE INDEX by_title ON nodes (title)",
    "CREATE INDEX by_identifier ON nodes (identifier)",
    "CREATE INDEX by_key ON nodes (key)",
)
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
    where = f"{path}, line {line_number}"
    try:
        node = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(node, dict):
        raise CorpusError(f"{where}: expected a JSON object, got {type(node).__name__}")
    for name, kind in _FIELDS.items():
        if name not in node:
            raise CorpusError(f"{where}: missing {name}")
        value = node[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CorpusError(f"{where}: {name} must be {kind.__name__}, got {value!r}")
        if isinstance(value, int) and not 0 <= value < 1 << 63:
            raise CorpusError(f"{where}: {name} is out of range, got {value}")
        if isinstance(value, str) and not is_unicode(value):
            raise CorpusError(f"{where}: {name} has half of a surrogate pair, got {value!r}")
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


def _rows(graph: Path, links: list[int], progress: Progress) -> Iterator[tuple[object, ...]]:
    """The nodes' rows. `links` comes to hold the number of edges; rows are seven tenths of the work."""
    size, start = graph.stat().st_size, 0
    with graph.open("rb") as file:
        for number, line in enumerate(file):
            node = parse_node(line, graph, number + 1)
            title, identifier = node["raw_identifier"], node["normed_identifier"]
            place = (node["tok_shard_idx"], node["tok_offset_bytes"], node["tok_len"], start, len(line))
            yield (number, title, identifier, title_key(title), *place, len(node["incoming"]))
            start += len(line)
            links[0] += len(node["outgoing"])
            if (number + 1) % _PROGRESS_ROWS == 0:
                progress(70 * start // size, 100)


def build_index(graph: Path, out: Path, progress: Progress = lambda done, total: None) -> None:
    """Index the graph file `graph` as the SQLite file `out`, which appears complete or not at all.

    Raises:
        CorpusError: a line of `graph` is malformed (names it), or there is none.
        OSError: `out` cannot be written.
    """

    def fill(database: sqlite3.Connection) -> None:
        links = [0]
        database.execute(f"PRAGMA cache_size = -{_SORT_KB}")
        database.executescript(_SCHEMA)
        database.executemany("INSERT INTO nodes VALUES (?,?,?,?,?,?,?,?,?,?)", _rows(graph, links, progress))
        count, tokens = database.execute("SELECT count(*), sum(length) FROM nodes").fetchone()
        if not count:
            raise CorpusError(f"{graph}: the graph has no documents")
        database.execute("INSERT INTO totals VALUES (?, ?)", (tokens, links[0]))
        for done, statement in enumerate(_INDEXES, start=1):
            database.execute(statement)
            if count >= _PROGRESS_ROWS:
                progress(70 + 10 * done, 100)

    build_database(out, graph, _SCHEMA_VERSION, fill)


def build_database(out: Path, graph: Path, schema_version: str, fill: Callable[[sqlite3.Connection], None]) -> None:
    """Build the SQLite file `out` for the graph file `graph`: filled elsewhere, marked, then moved into place.

    Raises:
        OSError: it cannot be written.
    """
    fingerprint = graph_fingerprint(graph)

    def write(partial: Path) -> None:
        with contextlib.closing(sqlite3.connect(partial)) as database:
            # Nobody sees the file before it is whole, so a journal would only cost time.
            database.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_META}")
            marks = [("schema", schema_version), ("graph", fingerprint)]
            database.executemany("INSERT INTO meta VALUES (?, ?)", marks)
            fill(database)
            database.commit()

    try:
        atomic_write(out, write)
    except sqlite3.OperationalError as error:  # what SQLite makes of a full disk
        raise OSError(f"cannot write {out}: {error}") from error


class Database:
    """A read-only SQLite file that threads share and forked children open anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inherited: list[sqlite3.Connection] = []
        self._state: tuple[int, threading.Lock, sqlite3.Connection] | None = self._connect()

    def _connect(self) -> tuple[int, threading.Lock, sqlite3.Connection]:
        # immutable: the file is only ever replaced whole, so no locks are taken and a read-only disk will do.
        uri = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
        try:
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        except sqlite3.Error as error:
            raise CorpusError(f"{self.path}: cannot open this index ({error})") from error
        return os.getpid(), threading.Lock(), connection

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        """All rows of a statement.

        Raises:
            CorpusError: the database is closed or damaged.
        """
        state = self._state
        if state is None:
            raise CorpusError(f"the corpus index {self.path} is closed")
        if state[0] != os.getpid():
            # The parent's threads may have held its locks at the fork: its connection is neither used nor closed.
            self._inherited.append(state[2])
            state = self._state = self._connect()
        _, lock, connection = state
        with lock:
            try:
                return connection.execute(sql, parameters).fetchall()
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter: SQLite quotes what is damaged
                raise CorpusError(
                    f"{self.path}: cannot read this index ({error}); delete it to have it rebuilt"
                ) from error

    def close(self) -> None:
        """Close the connection. Closing twice is fine."""
        state, self._state = self._state, None
        if state is not None and state[0] == os.getpid():
            with state[1]:
                state[2].close()


def _open_current(path: Path, schema_version: str, fingerprint: str) -> Database | None:
    """The index at `path`, or None where there is none, or one of another graph or version, or a damaged one."""
    if not path.is_file():
        return None
    try:
        database = Database(path)
    except CorpusError:
        return None
    try:
        marks = dict(database.query("SELECT name, value FROM meta"))
    except CorpusError:
        marks = {}
    if marks == {"schema": schema_version, "graph": fingerprint}:
        return database
    database.close()
    return None


def places(folder: Path, name: str) -> list[Path]:
    """Where a file that is made of a corpus may be: beside it, else in the user's cache, if there is one."""
    beside = folder / name
    try:
        cache = user_cache() / "corpus"
    except FileNotFoundError:
        return [beside]
    return [beside, cache / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16] / name]


def unwritable(what: str, tried: list[Path], problem: Exception) -> CorpusError:
    """The error that a file made of a corpus can be written to none of its `places`."""
    return CorpusError(
        f"cannot write {what} to {' or '.join(map(str, tried))} ({problem}); XDG_CACHE_HOME may name another folder"
    )


def open_database(
    folder: Path,
    name: str,
    schema_version: str,
    build: Callable[[Path], None],
) -> Database:
    """Open the index `name` of the corpus in `folder`, beside it or in the user's cache; build it if none is current.

    Args:
        build: called with the path of the file to make.

    Raises:
        CorpusError: the corpus is malformed, or the index can be written to neither place.
    """
    fingerprint = graph_fingerprint(folder / GRAPH_NAME)
    tried = places(folder, name)
    for path in tried:
        database = _open_current(path, schema_version, fingerprint)
        if database is not None:
            return database
    for path in tried:
        try:
            build(path)
        except OSError as error:
            problem = error
            continue
        return Database(path)
    raise unwritable("the corpus' index", tried, problem)


def open_index(folder: Path, progress: Progress = lambda done, total: None) -> Database:
    """The node index of the corpus in `folder`, built on first use; a corpus of some size tells its progress."""
    return open_database(
        folder, INDEX_NAME, _SCHEMA_VERSION, lambda out: build_index(folder / GRAPH_NAME, out, progress)
    )
