"""The benchmark of attention, at a size that takes no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import attention


def test_every_shape_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.SHAPES, "cpu", ((1, 0, 20), (2, 3, 17)))
    monkeypatch.setattr("sampling_clock.FAR_BEYOND_CACHE", 2**16)
    threads = torch.get_num_threads()
    app = typer.Typer()
    app.command()(attention.main)
    arguments = ["--threads", "1", "--size", "2x128", "--budget", "0", "--output", str(tmp_path)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    measured = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "attention_cpu.json").read_text()) == measured
    assert [(r["rows"], r["others"], r["length"]) for r in measured["results"]] == [(1, 0, 20), (2, 3, 17)]
    for result in measured["results"]:
        assert result["plain"]["microseconds"] > 0 and result["floor_us"] > 0


def test_what_ends_early_leaves_what_was_measured_till_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(size: str, shape: tuple[int, int, int], *others: object) -> dict[str, int]:
        if shape[0] == 2:
            raise KeyboardInterrupt
        return {"rows": shape[0]}

    monkeypatch.setitem(attention.SHAPES, "cpu", ((1, 0, 20), (2, 3, 17)))
    monkeypatch.setattr(attention, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        attention.main(threads=torch.get_num_threads(), output=tmp_path)
    written = json.loads((tmp_path / "attention_cpu.json").read_text())
    assert written["results"] == [{"rows": 1}] and written["environment"]["torch"] == torch.__version__


def test_what_is_timed_is_the_last_token_of_each_and_all_before_is_there() -> None:
    store, chunks = attention.computed("2x128", (3, 2, 17), torch.device("cpu"), torch.float32)
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(16, 17)] * 3
    for chunk in chunks:
        assert store.computed(chunk.document) == 16
        assert [store.computed(grant.target) for grant in chunk.document.grants] == [17, 17]
