from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from foreign_corpus import write_foreign_corpus
from homeless import no_home

import ds2ds.corpus.index as index_module
from ds2ds.corpus.graph_index import GraphIndex
from ds2ds.corpus.index import INDEX_NAME, build_index, graph_fingerprint
from ds2ds.errors import CorpusError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_foreign_corpus(tmp_path / "corpus", {"A": [1], "B": [2, 3]}, {"A": ["B"]})


def titles(folder: Path) -> list[str]:
    graph = GraphIndex(folder)
    try:
        return list(graph)
    finally:
        graph.close()


def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The indexes built from here on."""
    built: list[Path] = []

    def counted(graph: Path, out: Path, *progress: Any) -> None:
        built.append(out)
        build_index(graph, out, *progress)

    monkeypatch.setattr(index_module, "build_index", counted)
    return built


def test_the_index_is_built_once_beside_the_corpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = builds(monkeypatch)
    assert titles(folder) == titles(folder) == ["A", "B"]
    assert built == [folder / INDEX_NAME]
    assert sorted(path.name for path in folder.iterdir() if "index" in path.name) == [INDEX_NAME]


def test_it_is_built_anew_when_the_graph_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles(folder)
    graph = folder / "tokenized_graph.jsonl"
    times = graph.stat()
    graph.write_text(graph.read_text().replace('"B"', '"D"'))
    os.utime(graph, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time: only the bytes tell
    built = builds(monkeypatch)
    assert titles(folder) == ["A", "D"]
    assert built == [folder / INDEX_NAME]


def test_it_stays_valid_when_copied(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles(folder)
    copy = tmp_path / "installed"
    shutil.copytree(folder, copy)
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    built = builds(monkeypatch)
    assert titles(copy) == ["A", "B"]
    assert built == []


def unwritable(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Nobody, not even root, can write in these folders."""

    def refusing(graph: Path, out: Path, *progress: Any) -> None:
        if any(out.is_relative_to(folder) for folder in folders):
            raise PermissionError(13, "Permission denied", str(out))
        build_index(graph, out, *progress)

    monkeypatch.setattr(index_module, "build_index", refusing)


def test_for_a_read_only_corpus_it_goes_to_the_cache(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwritable(monkeypatch, folder)
    assert titles(folder) == ["A", "B"]
    (cached,) = cache.rglob(INDEX_NAME)
    assert not (folder / INDEX_NAME).exists()
    unwritable(monkeypatch, folder, cache)
    assert titles(folder) == ["A", "B"]  # found there, not built again
    cached.unlink()
    with pytest.raises(CorpusError, match=r"index to .*index\.sqlite or .*Permission denied.*XDG_CACHE_HOME"):
        titles(folder)


def test_without_a_home_it_is_beside_the_corpus_or_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    no_home(monkeypatch)
    assert titles(folder) == ["A", "B"]
    (folder / INDEX_NAME).unlink()
    unwritable(monkeypatch, folder)
    with pytest.raises(CorpusError, match=r"index to .*index\.sqlite \(.*Permission denied.*XDG_CACHE_HOME"):
        titles(folder)


def test_a_really_read_only_folder(folder: Path, cache: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    folder.chmod(0o500)
    try:
        assert titles(folder) == ["A", "B"]
    finally:
        folder.chmod(0o700)
    assert len(list(cache.rglob(INDEX_NAME))) == 1


@pytest.mark.parametrize("content", [b"", b"not a database" * 100, b"SQLite format 3\0" + bytes(100)])
def test_a_file_that_is_no_index_is_replaced(folder: Path, content: bytes) -> None:
    (folder / INDEX_NAME).write_bytes(content)
    assert titles(folder) == ["A", "B"]


def test_an_index_of_another_version_is_replaced(folder: Path) -> None:
    titles(folder)
    with sqlite3.connect(folder / INDEX_NAME) as database:
        database.execute("UPDATE meta SET value = '0' WHERE name = 'schema'")
        database.execute("DROP TABLE nodes")
    database.close()
    assert titles(folder) == ["A", "B"]


def test_a_damaged_index_is_named(folder: Path) -> None:
    titles(folder)
    with sqlite3.connect(folder / INDEX_NAME) as database:
        database.execute("DROP TABLE nodes")
    database.close()
    with pytest.raises(CorpusError, match=r"index\.sqlite: cannot read this index .*delete it"):
        titles(folder)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "expected a JSON object, got list"),
        ("", "not valid JSON"),
        ('{"normed_identifier": "x"}', "missing raw_identifier"),
        ({"tok_len": "3"}, "tok_len must be int, got '3'"),
        ({"tok_len": True}, "tok_len must be int, got True"),
        ({"tok_offset_bytes": -1}, "tok_offset_bytes is out of range, got -1"),
        ({"tok_offset_bytes": 1 << 63}, "tok_offset_bytes is out of range"),
        ({"outgoing": None}, "outgoing must be list, got None"),
        ({"raw_identifier": "\ud800"}, "raw_identifier has half of a surrogate pair"),
    ],
)
def test_a_malformed_line_is_named(folder: Path, line: str | dict[str, object], reason: str) -> None:
    path = folder / "tokenized_graph.jsonl"
    first, second = path.read_text().splitlines()
    if isinstance(line, dict):
        line = json.dumps(json.loads(second) | line)
    path.write_text(f"{first}\n{line}\n")
    with pytest.raises(CorpusError, match=reason) as caught:
        GraphIndex(folder)
    assert f"{path}, line 2" in str(caught.value)
    assert list(folder.glob("*index*")) == []  # nothing half made is left


def test_an_empty_graph_is_an_error(folder: Path) -> None:
    (folder / "tokenized_graph.jsonl").write_text("")
    with pytest.raises(CorpusError, match="the graph has no documents"):
        GraphIndex(folder)


def test_a_large_graph_is_fingerprinted_by_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_DIGEST_BYTES", 640)
    path = tmp_path / "graph"
    data = bytearray(os.urandom(5000))
    prints = set()
    for change in (None, 0, 4999):  # the first and the last byte are always read
        if change is not None:
            data[change] ^= 1
        path.write_bytes(data)
        prints.add(graph_fingerprint(path))
    path.write_bytes(data + b"x")
    prints.add(graph_fingerprint(path))
    assert len(prints) == 4


def test_threads_share_an_index(folder: Path) -> None:
    graph = GraphIndex(folder)
    wrong: list[object] = []

    def read() -> None:
        for _ in range(200):
            node = graph.find("b")
            if node is None or node.title != "B" or graph.outgoing("A") != ["B"]:
                wrong.append(node)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    graph.close()


def _opened(folder: Path, start: threading.Barrier, found: multiprocessing.Queue[list[str]]) -> None:
    start.wait()
    found.put(titles(folder))


def test_processes_build_at_the_same_time(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_opened, args=(folder, start, found)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [found.get(timeout=30) for _ in processes] == [["A", "B"]] * 4
    for process in processes:
        process.join()
    assert list(folder.glob(".*")) == []


def test_an_open_index_works_after_a_fork_even_while_a_thread_held_it(folder: Path) -> None:
    graph = GraphIndex(folder)
    context = multiprocessing.get_context("fork")
    found = context.Queue()

    def child() -> None:
        found.put([node.title for node in graph.nodes()])
        graph.close()

    state = graph._database._state
    assert state is not None
    with state[1]:
        process = context.Process(target=child)
        process.start()
    assert found.get(timeout=30) == ["A", "B"]
    process.join()
    assert list(graph) == ["A", "B"]
    graph.close()
