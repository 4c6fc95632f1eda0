"""The README stays true: its commands and its Python run as they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from ds2ds import DS2DSModel

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


SERVE = "ds2ds serve "
LINES = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("ds2ds ")]
COMMANDS = [line for line in LINES if not line.startswith(SERVE)]
MAKE = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("make ")]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's commands expect to find: the examples, and a training run."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "examples").symlink_to(ROOT / "examples")
    run = folder / "runs" / "mine"
    (run / "checkpoints").mkdir(parents=True)
    model = DS2DSModel.from_config(vocab_size=50257, num_layers=2, model_dim=32, num_heads=2, max_seq_len=2048)
    settings = {"num_layers": 2, "model_dim": 32, "num_heads": 2, "max_seq_len": 2048, "mask_type": "cross_doc_link"}
    (run / "hyperparameters.json").write_text(json.dumps({"model": settings, "data": {"layout_policy": None}}))
    torch.save({"model": model.state_dict()}, run / "checkpoints" / "best_model.pt")
    return folder


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def test_the_commands_run_one_after_the_other(newcomer: Path) -> None:
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        arguments = shlex.split(command)
        done = run([sys.executable, "-m", "ds2ds", *arguments[1:]], newcomer)
        assert done.stdout.strip() or "corpus build" in command or "model import" in command, command
    assert (newcomer / "out" / "gc" / "result.json").is_file()
    assert (newcomer / "out" / "notes" / "metadata.json").is_file()
    assert (newcomer / "out" / "mine" / "model.safetensors").is_file()


def test_what_is_served_is_served_where_it_says(newcomer: Path) -> None:
    (command,) = [line for line in LINES if line.startswith(SERVE)]
    assert "http://127.0.0.1:8000/v1" in README  # the default, which here may be in use
    arguments = [sys.executable, "-m", "ds2ds", *shlex.split(command)[1:], "--port", "0"]
    with subprocess.Popen(arguments, cwd=newcomer, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            url = line.split(" at ")[1].strip()
            with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as answer:
                assert json.load(answer)["data"][0]["id"] == "demo"
        finally:
            server.terminate()
    assert server.returncode in (0, -signal.SIGTERM)  # the latter is what uvicorn ends with, once all is done


def test_the_python_runs(newcomer: Path) -> None:
    examples = blocks("python")
    assert len(examples) == 3
    done = run([sys.executable, "-c", "\n".join(examples)], newcomer)
    assert "Done" in done.stdout
    assert "Incremental linker generated" in done.stdout and "software corpus" in done.stdout
    assert re.search(r"\b[1-9]\d* tokens reused$", done.stdout.strip())
    assert (newcomer / "out" / "documents.safetensors").is_file()


def test_the_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert MAKE == ["make demo", "make test"]
    for command in MAKE:
        assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.MULTILINE)


def test_ci_runs_the_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_links_to_files_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "/" in target and "://" not in target]
    assert "docs/architecture.md" in targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert missing == []


def test_the_notebook_runs(newcomer: Path) -> None:
    notebook = json.loads((ROOT / "notebooks" / "first_light.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 4
    done = run([sys.executable, "-c", "\n".join(cells)], newcomer)
    assert "million parameters" in done.stdout and "from token" in done.stdout
