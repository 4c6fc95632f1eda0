"""The benchmark of products with few rows, at sizes that take no time; what a GPU measures in the interpreter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from test_figures import RESULTS, ROOT, load
from typer.testing import CliRunner

bench = load(ROOT / "bench" / "linear.py")
linear_gpu = load(ROOT / "bench" / "linear_gpu.py")
clocks = load(ROOT / "bench" / "sampling_clock.py")


def keys(measured: dict[str, list[dict[str, object]]]) -> dict[str, object]:
    """What there is, and what each of the lists' entries has."""
    return {name: sorted(value[0]) if isinstance(value, list) else sorted(value) for name, value in measured.items()}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_cpu_writes_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SHAPES", ((64, 32), (128, 64)))
    monkeypatch.setattr(bench, "ROWS", (1, 3))
    monkeypatch.setattr(bench, "WEIGHTS_BYTES", 2**12)
    threads = torch.get_num_threads()
    app = typer.Typer()
    app.command()(bench.main)
    arguments = ["--threads", "1", "--repeats", "1", "--output", str(tmp_path)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "linear_cpu.json").read_text())
    assert keys(written) == keys(json.loads((RESULTS / "linear_cpu.json").read_text()))
    assert [(r["outputs"], r["rows"]) for r in written["results"]] == [(64, 1), (64, 3), (128, 1), (128, 3)]


def test_the_matrices_of_a_model() -> None:
    assert linear_gpu.shapes("12x768") == {
        "Wqkv": (2304, 768),
        "Wout": (768, 768),
        "Wup_gate": (4096, 768),
        "Wdown": (768, 2048),
        "head": (50257, 768),
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="bench/gpu.sh runs it there")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_way_of_a_gpu_is_measured(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_gpu, "WEIGHTS_BYTES", 1)
    monkeypatch.setattr(linear_gpu, "FAR_BEYOND_CACHE", 2**16)
    monkeypatch.setattr(linear_gpu, "shapes", lambda size: {"Wout": (32, 64), "head": (64, 32)})
    monkeypatch.setattr(clocks, "FEWEST_REPLAYS", 1)
    clock = clocks.Clock(torch.device("cpu"), 0.0)
    with torch.inference_mode():
        results = list(linear_gpu.results(["2x64"], (1, 17), dtype, clock, 600.0))
    assert [(r["matrix"], r["rows"]) for r in results[:2]] == [("Wout", 1), ("Wout", 17)]
    assert len(results) == 4
    for result in results:
        measured = {way for way in linear_gpu.WAYS if result[way] is not None}
        assert {"float", "expanded"} <= measured
        assert ("int8" in measured) == (result["rows"] == 1 or dtype != torch.float32)
        assert result.get("difference", 0.0) < 2e-3
        assert all(result[way] > 0 for way in measured)
    assert linear_gpu.table(results).row_count == 4
    assert list(linear_gpu.results(["2x64"], (1,), dtype, clock, -1.0)) == []
