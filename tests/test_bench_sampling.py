"""bench/sampling.py: what it compares is what it says, and what it writes is what it measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ds2ds.native.operations import available

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import sampling
import sampling_clock
import torch_sampling
import typer
from torch_sampling import FlashInfer, Missing, Way

CPU = torch.device("cpu")
APP = typer.Typer()
APP.command()(sampling.main)
TINY = ["--threads", "1", "--budget", "0", "--vocab", "300", "--vocab", "40", "--batch", "2", "--batch", "5"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads as they were, and no large buffers."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(sampling_clock, "FAR_BEYOND_CACHE", 2**16)
    monkeypatch.setattr(sampling, "FAR_BEYOND_CACHE", 2**16)
    yield
    torch.set_num_threads(threads)


def run(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(APP, [*TINY, *arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout.splitlines()[-1])


# The command


def test_the_command_writes_a_result_for_each_configuration(tmp_path: Path) -> None:
    printed = run("--dtype", "float32", "--dtype", "bfloat16", "--output", str(tmp_path))
    assert json.loads((tmp_path / "sampling_cpu.json").read_text()) == printed
    names = ("vocab", "dtype", "logits", "batch", "way")
    configurations = {tuple(result[name] for name in names) for result in printed["results"]}
    assert len(configurations) == len(printed["results"]) == 2 * 2 * 2 * 2 * len(sampling.WAYS)
    assert (printed["wrong"], printed["left_out"], printed["settings"]["backend"]) == (
        0,
        0,
        "compiled" if available() else "torch",
    )
    for result in printed["results"]:
        assert (result["wrong"], result["checked_rows"]) == (0, min(result["batch"], sampling.CHECKED_ROWS))
        assert "aims" not in result  # they are a GPU's
        samplers = result["samplers"]
        assert ("torch.topk" in samplers) == (result["way"] in ("top-k", "both"))
        read = result["batch"] * result["vocab"] * (4 if result["dtype"] == "float32" else 2)
        assert ("NumPy" in samplers) == available()
        for figures in (samplers["ds2ds"], samplers["torch"]):
            # Both are rounded to two decimals, of a time that may be of a few microseconds.
            slowest, fastest = (read / (figures["microseconds"] + by) / 1e3 for by in (0.0051, -0.0051))
            assert slowest - 0.0051 <= figures["gb_per_second"] <= fastest + 0.0051
            times = figures["microseconds"] / result["floor_us"]
            assert figures["times_floor"] == pytest.approx(times, rel=0.02, abs=0.01)


def test_what_there_is_no_time_for_is_counted(tmp_path: Path) -> None:
    printed = run("--limit", "0", "--output", str(tmp_path))
    assert len(printed["results"]) == 1 and printed["left_out"] == 2 * 2 * 2 * len(sampling.WAYS) - 1


def test_a_wrong_token_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "count_wrong", lambda *_: (1, 4))
    assert run("--output", str(tmp_path), code=1)["wrong"] == 2 * 2 * 2 * len(sampling.WAYS)


def test_a_kind_that_is_none_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(APP, ["--logits", "bumpy", "--output", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_tokens_are_checked_against_each_row_alone() -> None:
    way = Way("both", top_k=50, top_p=0.9)
    logits = torch.randn(9, 500, generator=torch.Generator().manual_seed(2))
    tokens = sampling.by_ds2ds(way, torch.arange(9), "torch")(logits)
    assert sampling.count_wrong(way, logits, tokens) == (0, 4)
    tokens[[0, 1, 8]] += 1  # the second is none of those compared
    assert sampling.count_wrong(way, logits, tokens) == (2, 4)


@pytest.mark.parametrize("sizes", sampling.OTHER_SIZES)
def test_cut_up_otherwise_the_kernels_draw_the_same(sizes: str) -> None:
    logits, rows = torch.randn(3, 300, generator=torch.Generator().manual_seed(1)), torch.arange(3)
    for way in sampling.WAYS:
        ours = sampling.by_kernels_in(way, rows, sampling.OTHER_SIZES[sizes])(logits)
        assert torch.equal(ours, sampling.by_ds2ds(way, rows, "torch")(logits))


def test_aims_are_set_where_figures_were_published_and_from_batch_64() -> None:
    fast, slow = ({"microseconds": 150.0, "times_floor": times} for times in (3.9, 4.1))
    assert sampling.aims("top-k", 128, 131072, fast) == [
        {"aim": "0.20 ms", "met": True},
        {"aim": "4x floor", "met": True},
    ]
    assert sampling.aims("top-p", 128, 131072, slow) == [
        {"aim": "0.14 ms", "met": False},
        {"aim": "4x floor", "met": False},
    ]
    assert [aim["aim"] for aim in sampling.aims("plain", 128, 131072, fast)] == ["4x floor"]
    assert sampling.aims("top-k", 32, 131072, fast) == []


# The logits


def kept_of_row(logits: torch.Tensor, top_p: float) -> np.ndarray:
    """How many tokens each row's nucleus has."""
    ordered = logits.double().softmax(-1).sort(-1, descending=True).values
    return ((ordered.cumsum(-1) - ordered) < top_p).sum(-1).numpy()


@pytest.mark.parametrize("vocab", [50304, 262144])
def test_peaked_logits_have_a_nucleus_of_tens_whatever_the_vocabulary(vocab: int) -> None:
    logits = sampling.make_logits("peaked", 6, vocab, torch.Generator().manual_seed(0))
    kept = kept_of_row(logits, 0.9)
    assert kept.min() > 30 and kept.max() < 90
    head = logits.double().softmax(-1).topk(sampling.HEAD).values.sum(-1)
    assert head.min() > 0.95 and head.max() < 0.985
    # In bfloat16, which rounds them, too.
    assert kept_of_row(logits.bfloat16(), 0.9).min() > 20 and kept_of_row(logits.bfloat16(), 0.9).max() < 100


def test_flat_logits_have_a_nucleus_of_most_tokens() -> None:
    logits = sampling.make_logits("flat", 4, 50304, torch.Generator().manual_seed(0))
    assert kept_of_row(logits, 0.9) / 50304 == pytest.approx(np.full(4, 0.61), abs=0.01)


def test_buffers_exceed_a_cache_unless_that_takes_too_many() -> None:
    assert sampling.buffers_of(2**16) == 2
    assert sampling.buffers_of(2**14) == 4
    assert sampling.buffers_of(2**10) == sampling.MOST_BUFFERS


# The baselines


def naive_set(logits: torch.Tensor, top_k: int, top_p: float) -> set[int]:
    """Token ids by decreasing probability, until k are there or the mass before one reaches p."""
    ids = sorted(range(len(logits)), key=lambda i: -float(logits[i]))[: top_k or len(logits)]
    weight = np.exp(logits[ids].double().numpy())
    before = np.cumsum(weight) - weight
    return {i for i, mass in zip(ids, before, strict=True) if mass < top_p * weight.sum()}


@pytest.mark.parametrize("seed", range(10))
def test_sorting_keeps_the_right_set_of_each_row(seed: int) -> None:
    draw = np.random.default_rng(seed)
    logits = torch.from_numpy(draw.standard_normal((12, 40)) * draw.uniform(0.5, 4)).float()
    top_k = torch.from_numpy(draw.integers(1, 45, 12)).int()
    top_p = torch.from_numpy(draw.uniform(0.05, 0.999, 12)).float()
    for k, p in ((top_k, top_p), (top_k, None), (None, top_p)):
        found = [torch_sampling.nucleus(logits, k, p)]
        if k is not None:
            found.append(torch_sampling.best_of(logits, 40, k, p))
        for probabilities, ids in found:
            for row in range(12):
                kept = set(ids[row, probabilities[row] > 0].tolist())
                of_k, of_p = int(k[row]) if k is not None else 0, float(p[row]) if p is not None else 2.0
                assert kept == naive_set(logits[row], of_k, of_p)


@pytest.mark.parametrize("way", sampling.WAYS)
@pytest.mark.parametrize("with_topk", [False, True])
def test_the_baseline_draws_by_probability_from_what_it_keeps(way: Way, with_topk: bool) -> None:
    torch.manual_seed(0)
    way = way._replace(top_k=min(way.top_k, 3))
    one = torch.tensor([0.05, 0.4, 0.02, 0.3, 0.03, 0.2]).log()
    drawn = torch_sampling.by_torch(way, 20_000, CPU, with_topk)(one.expand(20_000, -1))
    assert drawn.shape == (20_000,)
    kept = {1} if way.temperature == 0 else naive_set(one, way.top_k, way.top_p)
    share = np.bincount(drawn.numpy(), minlength=6) / 20_000
    expected = one.exp().double().numpy() * [i in kept for i in range(6)]
    np.testing.assert_allclose(share, expected / expected.sum(), atol=0.015)
    assert set(np.flatnonzero(share)) == kept


# FlashInfer, which need not be here


def stand_in(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(__version__="0.0"))
    monkeypatch.setitem(sys.modules, "flashinfer.sampling", SimpleNamespace(**functions))


def test_flashinfer_that_is_not_there_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    monkeypatch.setitem(sys.modules, "flashinfer.sampling", None)
    with pytest.raises(Missing, match="not installed"):
        FlashInfer()


def test_flashinfer_is_called_as_its_version_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_seeds(logits: Any, top_k: Any, top_p: Any, seed: Any = None, offset: Any = None) -> Any:
        return logits, top_k, top_p, seed, offset

    def without(probs: Any, top_k: Any) -> Any:
        return probs, top_k

    stand_in(monkeypatch, top_k_top_p_sampling_from_logits=with_seeds, top_k_sampling_from_probs=without)
    flashinfer = FlashInfer()
    logits = torch.randn(2, 9)
    sampler, graph = flashinfer.sampler(Way("both", top_k=5, top_p=0.5), 2, CPU)
    given, top_k, top_p, seed, offset = sampler(logits)
    assert graph and torch.equal(given, logits)
    assert (top_k.tolist(), top_p.tolist(), seed.shape, offset.shape) == ([5, 5], [0.5, 0.5], (1,), (1,))
    sampler, graph = flashinfer.sampler(Way("top-k", temperature=2.0, top_k=5), 2, CPU)
    given, top_k = sampler(logits)
    assert not graph and top_k.dtype == torch.int32
    torch.testing.assert_close(given, (logits / 2).softmax(-1))
    with pytest.raises(Missing, match=r"0\.0 has no top_p_sampling_from_probs"):
        flashinfer.sampler(Way("top-p", top_p=0.5), 2, CPU)


def test_what_a_rival_raises_is_its_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(logits: Any) -> Any:
        raise OSError("no compiler\nand more")

    stand_in(monkeypatch, sampling_from_logits=broken)
    bench = sampling.Bench(sampling_clock.make_clock(CPU, 0.0))
    samplers = bench.measure(Way("plain"), [torch.randn(2, 30)])["samplers"]
    assert samplers["flashinfer"] == {"problem": "OSError: no compiler"}
    assert samplers["torch"]["microseconds"] > 0
