"""The benchmarks of the decode step, on a GPU and on its host: what they make of it, and that they run here."""

from __future__ import annotations

import pytest
import torch
from decode_reference import use_plain_kernels
from test_figures import ROOT, load

from ds2ds.bench.models import make_model

bench = load(ROOT / "bench" / "gpu_step.py")
host_bench = load(ROOT / "bench" / "host_step.py")


def test_a_timeline_of_two_steps() -> None:
    spans = [("norm", 10.0, 12.0), ("norm", 31.0, 33.0), ("product", 13.0, 20.0), ("product", 33.0, 40.0)]
    # One that runs beside another leaves no gap.
    spans.append(("copy", 18.0, 22.0))
    figures = bench.timeline([bench.Span(*span) for span in spans], 2)
    assert figures["kernels_per_step"] == 2.5
    assert figures["microseconds_per_step"] == 15.0
    assert figures["gap_share"] == round((1 + 9) / 30, 4)
    assert (figures["median_gap_us"], figures["longest_gap_us"]) == (5.0, 9.0)
    assert figures["kernels"][0] == {"name": "product", "per_step": 1.0, "us_per_step": 7.0}


def test_without_a_gap() -> None:
    figures = bench.timeline([bench.Span("one", 1.0, 2.0)], 1)
    assert (figures["gap_share"], figures["median_gap_us"], figures["longest_gap_us"]) == (0.0, 0.0, 0.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="bench/gpu.sh runs it there")
def test_it_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use_plain_kernels(monkeypatch)
    model = make_model("2x64", torch.device("cpu"), torch.float32, 64)
    result = bench.measure(model, bench.ON_CPU, bench.Case.parse("2x64 2 8"), 3, 1e9)
    assert (result["size"], result["batch"], result["context"]) == ("2x64", 2, 8)
    for mode in bench.ON_CPU:
        figures = result[mode]
        assert figures["tokens_per_second"] > 0 and figures["step_us"] > 0
        assert figures["share_of_floor"] == pytest.approx(result["floor_us"] / figures["step_us"], rel=0.01)
    assert bench.table([result], bench.ON_CPU).row_count == 1


@pytest.mark.parametrize("text", ["", "12x768", "12x768 8", "12x768 0 8", "12x768 1 -8", "12x768 1 8 9"])
def test_a_case_is_a_size_and_two_numbers(text: str) -> None:
    with pytest.raises(bench.typer.BadParameter, match="'SIZE BATCH CONTEXT'"):
        bench.Case.parse(text)


@pytest.mark.parametrize("links", [0, 2])
def test_the_host_alone(links: int) -> None:
    """Every step writes a token of each request, and tells the device nothing, or `measure` raises."""
    result = host_bench.measure(3, links, 4, 2)
    assert (result["batch"], result["links"]) == (3, links)
    assert 0 < result["fastest_request_us"] <= result["request_us"] == pytest.approx(result["step_us"] / 3, abs=0.05)
