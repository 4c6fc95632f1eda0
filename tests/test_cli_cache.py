"""`ds2ds cache`: prefilling into a file, and starting from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from ds2ds import CacheError, ConfigError, CorpusError, DocumentCorpus, DS2DSModel
from ds2ds.cli import app
from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.model.checkpoint import save_checkpoint
from ds2ds.tokenizer import as_tokenizer

DOCUMENTS = [
    SourceDocument("Hub", "a [spoke](Spoke) and [another](Other)"),
    SourceDocument("Spoke", "back to the [hub](Hub) and the [other](Other)"),
    SourceDocument("Other", "far out, and some more words than the rest has"),
    SourceDocument("Alone", "nobody links here"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a corpus."""
    folder = tmp_path_factory.mktemp("cache")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DS2DSModel.from_config(vocab_size=50257, num_layers=2, model_dim=16, num_heads=2, max_seq_len=256)
    save_checkpoint(model, folder / "model")
    write_corpus(folder / "corpus", DOCUMENTS, tokenizer_name="gpt2", tokenizer=as_tokenizer(None), search=False)
    return folder


def ds2ds(folder: Path, *arguments: str, stdin: str | None = None) -> Result:
    own = (
        ["--model", str(folder / "model"), "--corpus", str(folder / "corpus")]
        if arguments[:2] != ("cache", "info")
        else []
    )
    return CliRunner().invoke(app, [*arguments, *own], input=stdin)


def test_warm_then_generate(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "some.safetensors"
    done = ds2ds(folder, "cache", "warm", str(file), "Hub", "Other")
    assert done.exit_code == 0 and done.stdout.startswith(f"{file}: 2 documents, ")
    assert "prefilling: 2 of 2" in done.stderr
    prompt = "see [the hub](Hub) and"
    arguments = ["generate", prompt, "--json", "--max-new-tokens", "3", "--seed", "1", "--logprobs"]
    warm = json.loads(ds2ds(folder, *arguments, "--cache", str(file)).stdout)
    cold = json.loads(ds2ds(folder, *arguments).stdout)
    assert (warm["trace"]["documents_reused"], cold["trace"]["documents_reused"]) == (1, 0)
    assert warm["root_document"]["tokens"] == cold["root_document"]["tokens"]
    told = ds2ds(folder, *(argument for argument in arguments if argument != "--json"), "--cache", str(file))
    assert " reused" in told.stderr
    info = ds2ds(folder, "cache", "info", str(file)).stdout
    assert "documents  2\n" in info and "2 layers, 2 heads of 8" in info


def test_rounded_weights_have_a_file_of_their_own(folder: Path, tmp_path: Path) -> None:
    file, int8 = tmp_path / "some.safetensors", ("--weights", "int8")
    arguments = ("generate", "see [the hub](Hub) and", "--json", "--max-new-tokens", "1", "--cache", str(file))
    ds2ds(folder, "cache", "warm", str(file), "Hub")
    refused = ds2ds(folder, *arguments, *int8)
    assert isinstance(refused.exception, CacheError) and "rounded otherwise" in str(refused.exception)
    assert ds2ds(folder, "cache", "warm", str(file), "Hub", "--force", *int8).exit_code == 0
    assert json.loads(ds2ds(folder, *arguments, *int8).stdout)["trace"]["documents_reused"] == 1


def test_titles_from_standard_input_and_the_most_linked(folder: Path, tmp_path: Path) -> None:
    read = ds2ds(folder, "cache", "warm", str(tmp_path / "a"), "-", stdin="Alone\nSpoke\n")
    assert read.exit_code == 0 and ": 2 documents" in read.stdout
    most = ds2ds(folder, "cache", "warm", str(tmp_path / "b"), "--most-linked", "1")
    assert most.exit_code == 0 and ": 1 document," in most.stdout
    with DocumentCorpus(folder / "corpus") as corpus:
        assert corpus.most_linked(1) == ["Other"] and corpus.most_linked(9)[-1] == "Alone"


def test_what_found_no_room_is_told(folder: Path, tmp_path: Path) -> None:
    done = ds2ds(folder, "cache", "warm", str(tmp_path / "a"), "Hub", "Other", "Alone", "--arena-tokens", "32")
    assert done.exit_code == 0
    assert "found no room, from " in done.stderr and "raise --arena-tokens" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["cache", "warm", "OUT"], ConfigError, "give titles, or --most-linked N, and not both"),
        (["cache", "warm", "OUT", "Hub", "--most-linked", "2"], ConfigError, "and not both"),
        (["cache", "warm", "OUT", "Nowhere"], CorpusError, "the corpus has no documents titled ['Nowhere']"),
        (
            ["cache", "warm", "OUT", "Hub", "--arena-tokens", "0"],
            ConfigError,
            "arena_tokens must be a positive integer",
        ),
        (["cache", "warm", "DIR", "Hub"], CacheError, "is a folder: name a file"),
        (["cache", "warm", "FILE", "Hub"], CacheError, "is already there: pass --force"),
        (["cache", "info", "FILE"], CacheError, "cannot read"),
        (["cache", "info", "OUT"], CacheError, "does not exist"),
        (["generate", "x", "--cache", "OUT"], CacheError, "does not exist"),
        (["generate", "x", "--arena-tokens", "-3"], ConfigError, "arena_tokens must be a positive integer"),
        (["generate", "x", "--arena-tokens", "1" + "0" * 14], ConfigError, "GB, which are not to be had"),
        (["generate", "x", "--arena-tokens", "1" + "0" * 30], ConfigError, "GB, which are not to be had"),
    ],
)
def test_bad_input_is_named(
    folder: Path, tmp_path: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    (tmp_path / "file").write_text("mine")
    places = {"OUT": tmp_path / "out", "DIR": tmp_path, "FILE": tmp_path / "file"}
    done = ds2ds(folder, *(str(places.get(argument, argument)) for argument in arguments))
    assert isinstance(done.exception, error) and message in str(done.exception)
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_written_is_told_of_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ds2ds.cli.cache.load_runtime", lambda *arguments, **options: pytest.fail("too late"))
    (tmp_path / "file").write_text("mine")
    done = ds2ds(folder, "cache", "warm", str(tmp_path / "file" / "below"), "Hub")
    assert isinstance(done.exception, CacheError) and f"Not a directory: {tmp_path / 'file'}" in str(done.exception)
    monkeypatch.setattr("os.access", lambda *arguments: False)
    done = ds2ds(folder, "cache", "warm", str(tmp_path / "new" / "out"), "Hub")
    assert isinstance(done.exception, CacheError)
    assert f"new/out: no permission to write in {tmp_path}" in str(done.exception)
    assert not (tmp_path / "new").exists()


def test_titles_that_are_not_utf8(folder: Path, tmp_path: Path) -> None:
    options = ["--model", str(folder / "model"), "--corpus", str(folder / "corpus")]
    done = CliRunner().invoke(app, ["cache", "warm", str(tmp_path / "out"), "-", *options], input=b"Hub\n\xff")
    assert isinstance(done.exception, ConfigError) and "must be UTF-8" in str(done.exception)


def test_an_existing_file_is_replaced_if_forced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert ds2ds(folder, "cache", "warm", str(tmp_path / "file"), "Hub", "--force").exit_code == 0
    assert "documents  1" in ds2ds(folder, "cache", "info", str(tmp_path / "file")).stdout
