"""`ds2ds generate --picture --attention`: which files come of it, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from ds2ds import AttentionMap, DS2DSModel
from ds2ds.cli import app
from ds2ds.corpus.build.writer import SourceDocument, write_corpus
from ds2ds.errors import ConfigError, Ds2dsError
from ds2ds.model.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint `model` and a `corpus`."""
    folder = tmp_path_factory.mktemp("pictures")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DS2DSModel.from_config(vocab_size=50257, num_layers=2, model_dim=32, num_heads=2, max_seq_len=256)
    save_checkpoint(model, folder / "model")
    write_corpus(folder / "corpus", [SourceDocument("Apple", "A fruit.")])
    return folder


def run(folder: Path, *arguments: str, model: str = "model") -> Result:
    options = [
        "--model",
        str(folder / model),
        "--corpus",
        str(folder / "corpus"),
        "--max-new-tokens",
        "3",
        "--seed",
        "1",
    ]
    return CliRunner().invoke(app, ["generate", "See [Apple](Apple) now", *options, *arguments])


@pytest.mark.parametrize(("picture", "attention"), [("g.svg", "a.html"), ("g.html", "a.npz"), ("G.SVG", "a.png")])
def test_files_to_look_at(folder: Path, tmp_path: Path, picture: str, attention: str) -> None:
    out = tmp_path / "out"
    done = run(folder, "--picture", str(out / picture), "--attention", str(out / attention))
    assert done.exit_code == 0, done.output
    assert {file.name for file in out.iterdir()} == {picture, attention}
    assert f"saved to {out / picture}" in done.stderr and f"saved to {out / attention}" in done.stderr
    drawn = (out / picture).read_text(encoding="utf-8")
    assert drawn.startswith("<svg " if picture.lower().endswith("svg") else "<!DOCTYPE html>") and "Apple" in drawn
    made = (out / attention).read_bytes()
    if attention.endswith("npz"):
        found = AttentionMap.from_npz(out / attention)
        assert found.titles == ("root", "Apple") and len(found.tokens) == 3 and found.weights is not None
    else:
        assert made.startswith(b"\x89PNG" if attention.endswith("png") else b"<!DOCTYPE html>")


def test_a_path_is_no_markup(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "[red]" / "[" / "x]" / ":pear:.svg"  # "[/x]" closes what was not open
    done = run(folder, "--picture", str(picture))
    assert done.exit_code == 0, done.output
    assert picture.is_file() and done.stderr.endswith(f"saved to {picture}\n")


def test_with_json_standard_output_is_still_json(folder: Path, tmp_path: Path) -> None:
    done = run(folder, "--json", "--picture", str(tmp_path / "g.svg"), "--attention", str(tmp_path / "a.svg"))
    assert json.loads(done.stdout)["root_document"]["title"] == "root"
    assert done.stderr == "" and {file.name for file in tmp_path.iterdir()} == {"g.svg", "a.svg"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--picture", "g.png"], r"--picture must end in .html, .svg, got 'g.png'"),
        (["--picture", "g"], "--picture must end in"),
        (["--attention", "a.json"], "--attention must end in .html, .npz, .png, .svg, got 'a.json'"),
        (["--picture", "there.svg"], "there.svg is already there: pass --force"),
        (["--attention", "folder.html", "--force"], "folder.html is a folder"),
        (["--picture", "there.svg/g.svg"], "--picture: cannot write there.svg/g.svg: "),
        (["--attention", "there.svg/a.png"], "--attention: cannot write there.svg/a.png: "),
        (["--picture", "x.html", "--attention", "x.html"], "must be two places"),
        (["--picture", "x.html", "--save", "x.html"], "--save and --picture must be two places, got x.html for both"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.svg").write_text("mine")
    Path("folder.html").mkdir()
    done = run(tmp_path, *arguments, model="missing")
    assert isinstance(done.exception, ConfigError) and message in str(done.exception)
    assert done.stdout == "" and Path("there.svg").read_text() == "mine"


def test_heat_maps_without_matplotlib_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run(tmp_path, "--attention", str(tmp_path / "a.png"), model="missing")
    assert isinstance(done.exception, Ds2dsError) and "ds2ds[pictures]" in str(done.exception)


def test_force_replaces_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "g.svg").write_text("old")
    assert run(folder, "--picture", str(tmp_path / "g.svg"), "--force").exit_code == 0
    assert (tmp_path / "g.svg").read_text(encoding="utf-8").startswith("<svg ")


def test_what_cannot_be_written_after_all_is_told_after_the_text(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError("no space")

    monkeypatch.setattr("ds2ds.cli.pictures.atomic_write_text", full)
    done = run(folder, "--picture", str(tmp_path / "g.svg"))
    assert isinstance(done.exception, Ds2dsError) and "g.svg: no space" in str(done.exception)
    assert done.stdout.startswith("See [Apple](Apple) now")
