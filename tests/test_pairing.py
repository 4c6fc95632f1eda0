"""Model, tokenizer, layout and corpus of different makings are refused, and told why, before a token is computed."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_corpus import write_foreign_corpus
from scripted import EOS, TOKENIZER, counting, encode, small_model, small_runtime

from ds2ds import ConfigError, CorpusError, DocumentCorpus, Runtime
from ds2ds.corpus.document_corpus import SAMPLE
from ds2ds.documents.layout import LAYOUT_POLICIES
from ds2ds.generation.pairing import check_layout, check_tokenizer
from ds2ds.model.config import ModelConfig
from ds2ds.tokenizer import Tokenizer, as_tokenizer

TITLES = [f"Page {number}" for number in range(12)]
OPTIONS: dict[str, Any] = {"max_new_tokens": 2, "seed": 0}


def corpus_of(folder: Path, bodies: dict[str, list[int]], tokenizer: str = "bytes", dtype: str = "uint16") -> Path:
    write_foreign_corpus(folder, bodies, dtype=dtype)
    metadata = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps({**metadata, "tokenizer": tokenizer}))
    return folder


def refuse(monkeypatch: pytest.MonkeyPatch, message: str, corpus: Any, error: type[Exception], **options: Any) -> None:
    runtime = small_runtime()
    with counting(monkeypatch) as rows, pytest.raises(error, match=message):
        runtime.generate("text", corpus=corpus, **{**OPTIONS, **options})
    assert not rows


def test_a_corpus_of_another_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_of(tmp_path / "corpus", {"A": [5]}, tokenizer="gpt2")
    refuse(monkeypatch, "made with tokenizer 'gpt2', the runtime has 'bytes': the same ids mean", corpus, ConfigError)


def test_a_corpus_with_a_larger_vocabulary_is_seen_in_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_of(tmp_path / "corpus", {title: [5, 6] for title in TITLES} | {"Far": [5, 264, 7]})
    refuse(monkeypatch, "document 'Far' would hold token id 264, outside .* of 264", corpus, CorpusError)


@pytest.mark.parametrize(("said", "written"), [("uint16", 4), ("uint32", 2)])
def test_shards_of_another_token_size(said: str, written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = {2: "uint16", 4: "uint32"}[written]
    corpus = corpus_of(tmp_path / "corpus", {"A": [5, 6]}, dtype=dtype)
    metadata = json.loads((corpus / "metadata.json").read_text())
    (corpus / "metadata.json").write_text(json.dumps({**metadata, "dtype_str": said}))
    refuse(monkeypatch, f"{written} bytes per token, metadata.json says {6 - written}", corpus, CorpusError)


def test_an_eos_outside_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "eos_token_id must be in the model's vocabulary of 264", None, ConfigError, eos_token_id=50256)


def test_a_document_that_starts_with_eos_needs_one() -> None:
    needed = {"bos_eos": ["text", ""], "identifier_prefix_bos_eos": ["text"], "null": [""], "identifier_prefix": [""]}
    for layout, prompts in needed.items():
        for prompt in prompts:
            with pytest.raises(ConfigError, match=r"must be .* 264 for a document that starts with it .* got 264"):
                small_runtime(layout).generate(prompt, eos_token_id=264, **OPTIONS)
    assert small_runtime().generate("text", eos_token_id=264, **OPTIONS).root_document.tokens[:4] == encode("text")


def test_a_tokenizer_with_more_ids_than_the_model() -> None:
    runtime = Runtime(small_model(), arena_tokens=1024)
    with pytest.raises(ConfigError, match="'gpt2' has 50,257 ids, but the model's vocabulary is 264: pass the model's"):
        runtime.generate("text", **OPTIONS)
    assert len(runtime.generate(prompt_tokens=[1, 2], **OPTIONS).root_document.tokens) == 4  # ids need no tokenizer


def named(name: str) -> Tokenizer:
    return replace(as_tokenizer(TOKENIZER), name=name)


@pytest.mark.parametrize(
    ("config", "tokenizer", "fits"),
    [
        ({"tokenizer": "bytes"}, "bytes", True),
        ({"tokenizer": "bytes"}, "custom", True),  # a pair of callables has no name
        ({"tokenizer": "custom"}, "bytes", True),
        ({"tokenizer": "bytes"}, "letters", False),
        ({"tokenizer": "gpt2"}, "bytes", True),  # nobody filled it in: GPT-2 has more than 264 ids
        ({"tokenizer": "gpt2", "vocab_size": 50257}, "bytes", False),
        ({"tokenizer": "gpt2", "vocab_size": 50304}, "gpt2", True),
    ],
)
def test_a_checkpoint_names_its_tokenizer(config: dict[str, Any], tokenizer: str, fits: bool) -> None:
    made = ModelConfig(**{"vocab_size": 264, "num_layers": 1, "model_dim": 8, "num_heads": 1, **config})
    if fits:
        check_tokenizer(made, named(tokenizer))
        return
    message = f"trained with tokenizer '{made.tokenizer}', the runtime has '{tokenizer}': pass that one"
    with pytest.raises(ConfigError, match=message):
        check_tokenizer(made, named(tokenizer))


@pytest.mark.parametrize("trained", LAYOUT_POLICIES)
@pytest.mark.parametrize("given", [*LAYOUT_POLICIES, None])
def test_a_layout_other_than_the_checkpoints(trained: str, given: str | None) -> None:
    config = ModelConfig(264, 1, 8, 1, layout_policy=trained)
    if given is None or trained in ("null", given):
        check_layout(config, given)
        return
    with pytest.raises(ConfigError, match=f"layout_policy is '{given}', but the model was trained with '{trained}'"):
        check_layout(config, given)


def test_the_front_door_takes_the_models_layout_and_no_other() -> None:
    model = small_model(layout_policy="bos_eos")
    with pytest.raises(ConfigError, match="layout_policy is 'null', but the model was trained with 'bos_eos'"):
        Runtime(model, TOKENIZER, "null", arena_tokens=64)
    result = Runtime(model, TOKENIZER, arena_tokens=1024).generate("text", **OPTIONS)
    assert result.root_document.tokens[:-2] == [EOS, *encode("text")]


# Bodies that are laid out already


def laid_out(kind: str, count: int) -> dict[str, list[int]]:
    """TITLES' documents, the first `count` of them laid out."""
    bodies = {title: encode("a text about it") for title in TITLES}
    for title in TITLES[:count]:
        heading = encode(f"# {title}\n\n")
        bodies[title] = {
            "heading": [*heading, *bodies[title]],
            "both": [EOS, *heading, *bodies[title], EOS],
            "start": [EOS, *bodies[title]],
            "end": [*bodies[title], EOS],
        }[kind]
    return bodies


HEADING, MARKS = "start with their own heading, 'Page 0'", r"start or end with EOS \(0\), 'Page 0'"


@pytest.mark.parametrize(
    ("kind", "count", "layout", "message"),
    [
        ("heading", 12, "identifier_prefix", f"12 of 12 .* {HEADING} .* layout_policy 'identifier_prefix' adds the"),
        ("heading", 11, "identifier_prefix", f"11 of 12 sampled documents of .* {HEADING}"),
        ("both", 12, "identifier_prefix", HEADING),
        ("both", 12, "bos_eos", MARKS),
        ("both", 12, "identifier_prefix_bos_eos", HEADING),
        ("start", 12, "bos_eos", MARKS),
        ("end", 12, "identifier_prefix_bos_eos", MARKS),
        ("heading", 10, "identifier_prefix", None),  # no clear majority
        ("heading", 12, "bos_eos", None),
        ("start", 12, "identifier_prefix", None),
        ("both", 12, "null", None),  # how a model without a layout of its own has seen them, perhaps
        ("both", 0, "identifier_prefix_bos_eos", None),
    ],
)
def test_bodies_that_the_layout_would_double_are_warned_of_once(
    kind: str, count: int, layout: str, message: str | None, tmp_path: Path
) -> None:
    corpus_of(tmp_path / "corpus", laid_out(kind, count))
    runtime = small_runtime(layout)
    with DocumentCorpus(tmp_path / "corpus") as corpus, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            runtime.generate("text", corpus=corpus, **OPTIONS)
    assert len(caught) == (message is not None)
    if message is not None:
        with pytest.raises(UserWarning, match=message):
            raise caught[0].message  # type: ignore[misc]


def test_too_few_documents_tell_nothing(tmp_path: Path) -> None:
    bodies = dict(list(laid_out("both", 12).items())[:7])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_runtime("bos_eos").generate("text", corpus=corpus_of(tmp_path / "corpus", bodies), **OPTIONS)


def test_the_sample_is_spread_over_the_corpus_and_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = {f"Page {number}": [number, 7][number % 3 == 0 :] for number in range(100)} | {"Empty": []}
    with DocumentCorpus(corpus_of(tmp_path / "corpus", bodies)) as corpus:
        sample = corpus.sample
        assert len(sample) == SAMPLE and corpus.sample is sample
        assert [one.title for one in sample[:3]] == ["Page 0", "Page 3", "Page 6"]
        assert sample[1].head == (7,)
        page = next(one for one in sample if one.title == "Page 97")
        assert (page.head, page.last, page.largest) == ((97, 7), 7, 97)


def test_a_long_document_is_glanced_at_whole_for_its_largest_id(tmp_path: Path) -> None:
    body = [*range(100), 200, *range(100)]
    with DocumentCorpus(corpus_of(tmp_path / "corpus", {"A": body, "B": []})) as corpus:
        (one,) = corpus.sample
        assert one.head == tuple(range(64)) and one.last == 99 and one.largest == np.max(body)
