"""Paths that only a failing disk, a terminal, or an argument of another kind takes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scripted import EOS, TOKENIZER, Texts, small_model, small_runtime
from typer.testing import CliRunner

from ds2ds import ConfigError, Runtime
from ds2ds.cli import app
from ds2ds.corpus.build.output_folder import new_folder
from ds2ds.corpus.format import METADATA_NAME


def test_on_a_terminal_a_checkpoint_is_told_as_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("ds2ds.cli.model.Console", lambda: Console(file=screen, force_terminal=True, width=200))
    done = CliRunner().invoke(app, ["model", "info"])
    assert done.exit_code == 0 and done.stdout == ""
    told = screen.getvalue()
    for name in ("path", "parameters", "vocabulary", "links"):
        assert f"\x1b[1m{name}" in told  # in bold


def test_a_corpus_is_put_back_where_its_successor_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "corpus"
    out.mkdir()
    (out / METADATA_NAME).write_text("old")
    rename = os.rename

    def fail_for_the_new_one(source: Path, target: Path) -> None:
        if source.name == "new":
            raise OSError("disk failure")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="disk failure"), new_folder(out, force=True) as folder:
        (folder / METADATA_NAME).write_text("new")
    assert (out / METADATA_NAME).read_text() == "old"
    assert os.listdir(tmp_path) == ["corpus"]


def test_where_nothing_was_before_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError("disk failure")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="disk failure"), new_folder(tmp_path / "corpus", force=False) as folder:
        (folder / METADATA_NAME).write_text("new")
    assert os.listdir(tmp_path) == []


def attend(**options: Any) -> Any:
    runtime = small_runtime()
    limits = {"max_new_tokens": 1, "max_context_length": 200, "eos_token_id": EOS}
    return runtime.attention(runtime.generate("a", **limits), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Runtime(small_model(), TOKENIZER, "null", retention=[]), r"retention must be one of .*, got \[\]"),
        (lambda: small_runtime().attention(5), "result must be a GenerationResult, got 5"),
        (lambda: attend(max_bytes=None), "max_bytes must be a positive integer, got None"),
        (lambda: small_runtime().save_cache(None), "path must be a string or a path, got None"),
        (lambda: small_runtime().load_cache(b"x"), "path must be a string or a path, got b'x'"),
        (lambda: Runtime.from_pretrained(5), "path must be a string or a path, got 5"),
        (lambda: small_runtime().warm(5, Texts({})), "titles must be a sequence of titles, got 5"),
        (lambda: small_runtime().warm_up("no"), "rows must be a positive integer, got 'no'"),
        (lambda: small_runtime().tokenize(None), "text must be a string, got None"),
        (lambda: small_runtime().detokenize(5), "tokens must be a sequence of token ids, got 5"),
    ],
)
def test_an_argument_of_another_kind_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
