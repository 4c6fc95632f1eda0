"""`ds2ds model`: import of a training run, and what a checkpoint holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from ds2ds import DS2DSModel
from ds2ds.cli import app
from ds2ds.errors import CheckpointError
from ds2ds.model.checkpoint import load_checkpoint

SHAPE = {"num_layers": 2, "model_dim": 16, "num_heads": 2, "max_seq_len": 32, "mask_type": "cross_doc_link"}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    settings = {"model": {**SHAPE, "learning_rate": 0.1}, "data": {"layout_policy": "bos_eos"}}
    (folder / "hyperparameters.json").write_text(json.dumps(settings))
    state = DS2DSModel.from_config(vocab_size=11, **SHAPE).state_dict()
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": compiled}, folder / "checkpoints" / "best_model.pt")
    return folder


def model_command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["model", *arguments])


def test_import(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = model_command("import", str(run_dir), str(out))
    assert done.exit_code == 0
    assert f"{out}: 2 layers x 16, vocabulary 11, layout bos_eos, 0.1 MB" in done.stdout
    saved = torch.load(run_dir / "checkpoints" / "best_model.pt", weights_only=True)["model"]
    assert torch.equal(load_checkpoint(out).embedding.weight, saved["_orig_mod.embedding.weight"])


def test_import_does_not_replace_a_checkpoint_unless_forced(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    done = model_command("import", str(run_dir), str(out))
    assert isinstance(done.exception, CheckpointError) and "--force" in str(done.exception)
    assert (out / "config.json").read_text() == "mine"
    assert model_command("import", str(run_dir), str(out), "--force").exit_code == 0
    assert load_checkpoint(out).config.layout_policy == "bos_eos"


def test_import_into_a_file(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = model_command("import", str(run_dir), str(tmp_path / "file"))
    assert isinstance(done.exception, CheckpointError) and "is a file" in str(done.exception)


def test_import_of_something_else_writes_nothing(tmp_path: Path) -> None:
    done = model_command("import", str(tmp_path), str(tmp_path / "out"))
    assert isinstance(done.exception, CheckpointError)
    assert not (tmp_path / "out").exists()


def test_info(run_dir: Path, tmp_path: Path) -> None:
    model_command("import", str(run_dir), str(tmp_path / "out"))
    done = model_command("info", str(tmp_path / "out"))
    assert done.exit_code == 0
    rows = {line.split()[0]: line[11:] for line in done.stdout.splitlines()}
    model = load_checkpoint(tmp_path / "out")
    assert rows["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}, float32"
    assert rows["shape"] == "2 layers x 16, 2 heads of 8, MLP 128"
    assert rows["vocabulary"] == "11, gpt2, lm head tied"
    assert (rows["context"], rows["layout"], rows["mask"]) == ("32 tokens", "bos_eos", "cross_doc_link")


def test_info_of_a_damaged_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    model_command("import", str(run_dir), str(tmp_path / "out"))
    (tmp_path / "out" / "model.safetensors").write_bytes(b"not weights")
    done = model_command("info", str(tmp_path / "out"))
    assert isinstance(done.exception, CheckpointError) and "model.safetensors" in str(done.exception)
