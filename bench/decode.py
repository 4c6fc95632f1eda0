"""Decoding, one token after the other: ds2ds beside recomputing the whole sequence, and beside transformers' GPT-2.

    python bench/decode.py

Batch 1, greedy, random weights. All contestants take turns in one process, so that whatever else the machine does
meets all of them: in each round each decodes some tokens (the no-cache ones a single token, at long contexts that is
seconds), going on from where it stopped. Prefill is not counted. Figures are medians over rounds; "times faster" is the
median of each round's ratio. ds2ds goes the public way, `Runtime.stream`, with sampling and link scanning.

GB/s are bytes that a cached token cannot do without (weights, and keys and values at the stated context) by its time,
beside what a plain sum over a large buffer reads per second, measured in the same rounds.

Prints a table, writes bench/results/decode_{device}.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import baselines
import torch
import typer
from options import the_device, the_dtype
from report import keep, report
from rich.console import Console
from rich.table import Table

from ds2ds.environment import environment
from ds2ds.generation.events import TokenWritten
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.runtime import Runtime

RESULTS = Path(__file__).parent / "results"
SIZES = ("6x384", "12x768")
CONTEXTS = (128, 512, 2048)
BASELINES = ("no_cache_flex", "no_cache_sdpa", "transformers")
HEAD_DIM = 64
VOCAB_SIZE = 50257
MAX_SEQ_LEN = 4096
BUFFER_BYTES = {"cpu": 2**30, "cuda": 2**32}
"""Such that what surrounds the reading takes no time beside it."""


@dataclass(frozen=True)
class Contestant:
    """Attributes:
    tokens: greedy tokens, the first one after the prefill.
    per_round: tokens it decodes in a round.
    bytes_per_token: what decoding with a cache must read; None without a cache.
    """

    name: str
    tokens: Iterator[int]
    per_round: int
    bytes_per_token: int | None = None
    detail: str = ""

    def run(self, count: int) -> float:
        """Decode so many tokens; returns seconds."""
        started = time.perf_counter()
        if sum(1 for _ in islice(self.tokens, count)) != count:
            raise RuntimeError(f"{self.name} ended before it had decoded {count} more tokens")
        return time.perf_counter() - started


class Contest:
    """The models of one size, and what decodes with them.

    Args:
        size: "LAYERSxWIDTH"; heads have HEAD_DIM dimensions.
    """

    def __init__(self, size: str, device: torch.device, dtype: torch.dtype, with_gpt2: bool = True) -> None:
        layers, width = parse_size(size)
        torch.manual_seed(0)
        self.model = DS2DSModel.from_config(
            vocab_size=VOCAB_SIZE,
            num_layers=layers,
            model_dim=width,
            num_heads=width // HEAD_DIM,
            max_seq_len=MAX_SEQ_LEN,
        ).to(device=device, dtype=dtype)
        self.runtime = Runtime(self.model)
        self.gpt2: Any = baselines.gpt2_like(self.model.config, device, dtype) if with_gpt2 else None

    def contestants(self, context: int, tokens: int, rounds: int, against: tuple[str, ...]) -> list[Contestant]:
        """ds2ds first; each starts from the same prompt of `context` tokens and has `tokens` to decode per round."""
        prompt = torch.randint(VOCAB_SIZE - 1, (context,), generator=torch.Generator().manual_seed(context)).tolist()
        own = runtime_tokens(self.runtime, prompt, warm_up(tokens) + tokens * rounds)
        runners = [Contestant("ds2ds", own, tokens, self._bytes(self.model.parameters(), context))]
        for name in against:
            if name == "transformers":
                runners.append(self._gpt2(prompt, tokens))
            else:
                runners.append(Contestant(name, getattr(baselines, name)(self.model, prompt), 1))
        return runners

    def _gpt2(self, prompt: list[int], tokens: int) -> Contestant:
        """GPT-2 under that of its implementations of attention which is faster here."""
        trials = {}
        for attention in ("sdpa", "eager"):
            trial = Contestant(attention, baselines.transformers_gpt2(self.gpt2, prompt, attention), tokens)
            trial.run(warm_up(tokens))
            trials[attention] = trial.run(tokens)
        faster = min(trials, key=lambda attention: trials[attention])
        # Of the table of positions a token reads one row.
        weights = [p for name, p in self.gpt2.named_parameters() if "wpe" not in name]
        decoding = baselines.transformers_gpt2(self.gpt2, prompt, faster)
        return Contestant("transformers", decoding, tokens, self._bytes(weights, len(prompt)), faster)

    def _bytes(self, weights: Any, context: int) -> int:
        config = self.model.config
        keys_and_values = 2 * config.num_layers * config.model_dim * context * self.model.dtype.itemsize
        return sum(weight.numel() * weight.itemsize for weight in weights) + keys_and_values


def parse_size(size: str) -> tuple[int, int]:
    """Layers and width.

    Raises:
        typer.BadParameter: it does not name a model.
    """
    layers, _, width = size.partition("x")
    if not (layers.isdecimal() and width.isdecimal() and int(layers) and int(width) and int(width) % HEAD_DIM == 0):
        raise typer.BadParameter(f"--size must be LAYERSxWIDTH, the width a multiple of {HEAD_DIM}, got {size!r}")
    return int(layers), int(width)


def warm_up(per_round: int) -> int:
    """Tokens decoded before any is timed; the first of them takes the prefill."""
    return 1 + per_round // 4


def runtime_tokens(runtime: Runtime, prompt: list[int], count: int) -> Iterator[int]:
    """`count` tokens through the public way, each as its event arrives."""
    length = len(prompt) + count
    for event in runtime.stream(
        prompt_tokens=prompt,
        max_new_tokens=count,
        max_tokens_per_document=length,
        max_context_length=length,
        temperature=0.0,
        # Links are looked for but not followed, and no token ends the document.
        max_link_depth=0,
        process_prompt_links=False,
        eos_token_id=runtime.model.config.vocab_size,
    ):
        if isinstance(event, TokenWritten):
            yield event.token


def read_bandwidth(buffer: torch.Tensor) -> float:
    """GB/s of reading the whole buffer once."""
    started = time.perf_counter()
    buffer.sum().item()
    return buffer.nbytes / (time.perf_counter() - started) / 1e9


def race(contestants: list[Contestant], rounds: int, buffer: torch.Tensor) -> dict[str, Any]:
    """Let them take turns.

    Returns:
        {"read_gb_per_second", "contestants": {name: {...}}, "times_faster": {baseline: ratio}}, plain JSON types; the
        first contestant's figures are what the ratios are of.
    """
    for contestant in contestants:
        contestant.run(warm_up(contestant.per_round))
    buffer.sum().item()
    bandwidth = []
    speeds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for turn in range(rounds):
        bandwidth.append(read_bandwidth(buffer))
        for contestant in contestants[:: 1 if turn % 2 == 0 else -1]:
            speeds[contestant.name].append(contestant.per_round / contestant.run(contestant.per_round))
    read = statistics.median(bandwidth)
    first, *others = contestants
    return {
        "read_gb_per_second": round(read, 2),
        "contestants": {one.name: _figures(one, speeds[one.name], read) for one in contestants},
        "times_faster": {
            other.name: round(
                statistics.median(a / b for a, b in zip(speeds[first.name], speeds[other.name], strict=True)), 3
            )
            for other in others
        },
    }


def _figures(contestant: Contestant, speeds: list[float], read: float) -> dict[str, Any]:
    speed = statistics.median(speeds)
    figures: dict[str, Any] = {"tokens_per_second": round(speed, 3), "rounds": [round(s, 3) for s in speeds]}
    if contestant.bytes_per_token is not None:
        achieved = speed * contestant.bytes_per_token / 1e9
        figures["bytes_per_token"] = contestant.bytes_per_token
        figures["gb_per_second"] = round(achieved, 2)
        figures["share_of_read_bandwidth"] = round(achieved / read, 3)
    if contestant.detail:
        figures["attention"] = contestant.detail
    return figures


def table(results: list[dict[str, Any]]) -> Table:
    out = Table(title="Decoding, tokens/s (in brackets: ds2ds is so many times as fast)")
    for heading in ("model", "context", *results[0]["contestants"], "ds2ds GB/s", "machine GB/s", "share"):
        out.add_column(heading, justify="right")
    for result in results:
        own = result["contestants"]["ds2ds"]
        speeds = [
            f"{figures['tokens_per_second']:.4g}"
            + (f" ({result['times_faster'][name]:.3g}x)" if name in result["times_faster"] else "")
            for name, figures in result["contestants"].items()
        ]
        share = f"{own['share_of_read_bandwidth']:.0%}"
        out.add_row(
            result["model"],
            str(result["context"]),
            *speeds,
            f"{own['gb_per_second']:.1f}",
            f"{result['read_gb_per_second']:.1f}",
            share,
        )
    return out


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    size: Annotated[list[str], typer.Option(help="LAYERSxWIDTH; may be given again.")] = list(SIZES),  # noqa: B006
    context: Annotated[list[int], typer.Option(help="Tokens before the first; may be given again.")] = list(CONTEXTS),  # noqa: B006
    against: Annotated[list[str], typer.Option(help="Baselines; may be given again.")] = list(BASELINES),  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each cached contestant in a round.")] = 16,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure decoding, print a table and write JSON."""
    unknown = sorted(set(against) - set(BASELINES))
    if unknown:
        raise typer.BadParameter(f"--against must be among {BASELINES}, got {unknown}")
    for shape in size:
        parse_size(shape)
    where = the_device(device)
    precision = the_dtype(dtype, where)
    torch.set_num_threads(threads)
    measured: dict[str, Any] = {
        "environment": environment(where),
        "settings": {
            "device": device,
            "dtype": dtype,
            "batch": 1,
            "rounds": rounds,
            "tokens_per_round": tokens,
            "tokens_per_round_without_cache": 1,
        },
    }
    progress = Console(stderr=True)
    buffer = torch.ones(BUFFER_BYTES[where.type] // 4, device=where)
    results = measured["results"] = []
    file = output / f"decode_{where.type}.json"
    for shape in size:
        contest = Contest(shape, where, precision, with_gpt2="transformers" in against)
        for length in context:
            progress.print(f"{shape}, context {length} ...")
            runners = contest.contestants(length, tokens, rounds, tuple(against))
            parameters = sum(weight.numel() for weight in contest.model.parameters())
            results.append(
                {"model": shape, "parameters": parameters, "context": length, **race(runners, rounds, buffer)}
            )
            keep(measured, file)
    report(table(results), measured, file)


if __name__ == "__main__":
    typer.run(main)
