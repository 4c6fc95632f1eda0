from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from foreign_corpus import write_foreign_corpus

from ds2ds.corpus import document_corpus, index, search
from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.errors import CorpusError

TOKENS = {"C": [1, 2], "C++": [65535], "Linked list": [], "Tree": [4, 5, 6]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_foreign_corpus(tmp_path / "corpus", TOKENS, {"Tree": ["C"]})


@pytest.mark.parametrize(("dtype", "top"), [("uint16", 65535), ("uint32", 70000)])
def test_get_document(tmp_path: Path, dtype: str, top: int) -> None:
    folder = write_foreign_corpus(tmp_path, {"A": [1], "B": [2, top], "C": [3]}, dtype=dtype)
    with DocumentCorpus(folder) as corpus:
        tokens = corpus.get_document("b")
        assert isinstance(tokens, np.ndarray)
        assert type(tokens) is np.ndarray
        assert tokens.dtype == np.dtype(dtype)
        assert tokens.tolist() == [2, top]
        assert corpus.get_document("C").tolist() == [3]  # type: ignore[union-attr]
        assert corpus.get_document("D") is None


def test_look_ups(folder: Path) -> None:
    with DocumentCorpus(str(folder)) as corpus:
        assert corpus.path == folder
        assert len(corpus) == 4
        assert list(corpus.titles()) == list(TOKENS)
        assert corpus.has_document("linked_list")
        assert not corpus.has_document("C#")
        assert "tree" in corpus
        assert corpus.resolve("c++") == "C++"
        assert corpus.resolve("id:Tree") == "Tree"
        assert corpus.resolve("c plus plus") is None
        assert corpus.resolve("\udcff") is None  # an undecodable byte of a command line
        assert corpus.get_document("Linked list").size == 0  # type: ignore[union-attr]
        assert corpus.get_title_variants("Linked_List")[:2] == ["Linked_List", "Linked List"]
        for title in TOKENS:
            assert title in corpus.get_title_variants(title)


def test_after_close_everything_is_an_error(folder: Path) -> None:
    corpus = DocumentCorpus(folder)
    corpus.close()
    corpus.close()
    for look_up in (corpus.get_document, corpus.has_document, corpus.resolve):
        with pytest.raises(CorpusError, match="closed"):
            look_up("C")
    with pytest.raises(CorpusError, match="closed"):
        list(corpus.titles())


def edit_metadata(folder: Path, **fields: object) -> None:
    path = folder / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_path_that_is_no_corpus(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere: there is no such folder"):
        DocumentCorpus(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match="it is a file, expected a folder"):
        DocumentCorpus(folder / "metadata.json")
    for name in ("tokenized_graph.jsonl", "metadata.json"):
        (folder / name).unlink()
        with pytest.raises(CorpusError, match=f"{name} is missing"):
            DocumentCorpus(folder)


@pytest.mark.parametrize("name", ["tokenizer", "dtype_str", "shard_filenames"])
def test_a_missing_field_of_the_metadata_is_named(folder: Path, name: str) -> None:
    path = folder / "metadata.json"
    fields = json.loads(path.read_text())
    del fields[name]
    path.write_text(json.dumps(fields))
    with pytest.raises(CorpusError, match=rf"metadata\.json: missing {name}"):
        DocumentCorpus(folder)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dtype_str": "int64"}, "dtype_str must be one of uint16, uint32, got 'int64'"),
        ({"dtype_str": 16}, "dtype_str must be a string, got 16"),
        ({"tokenizer": None}, "tokenizer must be a string, got None"),
        ({"shard_filenames": "a"}, "shard_filenames must be a list of strings, got 'a'"),
        ({"shard_filenames": [1]}, "shard_filenames must be a list of strings"),
    ],
)
def test_a_wrong_field_of_the_metadata_is_named(folder: Path, fields: dict[str, object], reason: str) -> None:
    edit_metadata(folder, **fields)
    with pytest.raises(CorpusError, match=reason):
        DocumentCorpus(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "not valid JSON"), ("[" * 100_000, "not valid JSON"), ("[]", "expected a JSON object, got list")],
)
def test_metadata_that_is_no_object(folder: Path, content: str, reason: str) -> None:
    (folder / "metadata.json").write_text(content)
    with pytest.raises(CorpusError, match=reason):
        DocumentCorpus(folder)


def test_a_damaged_shard_is_named_with_the_document_and_leaves_the_others(folder: Path) -> None:
    shard = folder / "tokens-1.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with DocumentCorpus(folder) as corpus:
        assert corpus.get_document("C").tolist() == [1, 2]  # type: ignore[union-attr]
        with pytest.raises(CorpusError, match=r"document 'Tree': .*tokens-1\.bin: 1028 bytes, but its header"):
            corpus.get_document("Tree")


def test_another_dtype_than_the_shards_is_named(folder: Path) -> None:
    edit_metadata(folder, dtype_str="uint32")
    with (
        DocumentCorpus(folder) as corpus,
        pytest.raises(CorpusError, match=r"tokens-0\.bin: 2 bytes per token, metadata\.json says 4"),
    ):
        corpus.get_document("C")


def test_a_node_outside_of_its_shard_is_named(folder: Path) -> None:
    path = folder / "tokenized_graph.jsonl"
    path.write_text(path.read_text().replace('"tok_len": 3', '"tok_len": 4'))
    edited = path.read_text()
    with (
        DocumentCorpus(folder) as corpus,
        pytest.raises(CorpusError, match=r"'Tree': .*4 tokens at byte 1024 do not"),
    ):
        corpus.get_document("Tree")
    path.write_text(edited.replace('"tok_shard_idx": 1', '"tok_shard_idx": 7'))
    with DocumentCorpus(folder) as corpus, pytest.raises(CorpusError, match=r"'Tree': .*no shard 7"):
        corpus.get_document("Tree")


READ_AT_ONCE = """
import json, multiprocessing, sys
from concurrent.futures import ThreadPoolExecutor
from ds2ds import DocumentCorpus

tokens = json.loads(sys.argv[2])

def read(corpus):
    return all(corpus.get_document(title).tolist() == body for title, body in tokens.items())

with DocumentCorpus(sys.argv[1]) as corpus, ThreadPoolExecutor(4) as pool:
    assert all(pool.map(lambda _: all(read(corpus) for _ in range(50)), range(4)))
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=lambda: sys.exit(0 if read(corpus) else 1)) for _ in range(2)]
    for child in children:
        child.start()
    assert read(corpus)
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0]
"""


def test_threads_and_forked_children_read_at_once(folder: Path) -> None:
    # In an interpreter of its own: what other tests have loaded here has threads that do not survive a fork.
    arguments = [sys.executable, "-c", READ_AT_ONCE, str(folder), json.dumps(TOKENS)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_demo_is_packaged() -> None:
    with DocumentCorpus("demo") as corpus:
        assert len(corpus) >= 11_800
        assert corpus.metadata.tokenizer == "gpt2"
        assert corpus.resolve("garbage collection") is not None
        assert corpus.resolve("C#") != corpus.resolve("C")


def test_the_packaged_indexes_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each user's first run would build them."""

    def refuse(*arguments: object) -> None:
        raise RuntimeError(f"the packaged corpus needs a new index: {arguments}")

    monkeypatch.setattr(index, "build_index", refuse)
    monkeypatch.setattr(search, "build_search_index", refuse)
    with DocumentCorpus("demo") as corpus:
        search.CorpusSearch(corpus).close()
        indexes = ("index.sqlite", "search.sqlite")
        assert sum((corpus.path / name).stat().st_size for name in indexes) < 6_000_000


def test_demo_that_is_not_installed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_corpus, "files", lambda package: tmp_path)
    with pytest.raises(CorpusError, match="the packaged corpus is not installed"):
        DocumentCorpus("demo")


def test_opening_imports_neither_torch_nor_the_tokenizer() -> None:
    code = (
        "import sys; from ds2ds.corpus.document_corpus import DocumentCorpus; "
        "DocumentCorpus('demo').get_document('C'); "
        "print([name for name in ('torch', 'tiktoken', 'rich', 'typer') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
