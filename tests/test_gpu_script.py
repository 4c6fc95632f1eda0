"""bench/gpu.sh with a Python that does nothing: what it runs, and that a failure keeps nothing else from running."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import typer
from test_figures import ROOT
from typer.testing import CliRunner

STUB = """#!{python}
import json, os, sys
with open({calls!r}, "a") as file:
    print(json.dumps([sys.argv[1:], os.environ["PYTHONPATH"]]), file=file)
print("ran", *sys.argv[1:])
if "--output" in sys.argv:
    folder = sys.argv[sys.argv.index("--output") + 1]
    with open(os.path.join(folder, os.path.basename(sys.argv[1]) + ".json"), "w") as file:
        print("measured", file=file)
sys.exit({code})
"""


def run(folder: Path, *steps: str, code: int = 0) -> tuple[int, list[list[str]], str]:
    """The script's exit status, the arguments of each Python it started, and what it said."""
    (folder / "bin").mkdir(parents=True)
    calls, stub = folder / "calls", folder / "bin" / "python3"
    stub.write_text(STUB.format(python=sys.executable, calls=str(calls), code=code))
    stub.chmod(0o755)
    path = f"{stub.parent}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "OUT": str(folder / "out"), "PYTHONPATH": ""}
    done = subprocess.run(
        ["bash", "bench/gpu.sh", *steps], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120
    )
    started = [json.loads(line) for line in calls.read_text().splitlines()]
    assert all((Path(where) / "ds2ds" / "kernels" / "fused.py").is_file() for _, where in started)
    assert all((Path(where) / "ds2ds" / "runtime.py").is_file() for _, where in started)
    assert (folder / "out" / "gpu.log").read_text() == done.stdout
    assert {file.name for file in (folder / "out").iterdir()} == {"gpu.log", "results.tgz"}
    with tarfile.open(folder / "out" / "results.tgz") as results:
        measured = {Path(name).name for name in results.getnames() if name.endswith(".json")}
    assert measured == {f"{Path(arguments[0]).name}.json" for arguments, _ in started if "--output" in arguments}
    return done.returncode, [arguments for arguments, _ in started], done.stdout


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    status, started, said = run(tmp_path_factory.mktemp("gpu"))
    assert status == 0 and "nothing failed" in said
    return started


def test_every_file_with_gpu_tests_is_run_and_no_other(started: list[list[str]]) -> None:
    """No other is even imported: some need packages that a machine with a GPU may lack."""
    files = sorted(arguments[-1] for arguments in started if arguments[:2] == ["-m", "pytest"])
    marked = [file for file in ROOT.glob("tests/test_*.py") if re.search(r"mark\.gpu\b", file.read_text())]
    assert files == sorted(f"tests/{file.name}" for file in marked)
    assert all(arguments[2:4] == ["-m", "gpu"] for arguments in started if arguments[:2] == ["-m", "pytest"])


def test_every_benchmark_takes_its_arguments(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    benchmarks = [arguments for arguments in started if arguments[0].startswith("bench/")]
    assert len(benchmarks) == 8
    for file, *arguments in benchmarks:
        app = typer.Typer()
        app.command()(importlib.import_module(Path(file).stem).main)
        values = typer.main.get_command(app).make_context(file, arguments).params
        assert values["device"] == "cuda" and "bfloat16" in values["dtype"]


def test_what_fails_keeps_nothing_from_running(started: list[list[str]], tmp_path: Path) -> None:
    status, others, said = run(tmp_path, code=3)
    assert status == 1 and "something failed" in said
    assert len(others) == len(started)


def test_some_steps_alone(tmp_path: Path) -> None:
    _, only, _ = run(tmp_path, "reuse")
    assert [arguments[0] for arguments in only] == ["-c", "bench/reuse.py"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cuda:99"], "device 'cuda:99' is not here"),
        (["--device", "gpu"], "device must be 'cpu' or 'cuda'"),
        (["--device", "cpu", "--dtype", "int3"], "got 'int3'"),
    ],
)
@pytest.mark.parametrize("name", ["attention", "compaction", "decode", "gpu_step", "link_event", "reuse", "sampling"])
def test_a_device_or_dtype_that_is_not_here_is_one_error(
    name: str, options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    threads = torch.get_num_threads()
    app = typer.Typer()
    app.command()(importlib.import_module(name).main)
    done = CliRunner().invoke(app, [*options, "--output", str(tmp_path)], env={"COLUMNS": "200"})
    torch.set_num_threads(threads)
    assert done.exit_code == 2 and said in done.output
    assert not list(tmp_path.iterdir())
