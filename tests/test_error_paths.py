"""Paths that only a failing disk, or a terminal, takes."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

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
        if source.suffix == ".partial":
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
