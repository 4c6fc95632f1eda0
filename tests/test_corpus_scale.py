"""Corpora of many large shards, on little disk: sparse files (bench/sparse_corpus)."""

from __future__ import annotations

import os
import resource
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ds2ds import CorpusError, DocumentCorpus
from ds2ds.cli import app
from ds2ds.corpus.build.shard_writer import ShardWriter
from ds2ds.corpus.format import pack_header
from ds2ds.corpus.index import INDEX_NAME
from ds2ds.corpus.shards import OPEN_SHARDS, PretokShardedBackend
from ds2ds.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from corpus_scale import title
from sparse_corpus import STRIDE, SparseCorpus

LARGE = SparseCorpus(documents=20_000, tokens=44_000_000_000, shards=32, links=3, dtype="uint32")
"""176 GB of tokens in shards of 5.5 GB."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "corpus"
    LARGE.write(folder)
    return folder


def test_offsets_beyond_four_gibibytes_are_read(large: Path) -> None:
    told: list[tuple[int, int]] = []
    with DocumentCorpus(large, lambda done, total: told.append((done, total))) as corpus:
        assert told[0][0] in (34, 35) and told[1:] == [(70, 100), (80, 100), (90, 100), (100, 100)]
        assert len(corpus) == LARGE.documents
        tokens = sum(LARGE.length(number) for number in range(LARGE.documents))
        assert corpus.graph.totals() == (tokens, 3 * LARGE.documents) and tokens > 2**35
        assert (
            sum(file.stat().st_blocks for file in large.iterdir()) * 512
            < 50e6
            < 100e9
            < sum(path.stat().st_size for path in corpus.shards.paths)
        )
        far = [members[-1] // STRIDE * STRIDE for members in LARGE.shard_members()][::7]
        offsets = [corpus.graph.node(number).offset for number in far]
        assert max(offsets) > 2**32
        for number in [0, *far]:
            for at, expected in LARGE.edges(number):
                node = corpus.graph.node(number)
                place = node.offset + LARGE.width * at
                assert corpus.shards.read(node.shard, place, len(expected)).tolist() == expected.tolist()
        found = corpus.get_document(title(far[-1]))
        assert found is not None and np.array_equal(found, LARGE.body(far[-1]))
        assert corpus.graph.outgoing(title(5)) == [title(6), title(36), title(1014)]


def test_opening_it_again_tells_of_no_work(large: Path) -> None:
    DocumentCorpus(large).close()
    told: list[int] = []
    DocumentCorpus(large, lambda done, total: told.append(done)).close()
    assert not told


def test_the_command_line_tells_of_it_in_a_log(large: Path) -> None:
    (large / INDEX_NAME).unlink(missing_ok=True)
    done = CliRunner().invoke(app, ["corpus", "show", title(5), "--corpus", str(large)])
    assert done.exit_code == 0 and title(6) in done.stdout
    said = done.stderr.splitlines()
    assert said[-1] == "indexing the corpus, percent: 100 of 100" and 3 <= len(said) <= 10
    again = CliRunner().invoke(app, ["corpus", "show", title(5), "--corpus", str(large)])
    assert again.stdout == done.stdout and again.stderr == ""


def test_memory_and_descriptors_do_not_grow_with_the_corpus(large: Path) -> None:
    """Nothing that is as large as the graph or a shard comes into memory, but pages of files."""
    DocumentCorpus(large).close()

    def anonymous_kb() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))

    before = anonymous_kb()
    with DocumentCorpus(large) as corpus:
        for number in range(0, LARGE.documents, 97):
            assert corpus.has_document(title(number))
            node = corpus.graph.node(number)
            corpus.shards.read(node.shard, node.offset, 10)
        assert anonymous_kb() - before < 16_000


def test_most_linked_is_read_from_the_index(tmp_path: Path) -> None:
    plan = SparseCorpus(documents=300, tokens=3000, shards=3, links=2)
    plan.write(tmp_path / "corpus")
    with DocumentCorpus(tmp_path / "corpus") as corpus:
        assert corpus.most_linked(3) == [title(0), title(1), title(2)]  # all alike: in the order of the graph file
        assert len(corpus.most_linked(1000)) == 300


# Thousands of shards


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[SparseCorpus, Path]:
    folder = tmp_path_factory.mktemp("many") / "corpus"
    plan = SparseCorpus(documents=5000, tokens=50_000, shards=5000, links=1)
    plan.write(folder)
    return plan, folder


def test_five_thousand_shards_are_read_with_few_descriptors(many: tuple[SparseCorpus, Path]) -> None:
    plan, folder = many
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    already = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (already + OPEN_SHARDS + 20, hard))
    try:
        with DocumentCorpus(folder) as corpus:
            for number in [*range(5000), *range(0, 5000, STRIDE), 3, 3]:
                node = corpus.graph.node(number)
                assert corpus.read(node).tolist() == plan.body(number).tolist()
            assert len(os.listdir("/proc/self/fd")) <= already + OPEN_SHARDS + 2
        assert len(os.listdir("/proc/self/fd")) <= already
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_the_error_says_so(many: tuple[SparseCorpus, Path]) -> None:
    _, folder = many
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with DocumentCorpus(folder) as corpus:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 3, hard))
        try:
            with pytest.raises(CorpusError, match=r"shard_.*: cannot (map|read) this shard \(Too many open files\)"):
                for number in range(20):
                    corpus.read(corpus.graph.node(number))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_threads_share_shards_that_come_and_go(many: tuple[SparseCorpus, Path]) -> None:
    plan, folder = many
    wrong: list[object] = []

    def read(start: int) -> None:
        try:
            for number in range(start, start + 1200, 3):
                if shards.read(number, 1024, plan.length(number)).tolist() != plan.body(number).tolist():
                    wrong.append(number)
        except Exception as error:
            wrong.append(error)

    names = [f"shard_{shard:06d}.bin" for shard in range(5000)]
    shards = PretokShardedBackend(folder, names, "uint16")
    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 1, 2, 600)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# What a header can say


def test_a_shard_of_more_tokens_than_its_header_can_count(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="a shard holds at most 2,147,483,647 tokens, got 2,147,483,648"):
        pack_header(2**31, 2)
    with pytest.raises(ConfigError, match="max_tokens_per_shard must be at most 2,147,483,647, got 2,147,483,648"):
        ShardWriter(tmp_path, "uint16", 2**31)
