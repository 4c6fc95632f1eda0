from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_corpus import write_foreign_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.corpus.search import SEARCH_NAME, CorpusSearch, corpus_tokenizer, document_text
from ds2ds.corpus.statistics import LinkCount, link_targets, sample_links
from ds2ds.errors import ConfigError, CorpusError
from ds2ds.tokenizer import as_tokenizer

DOCUMENTS = [
    SourceDocument("C", "A language that C++ grew out of. It has pointers."),
    SourceDocument("C++", "A language with classes and pointers."),
    SourceDocument("Pointer", "An address. " + "Nothing else is said. " * 30 + "Pointing is not polite."),
    SourceDocument("Garbage collection", "Frees memory; see [Pointer](Pointer) and [Heap](Heap).\n\nÉtude"),
    SourceDocument("Forest", "Trees, trees and more trees: a tree beside a tree."),
    SourceDocument("Tree", "Has leaves, and a name that no other word of this text repeats, however long it gets."),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DocumentCorpus]:
    folder = tmp_path_factory.mktemp("search") / "corpus"
    write_corpus(folder, DOCUMENTS)
    with DocumentCorpus(folder) as corpus:
        yield corpus


@pytest.fixture(scope="module")
def index(corpus: DocumentCorpus) -> CorpusSearch:
    return CorpusSearch(corpus)


def titles(index: CorpusSearch, words: str, limit: int = 10) -> list[str]:
    return [hit.title for hit in index.search(words, limit)]


def test_all_words_must_occur_if_they_can(index: CorpusSearch) -> None:
    assert titles(index, "language classes") == ["C++"]
    assert set(titles(index, "classes memory")) == {"C++", "Garbage collection"}
    assert titles(index, "zebra") == []
    assert set(titles(index, "zebra memory")) == {"Garbage collection"}


def test_words_match_by_stem_case_and_accent(index: CorpusSearch) -> None:
    assert set(titles(index, "POINTER")) == {"Pointer", "C", "C++", "Garbage collection"}
    assert titles(index, "freeing") == ["Garbage collection"]
    assert titles(index, "etude") == ["Garbage collection"]


def test_a_word_in_the_title_counts_most(index: CorpusSearch) -> None:
    hits = index.search("trees")
    assert [hit.title for hit in hits] == ["Tree", "Forest"]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_the_document_of_that_title_comes_first(index: CorpusSearch) -> None:
    assert titles(index, "c++")[0] == "C++"
    assert titles(index, "C")[0] == "C"
    assert len(titles(index, "C")) == len(set(titles(index, "C")))


def test_limit(index: CorpusSearch) -> None:
    assert len(titles(index, "pointers", 2)) == 2
    assert len(titles(index, "c++", 1)) == 1
    assert len(titles(index, "pointers", 2**63 - 1)) > 2
    two: Any = np.int64(2)
    assert len(titles(index, "pointers", two)) == 2


@pytest.mark.parametrize("limit", [0, -1, 2**63, 2.5, "2", None, True])
def test_wrong_limits(index: CorpusSearch, limit: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        index.search("pointers", limit)
    assert str(raised.value) == f"limit must be an integer from 1 to 9223372036854775807, got {limit!r}"


def test_the_snippet_is_the_best_passage_on_one_line(index: CorpusSearch) -> None:
    (hit,) = index.search("polite pointing", mark_start="<", mark_end=">")
    assert hit.snippet.endswith("<Pointing> is not <polite>.")
    assert hit.snippet.startswith("…")
    (hit,) = index.search("etude")
    assert "\n" not in hit.snippet
    assert hit.snippet.endswith("Étude")


@settings(deadline=None)
@given(st.text(max_size=20) | st.text(st.sampled_from("\"'*^:(){}+-AND OR NOT NEAR c\0\ud800"), max_size=20))
def test_no_input_is_a_syntax_error(index: CorpusSearch, words: str) -> None:
    for hit in index.search(words):
        assert hit.title in index.corpus


def test_an_index_is_built_for_a_corpus_that_has_none(tmp_path: Path) -> None:
    encode = as_tokenizer().encode
    documents = {document.title: encode(document.body) for document in DOCUMENTS}
    folder = write_foreign_corpus(tmp_path, documents)
    done: list[int] = []
    with DocumentCorpus(folder) as corpus:
        assert titles(CorpusSearch(corpus, progress=done.append), "classes") == ["C++"]
        assert done == [1, 2, 3, 4, 5, 6]
        assert titles(CorpusSearch(corpus, progress=done.append), "classes") == ["C++"]
        assert len(done) == 6
    assert (folder / SEARCH_NAME).is_file()


def test_a_damaged_shard_ends_the_building_of_an_index(tmp_path: Path) -> None:
    folder = write_foreign_corpus(tmp_path, {"A": [1], "B": [2], "C": [3]})
    (folder / "tokens-1.bin").write_bytes(b"")
    with DocumentCorpus(folder) as corpus, pytest.raises(CorpusError, match=r"document 'C': .*tokens-1\.bin"):
        CorpusSearch(corpus)
    assert not list(folder.glob("*search*"))


def test_a_corpus_of_another_tokenizer_needs_it(tmp_path: Path) -> None:
    pair = (lambda text: list(text.encode()), lambda ids: bytes(ids).decode(errors="replace"))
    write_corpus(tmp_path / "corpus", DOCUMENTS, "bytes", tokenizer=pair, search=False)
    with DocumentCorpus(tmp_path / "corpus") as corpus:
        with pytest.raises(ConfigError, match="is of tokenizer 'bytes', only 'gpt2' is packaged"):
            CorpusSearch(corpus)
        assert titles(CorpusSearch(corpus, pair), "classes") == ["C++"]
        assert document_text(corpus, "c", corpus_tokenizer(corpus, pair)) == DOCUMENTS[0].body


def test_after_close_searching_is_an_error(corpus: DocumentCorpus) -> None:
    index = CorpusSearch(corpus)
    index.close()
    with pytest.raises(CorpusError, match="closed"):
        index.search("x")


def test_document_text(corpus: DocumentCorpus) -> None:
    tokenizer = as_tokenizer()
    assert document_text(corpus, "garbage_collection", tokenizer) == DOCUMENTS[3].body
    assert document_text(corpus, "nothing", tokenizer) is None


def test_links_are_counted_in_a_sample(corpus: DocumentCorpus) -> None:
    tokenizer = as_tokenizer()
    assert link_targets("[a](B) [c](https://d.e) [f]() ![g](h) [i](J k)") == ("B", "J k")
    assert sample_links(corpus, tokenizer, 0) == LinkCount(6, 2, 1)
    assert sample_links(corpus, tokenizer, 99) == LinkCount(6, 2, 1)
    assert sample_links(corpus, tokenizer, 1) == LinkCount(1, 0, 0)
    assert sample_links(corpus, tokenizer, 2) == LinkCount(2, 2, 1)  # the first and the fourth


def test_searching_the_packaged_corpus() -> None:
    with DocumentCorpus("demo") as corpus:
        assert "mark-sweep garbage collection" in titles(CorpusSearch(corpus), "sweep garbage marking")
