from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.corpus.build.interrupts import interrupts_held_back
from ds2ds.corpus.build.links import format_link
from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.documents.link_scanner import is_external
from ds2ds.documents.title_utils import create_filename
from ds2ds.errors import ConfigError, CorpusError
from ds2ds.tokenizer import as_tokenizer

DOCUMENTS = [
    SourceDocument(
        "C", "A [language](B), see [C++](c++), [itself](c), [B](B) again, [gone](Gone), [web](https://x.y)."
    ),
    SourceDocument("C++", "More than [C](C). `[code](B)` ![image](B)"),
    SourceDocument("B", "Nothing after this: 日本 \N{GRINNING FACE}"),
]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_files_are_those_of_the_format(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "corpus"
    summary = write_corpus(out, DOCUMENTS)
    assert (summary.documents, summary.links, summary.unresolved, summary.shards) == (3, 4, 1, 1)
    assert json.loads((out / "metadata.json").read_text()) == {
        "tokenizer": "gpt2",
        "dtype_str": "uint16",
        "shard_filenames": ["shard_000000.bin"],
    }
    nodes = [json.loads(line) for line in (out / "tokenized_graph.jsonl").read_text().splitlines()]
    names = {title: create_filename(title) for title in ("C", "C++", "B")}
    assert [node["raw_identifier"] for node in nodes] == ["C", "C++", "B"]
    assert [node["normed_identifier"] for node in nodes] == list(names.values())
    assert [node["outgoing"] for node in nodes] == [[names["B"], names["C++"]], [names["C"]], []]
    assert [node["incoming"] for node in nodes] == [[names["C++"]], [names["C"]], [names["C"]]]
    lengths = [node["tok_len"] for node in nodes]
    assert [node["tok_offset_bytes"] for node in nodes] == [
        1024,
        1024 + 2 * lengths[0],
        1024 + 2 * sum(lengths[:2]),
    ]
    assert summary.tokens == sum(lengths)
    assert not list(out.parent.glob(".*"))


def test_a_document_is_its_body_and_nothing_else(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", DOCUMENTS)
    tokenizer = as_tokenizer()
    with DocumentCorpus(tmp_path / "corpus") as corpus:
        for document in DOCUMENTS:
            tokens = corpus.get_document(document.title)
            assert tokens is not None
            assert tokens.tolist() == tokenizer.encode(document.body)


def test_the_same_documents_give_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    documents = [SourceDocument(f"T {i}", f"[x](T {i * 7 % 90}) " + "word " * i) for i in range(90)]
    for name, workers in (("a", 1), ("b", 1), ("c", 2)):
        write_corpus(tmp_path / name, documents, workers=workers)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def shout(item: tuple[str, str]) -> SourceDocument:
    if item[1] == "bad":
        raise CorpusError(f"{item[0]} cannot be read")
    return SourceDocument(item[0], item[1].upper())


def test_there_are_no_more_processes_than_work_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [SourceDocument(f"T{i}", f"t {i}") for i in range(40)]  # two batches
    started = []
    context: Any = type(multiprocessing.get_context("spawn"))
    pool = context.Pool

    def counted(self: Any, processes: int, *rest: Any) -> Any:
        started.append(processes)
        return pool(self, min(processes, 2), *rest)

    monkeypatch.setattr(context, "Pool", counted)
    assert write_corpus(tmp_path / "corpus", items, workers=1000).documents == 40
    with pytest.raises(CorpusError, match="there are no documents"):
        write_corpus(tmp_path / "other", [], workers=1000)
    assert started == [2]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_waits_until_all_processes_are_started() -> None:
    handler, mask = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    blocked = "import signal, sys; sys.exit(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    ended = []
    with pytest.raises(KeyboardInterrupt), interrupts_held_back():
        os.kill(os.getpid(), signal.SIGINT)
        ended.append(subprocess.run([sys.executable, "-c", blocked]).returncode)
    assert ended == [1]  # it is blocked there
    assert (signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ())) == (handler, mask)


@pytest.mark.parametrize("workers", [1, 2])
def test_load_runs_in_the_workers_and_its_errors_come_through(tmp_path: Path, workers: int) -> None:
    items = [(f"T{i}", f"body {i}") for i in range(40)]
    write_corpus(tmp_path / "corpus", items, load=shout, workers=workers)
    with DocumentCorpus(tmp_path / "corpus") as corpus:
        assert list(corpus.titles()) == [title for title, _ in items]
        assert corpus.get_document("T39").tolist() == as_tokenizer().encode("BODY 39")  # type: ignore[union-attr]
    with pytest.raises(CorpusError, match="T7 cannot be read"):
        write_corpus(tmp_path / "other", [*items[:7], ("T7", "bad")], load=shout, workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_shards_end_before_the_document_that_would_not_fit(tmp_path: Path) -> None:
    documents = [SourceDocument(f"T{i}", " a" * size) for i, size in enumerate([3, 3, 9, 1, 1])]
    summary = write_corpus(tmp_path / "corpus", documents, max_tokens_per_shard=6)
    with DocumentCorpus(tmp_path / "corpus") as corpus:
        assert [node.shard for node in corpus.graph.nodes()] == [0, 0, 1, 2, 2]
        assert [corpus.get_document(f"T{i}").size for i in range(5)] == [3, 3, 9, 1, 1]  # type: ignore[union-attr]
    assert summary.shards == 3


def test_progress_counts_documents(tmp_path: Path) -> None:
    done: list[int] = []
    write_corpus(tmp_path / "corpus", DOCUMENTS, progress=done.append)
    assert done == [1, 2, 3]


@pytest.mark.parametrize("force", [False, True])
def test_an_existing_corpus_is_replaced_only_when_told(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "corpus"
    out.mkdir()  # an empty folder is no obstacle
    write_corpus(out, DOCUMENTS)
    if force:
        write_corpus(out, DOCUMENTS[2:], force=True)
        with DocumentCorpus(out) as corpus:
            assert list(corpus.titles()) == ["B"]
    else:
        before = contents(out)
        with pytest.raises(CorpusError, match="corpus exists: pass --force"):
            write_corpus(out, DOCUMENTS[2:])
        assert contents(out) == before


def test_where_a_link_leads_is_where_it_goes(tmp_path: Path) -> None:
    out, disk = tmp_path / "corpus", tmp_path / "disk"
    out.symlink_to(disk / "corpus")
    for documents in (DOCUMENTS, DOCUMENTS[2:]):
        write_corpus(out, documents, force=True)
        with DocumentCorpus(disk / "corpus") as corpus:
            assert len(corpus) == len(documents)
    assert out.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "disk"}
    assert [path.name for path in disk.iterdir()] == ["corpus"]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_corpus_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.txt").write_text("four years")
    with pytest.raises(CorpusError, match="exists and is no corpus: not replaced"):
        write_corpus(tmp_path, DOCUMENTS, force=force)
    assert (tmp_path / "thesis.txt").read_text() == "four years"


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    write_corpus(out, DOCUMENTS)
    before = contents(out)

    def breaking() -> Iterator[SourceDocument]:
        yield DOCUMENTS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(out, breaking(), force=True)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize(
    ("documents", "reason"),
    [
        ([], "there are no documents"),
        ([SourceDocument("A", "x"), SourceDocument("A", "y")], "two documents are called 'A'"),
        ([SourceDocument("A", "")], "document 'A' has an empty body"),
        ([SourceDocument("", "x")], "a title must be one line"),
        ([SourceDocument(" A", "x")], "a title must be one line without spaces around it, got ' A'"),
        ([SourceDocument("A\nB", "x")], "a title must be one line"),
    ],
)
def test_documents_that_cannot_be_written(tmp_path: Path, documents: list[SourceDocument], reason: str) -> None:
    with pytest.raises(CorpusError, match=reason):
        write_corpus(tmp_path / "corpus", documents)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"max_tokens_per_shard": 0}, "max_tokens_per_shard must be positive, got 0"),
        ({"tokenizer_name": "cl100k_base"}, "only 'gpt2' is packaged"),
        (
            {"tokenizer": (lambda text: [1], lambda ids: "x"), "workers": 2},
            "a tokenizer of your own needs workers=1",
        ),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        write_corpus(tmp_path / "corpus", DOCUMENTS, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_ones_own_has_wide_tokens_unless_it_says_otherwise(tmp_path: Path) -> None:
    class Bytes:
        vocab_size: int | None = None

        def encode(self, text: str) -> list[int]:
            return list(text.encode())

        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode(errors="replace")

    tokenizer = Bytes()
    for size, dtype in ((None, "uint32"), (65536, "uint16"), (65537, "uint32")):
        tokenizer.vocab_size = size
        out = tmp_path / f"corpus{size}"
        write_corpus(out, DOCUMENTS, "bytes", tokenizer=tokenizer)
        with DocumentCorpus(out) as corpus:
            assert (corpus.metadata.tokenizer, corpus.metadata.dtype_str) == ("bytes", dtype)
            tokens = corpus.get_document("B")
            assert bytes(tokens.tolist()).decode() == DOCUMENTS[2].body  # type: ignore[union-attr]


def test_identifiers_that_collide_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds2ds.corpus.build.writer.create_filename", lambda title: "_abcdef")
    documents = [SourceDocument("日", "[x](本)"), SourceDocument("本", "[x](日)"), SourceDocument("語", "x")]
    write_corpus(tmp_path / "corpus", documents)
    with DocumentCorpus(tmp_path / "corpus") as corpus:
        assert [node.identifier for node in corpus.graph.nodes()] == ["_abcdef", "_abcdef_2", "_abcdef_3"]
        assert (corpus.graph.outgoing("日"), corpus.graph.outgoing("本")) == (["本"], ["日"])


# A title like "#here" is legal, but a link to it is one to a place in the same document.
TITLES = (
    st.text(st.sampled_from("aAbB_ +#()[]<>\\&;\"'!`*日"), min_size=1, max_size=6)
    .map(str.strip)
    .filter(lambda title: title and not is_external(title))
)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_edge_is_one_that_the_corpus_resolves(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    titles = data.draw(st.lists(TITLES, min_size=1, max_size=6, unique=True))
    targets = [data.draw(st.lists(TITLES | st.sampled_from(titles), max_size=4)) for _ in titles]
    documents = [
        SourceDocument(title, "x " + " and ".join(format_link("text", name) for name in names))
        for title, names in zip(titles, targets, strict=True)
    ]
    out = tmp_path_factory.mktemp("corpus") / "out"
    write_corpus(out, documents, search=False)
    with DocumentCorpus(out) as corpus:
        for title, names in zip(titles, targets, strict=True):
            resolved = dict.fromkeys(corpus.resolve(name) for name in names)
            assert corpus.graph.outgoing(title) == [name for name in resolved if name not in (None, title)]
