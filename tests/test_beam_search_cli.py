"""`ds2ds generate` with beams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from ds2ds import DS2DSModel
from ds2ds.cli import app
from ds2ds.errors import ConfigError
from ds2ds.model.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beams") / "model"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DS2DSModel.from_config(vocab_size=50257, num_layers=2, model_dim=32, num_heads=2, max_seq_len=256)
    save_checkpoint(model, folder)
    return folder


def run(checkpoint: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["generate", "A text", "-m", str(checkpoint), "--max-new-tokens", "4", *arguments])


def test_beams_are_an_option(checkpoint: Path) -> None:
    done = run(checkpoint, "--num-beams", "3", "--length-penalty", "0.5", "--early-stopping", "never", "--json",
               "--num-return-sequences", "2")  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    config = result["generation_config"]
    assert [config[name] for name in ("num_beams", "length_penalty", "early_stopping")] == [3, 0.5, "never"]
    assert [result["score"] >= one["score"] for one in result["alternatives"]] == [True]
    assert run(checkpoint, "--num-beams", "3", "--early-stopping", "true", "--json").exit_code == 0


def test_the_best_text_is_printed_with_its_score(checkpoint: Path) -> None:
    done = run(checkpoint, "--num-beams", "3")
    root = json.loads(run(checkpoint, "--num-beams", "3", "--json").stdout)
    assert done.stdout.rstrip("\n") == root["root_document"]["text"].rstrip("\n")
    assert "4 tokens written at" in done.stderr
    assert f"3 beams, score {root['score']:.4f}" in done.stderr and "seed" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num-beams", "0"), "num_beams must be positive, got 0"),
        (
            ("--num-beams", "2", "--temperature", "0.5"),
            "temperature must be 1.0 or 0.0 with num_beams above 1, got 0.5",
        ),
        (("--early-stopping", "maybe"), "early_stopping must be True, False or 'never', got 'maybe'"),
        (("--num-return-sequences", "2"), "num_return_sequences must be at most num_beams 1, got 2"),
    ],
)
def test_wrong_options_are_named(checkpoint: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(checkpoint, *arguments)
    assert isinstance(done.exception, ConfigError) and str(done.exception) == message
