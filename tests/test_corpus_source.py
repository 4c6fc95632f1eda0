"""Targets from whatever corpus the caller has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted import EOS, TOKENIZER, Texts, decode, encode

from ds2ds import ConfigError, CorpusError, DocumentCorpus
from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.documents.document import Document
from ds2ds.documents.layout import Layout
from ds2ds.generation.corpus_source import CorpusSource, open_corpus
from ds2ds.generation.pairing import check_corpus
from ds2ds.tokenizer import as_tokenizer


def source(corpus: Any, policy: str = "null", vocab_size: int = TOKENIZER.vocab_size) -> CorpusSource:
    return CorpusSource(corpus, Layout(policy, encode, EOS), vocab_size)


class Given:
    """A corpus with one document, which it gives as it was made."""

    def __init__(self, body: Any) -> None:
        self.body = body

    def has_document(self, title: str) -> bool:
        return title == "A"

    def get_document(self, title: str) -> Any:
        return self.body


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    documents = [SourceDocument("Big O", "grows"), SourceDocument("actor", "one"), SourceDocument("Actor", "two")]
    write_corpus(out, documents, search=False)
    return out


# open_corpus


def test_no_corpus() -> None:
    assert open_corpus(None) is None


def test_a_path_as_path_or_string(folder: Path) -> None:
    for path in (folder, str(folder)):
        corpus = open_corpus(path)
        assert isinstance(corpus, DocumentCorpus) and corpus.has_document("Big O")
        corpus.close()


def test_demo() -> None:
    corpus = open_corpus("demo")
    assert isinstance(corpus, DocumentCorpus) and corpus.has_document("compiler")
    corpus.close()


def test_objects_are_taken_as_they_are(folder: Path) -> None:
    texts = Texts({})
    assert open_corpus(texts) is texts
    with DocumentCorpus(folder) as corpus:
        assert open_corpus(corpus) is corpus


@pytest.mark.parametrize("corpus", [5, {"A": [1]}, ["A"], object()])
def test_what_is_no_corpus(corpus: Any) -> None:
    with pytest.raises(ConfigError, match=f"have has_document and get_document, got {type(corpus).__name__}"):
        open_corpus(corpus)


def test_a_path_without_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nothing"):
        open_corpus(tmp_path / "nothing")


def test_a_corpus_of_another_tokenizer(folder: Path) -> None:
    layout = Layout("null", encode, EOS)
    with DocumentCorpus(folder) as corpus:
        with pytest.raises(ConfigError, match="the corpus was made with tokenizer 'gpt2', the runtime has 'bytes'"):
            check_corpus(corpus, layout, 264, as_tokenizer(TOKENIZER))
        for tokenizer in (None, (encode, decode)):  # a pair of callables has no name to compare
            check_corpus(corpus, layout, 50257, as_tokenizer(tokenizer))


# Titles


def test_no_corpus_knows_no_title() -> None:
    assert source(None).resolve("A") is None


def test_a_plain_object_knows_titles_as_they_are() -> None:
    assert source(Texts({"A": "x"})).resolve("A") == "A"
    assert source(Texts({"A": "x"})).resolve("a") is None


def test_a_document_corpus_resolves_titles(folder: Path) -> None:
    with DocumentCorpus(folder) as corpus:
        assert source(corpus).resolve("big_o") == "Big O"
        assert source(corpus).resolve("Big Ω") is None
        assert source(corpus).resolve("ACTOR") is None  # two documents might be meant


@pytest.mark.parametrize("capacity", [None, 9], ids=["complete", "in progress"])
@pytest.mark.parametrize(
    ("title", "canonical", "same"),
    [
        ("Actor", "Actor", True),
        ("actor", "Actor", False),  # the corpus has both
        ("big o", "Big O", True),
        ("ACTOR", "Actor", None),  # the corpus does not know this one: only an ancestor is meant by any spelling
        ("anything", None, True),
    ],
)
def test_documents_found_by_folded_titles(
    folder: Path, title: str, canonical: str | None, same: bool | None, capacity: int | None
) -> None:
    document = Document(title, [1], capacity=capacity)
    same = document.in_progress if same is None else same
    with DocumentCorpus(folder) as corpus:
        assert source(corpus).same(document, canonical) is (document if same else None)
        assert source(corpus).same(None, canonical) is None


# Tokens


@pytest.mark.parametrize(
    "body",
    [
        [5, 6, 7],
        (5, 6, 7),
        np.array([5, 6, 7], dtype=np.uint16),
        [np.uint16(5), np.int64(6), 7],
        torch.tensor([5, 6, 7]),
    ],
    ids=["list", "tuple", "array", "numpy integers", "tensor"],
)
def test_bodies_of_any_kind(body: Any) -> None:
    tokens = source(Given(body)).tokens("A")
    assert tokens == [5, 6, 7] and all(type(token) is int for token in tokens)


def test_a_body_that_can_be_read_once() -> None:
    assert source(Given(iter([5, 6, 7]))).tokens("A") == [5, 6, 7]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("null", [5]),
        ("bos_eos", [EOS, 5, EOS]),
        ("identifier_prefix", [*encode("# A\n\n"), 5]),
        ("identifier_prefix_bos_eos", [EOS, *encode("# A\n\n"), 5, EOS]),
    ],
)
def test_documents_are_laid_out(policy: str, expected: list[int]) -> None:
    assert source(Given([5]), policy).tokens("A") == expected


@pytest.mark.parametrize("policy", ["null", "identifier_prefix_bos_eos"])
def test_an_empty_body_has_no_layout_either(policy: str) -> None:
    assert source(Given(np.array([], dtype=np.uint16)), policy).tokens("A") == []


def test_a_document_that_is_gone() -> None:
    with pytest.raises(CorpusError, match="the corpus has document 'A', but gave None for it"):
        source(Given(None)).tokens("A")


@pytest.mark.parametrize("body", ["text", b"text", ["a"], [1.5], [[1, 2]], [None], {1: 2}, 5, np.ones(2), np.array(5)])
def test_what_is_no_sequence_of_token_ids(body: Any) -> None:
    with pytest.raises(CorpusError, match="the corpus must give token ids for document 'A', got "):
        source(Given(body)).tokens("A")


@pytest.mark.parametrize(("body", "wrong"), [([5, 40, 50], 40), ([5, -1], -1)])
def test_ids_outside_the_vocabulary(body: list[int], wrong: int) -> None:
    with pytest.raises(CorpusError, match=f"document 'A' would hold token id {wrong}, outside .* of 40"):
        source(Given(body), vocab_size=40).tokens("A")
    assert source(Given([39]), vocab_size=40).tokens("A") == [39]


def test_a_layout_outside_the_vocabulary() -> None:
    with pytest.raises(CorpusError, match="outside the model's vocabulary of 30"):
        source(Given([5]), "identifier_prefix", vocab_size=30).tokens("A")
