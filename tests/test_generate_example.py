"""The example script runs as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "examples" / "generate_example.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120)


def test_it_writes_a_document_and_tells_what_it_read() -> None:
    arguments = ("--prompt", "A [linker](linker) is", "--max-new-tokens", "12", "--seed", "1", "--temperature", "0.5")
    done = run(*arguments, "--model-path", "demo", "--corpus-path", "demo", "--max-link-depth", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("A [linker](linker) is")
    assert "  linker: corpus, " in done.stdout and "reads linker from token " in done.stdout
    assert run(*arguments).stdout.splitlines()[:-1] == done.stdout.splitlines()[:-1]  # all but the seconds


def test_without_a_corpus_or_links_there_is_one_document() -> None:
    done = run("--corpus-path", "none", "--max-link-depth", "0", "--max-new-tokens", "5", "--prompt", "# Heap")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# Heap\n\n") and done.stdout.count("tokens\n") == 1


def test_what_is_wrong_is_told_in_one_line() -> None:
    for arguments, message in (
        (("--model-path", "missing"), "error: no config.json in missing"),
        (("--corpus-path", "missing"), "missing"),
        (("--temperature", "-1"), "error: temperature must be >= 0, got -1.0"),
    ):
        done = run(*arguments)
        assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
