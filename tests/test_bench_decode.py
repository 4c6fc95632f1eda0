"""bench/: what is measured side by side computes the same thing, and the figures are written as they are read."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ds2ds import DS2DSModel, Runtime
from ds2ds.environment import environment

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import baselines  # noqa: E402
import decode  # noqa: E402
import typer  # noqa: E402
from read_results import markdown_table  # noqa: E402

Baseline = Callable[[DS2DSModel, list[int]], Iterator[int]]
COUNT = 12

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.usefixtures("threads_as_before"),
]


def tiny(device: str = "cpu") -> DS2DSModel:
    torch.manual_seed(1)
    # Untied, so that greedy tokens do not just repeat the last one.
    return DS2DSModel.from_config(
        vocab_size=500, num_layers=3, model_dim=64, num_heads=4, max_seq_len=128, weight_tying=False
    ).to(device)


PROMPT = torch.randint(500, (40,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("baseline", [baselines.no_cache_flex, baselines.no_cache_sdpa])
def test_a_baseline_without_cache_writes_the_runtimes_tokens(baseline: Baseline) -> None:
    model = tiny()
    ours = list(decode.runtime_tokens(Runtime(model), PROMPT, COUNT))
    assert len(set(ours)) > COUNT // 2, "the tokens must differ for the comparison to mean anything"
    assert list(islice(baseline(model, PROMPT), COUNT)) == ours


def test_the_flex_forward_gives_all_logits_of_the_full_pass() -> None:
    model, tokens = tiny(), torch.tensor([PROMPT])
    logits = baselines.flex_forward(model, tokens)
    assert logits.shape == (1, len(PROMPT), 500)
    torch.testing.assert_close(logits, model.forward_inference(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gpt2_with_its_cache_writes_what_it_writes_without(attention: str) -> None:
    pytest.importorskip("transformers")
    gpt2 = baselines.gpt2_like(tiny().config, torch.device("cpu"), torch.float32)
    assert sum(p.numel() for p in gpt2.parameters()) > 3 * 12 * 64**2
    tokens = list(PROMPT)
    for token in islice(baselines.transformers_gpt2(gpt2, PROMPT, attention), COUNT):
        with torch.inference_mode():
            assert token == int(gpt2(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
        tokens.append(token)


def test_a_cached_contestants_bytes_are_its_weights_and_its_cache() -> None:
    contest = decode.Contest("1x64", torch.device("cpu"), torch.float32, with_gpt2=False)
    (ours,) = contest.contestants(32, 4, 2, ())
    assert ours.bytes_per_token == 4 * (decode.VOCAB_SIZE * 64 + 4 * 64**2 + 3 * 64 * 256) + 4 * 2 * 64 * 32


def test_a_contestant_that_ends_early_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="short ended before it had decoded 3 more tokens"):
        decode.Contestant("short", iter([1, 2]), 3).run(3)


def test_contestants_take_turns_and_the_order_changes() -> None:
    order: list[str] = []

    def endless(name: str) -> Iterator[int]:
        while True:
            order.append(name)
            yield 0

    runners = [decode.Contestant("a", endless("a"), 2, 8), decode.Contestant("b", endless("b"), 1)]
    result = decode.race(runners, 2, torch.ones(1000))
    assert "".join(order) == "a" + "b" + "aab" + "baa"
    assert set(result["contestants"]) == {"a", "b"}
    assert result["times_faster"].keys() == {"b"}
    assert result["contestants"]["a"]["gb_per_second"] >= 0
    assert "gb_per_second" not in result["contestants"]["b"]


def test_the_command_writes_what_it_prints_and_the_table_shows_it(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(decode.main)
    settings = "--size 1x64 --context 16 --rounds 1 --tokens 2 --threads 1"
    against = "--against no_cache_flex --against no_cache_sdpa"
    done = CliRunner().invoke(app, f"{settings} {against} --output {tmp_path}".split(), catch_exceptions=False)
    assert done.exit_code == 0
    written = json.loads((tmp_path / "decode_cpu.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == written
    assert written["settings"]["tokens_per_round"] == 2
    (result,) = written["results"]
    assert (result["model"], result["context"]) == ("1x64", 16)
    assert list(result["contestants"]) == ["ds2ds", "no_cache_flex", "no_cache_sdpa"]
    assert all(figures["tokens_per_second"] > 0 for figures in result["contestants"].values())
    assert result["contestants"]["ds2ds"]["share_of_read_bandwidth"] > 0
    assert list(result["times_faster"]) == ["no_cache_flex", "no_cache_sdpa"]

    heading, rule, row, empty, below = markdown_table(tmp_path / "decode_cpu.json").splitlines()
    assert heading.count("|") == rule.count("|") == row.count("|") == 7
    assert row.startswith("| 1x64 (3M) | 16 | **")
    assert not empty and written["environment"]["torch"] in below


def test_the_environment_names_the_machine_but_no_path_or_host() -> None:
    facts = environment(torch.device("cpu"))
    assert facts["torch"] == torch.__version__ and facts["cpu"] and facts["cores"] >= 1 and facts["gpu"] is None
    assert facts["date"].endswith("+00:00")
    assert {"commit", "dirty", "threads", "load_average"} <= facts.keys()
    text = json.dumps(facts)
    assert str(ROOT) not in text and platform.node() not in text


def test_figures_do_not_depend_on_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: nowhere")
    monkeypatch.setattr("ds2ds.environment.ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment()["commit"] is None
    monkeypatch.setenv("PATH", "")
    assert environment()["dirty"] is None


@pytest.mark.parametrize("bad", [["--against", "gpt5"], ["--size", "0x64"], ["--size", "1x100"], ["--size", "small"]])
def test_what_cannot_be_measured_is_refused(bad: list[str], tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(decode.main)
    done = CliRunner().invoke(app, [*bad, "--output", str(tmp_path)])
    assert done.exit_code == 2
    assert not list(tmp_path.iterdir())
    assert bad[0] in done.output and bad[1] in done.output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_writes_the_tokens_of_a_pass_without_cache() -> None:
    model = tiny("cuda")
    ours = list(decode.runtime_tokens(Runtime(model), PROMPT, COUNT))
    assert list(islice(baselines.no_cache_sdpa(model, PROMPT), COUNT)) == ours
