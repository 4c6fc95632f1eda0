"""The front door: help, version, exit codes, and what importing it costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ds2ds
from ds2ds.cli import app, main
from ds2ds.errors import CorpusError


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ds2ds", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    return int(exit.value.code or 0)


def ds2ds_with(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = f'exec "$0" -m ds2ds "$@" {redirection}'
    return subprocess.run(["sh", "-c", command, sys.executable, *arguments], capture_output=True, text=True)


@pytest.mark.skipif(os.name != "posix", reason="a shell's redirections")
def test_streams_that_are_closed_or_full() -> None:
    closed = ds2ds_with(">&- 2>&- <&-", "corpus", "info")
    assert closed.returncode == 0
    nothing = ds2ds_with("<&-", "generate", "-", "--max-new-tokens", "1", "--corpus", "missing")
    assert nothing.returncode == 2 and nothing.stderr.startswith("ds2ds: error: no corpus at missing")
    if os.path.exists("/dev/full"):
        full = ds2ds_with(">/dev/full", "corpus", "show", "compiler")
        assert full.returncode == 2 and full.stderr == "ds2ds: error: [Errno 28] No space left on device\n"


def test_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.stdout == f"ds2ds {ds2ds.__version__}\n"


@pytest.mark.parametrize("command", ["generate", "corpus build", "corpus search", "model import", "model info"])
def test_every_command_has_help(command: str) -> None:
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert command in done.stdout


def test_bad_input_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "corpus", "info", "--corpus", "missing") == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("ds2ds: error: ") and "missing" in error and error.count("\n") == 1


def test_an_error_that_spans_lines_in_bad_usage_is_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "generate", "x", "--frobnicate") == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (CorpusError("a\nb"), 2), (OSError(28, "No space left on device"), 2)],
)
def test_interruption_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("ds2ds.cli.corpus.open_corpus_telling", fail)
    assert call(monkeypatch, "corpus", "info") == code
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_interruption_is_130_while_it_is_imported_too(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "ds2ds", "--version"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_bug_is_not_taken_for_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("ds2ds.cli.corpus.open_corpus_telling", fail)
    monkeypatch.setattr(sys, "argv", ["ds2ds", "corpus", "info"])
    with pytest.raises(ValueError, match="a bug"):
        main()


def test_the_command_line_imports_without_torch() -> None:
    code = "import sys, ds2ds.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
