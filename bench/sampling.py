"""Sampling a token from each row of logits: time beside the floor, PyTorch's sort and FlashInfer.

    python bench/sampling.py

The floor is one read of the logits at the speed at which a large copy moves bytes, read and written, in the same run;
GB/s are those bytes by the time taken. On a GPU a CUDA graph holds calls on several buffers of logits, and a read of
other memory before each replay clears the L2 cache, so that the logits come from memory. What no graph can capture is
launched call by call, and marked. Medians over replays.

Two kinds of logits. "flat" are normal, which published benchmarks use: 0.9 of the mass is 61% of the tokens.
"peaked" are like a language model's: normal of deviation 2, but for 100 tokens anywhere in the row whose probabilities
fall as rank ** -1.2 and sum to 97%, so that about 50 tokens hold 0.9 of the mass, whatever the vocabulary.

Before a configuration is timed, the tokens that the graph drew are compared with the host reference's on a few rows:
"wrong" counts those that differ. It must be 0, or the command fails. On a CPU "ds2ds" is compiled code, as in an
engine's steps there, if there is a C compiler, and "NumPy" the reference itself.

Prints a table, writes bench/results/sampling_{device}.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from decode import RESULTS
from options import the_device, the_dtype
from report import keep, report
from rich.table import Table
from sampling_clock import FAR_BEYOND_CACHE, Clock, make_clock
from torch import Tensor
from torch_sampling import FlashInfer, Missing, Sampler, Way, by_torch

from ds2ds.environment import environment
from ds2ds.kernels import sample_rows
from ds2ds.native import sampling as compiled
from ds2ds.native.operations import available

WAYS = (
    Way("greedy", temperature=0.0),
    Way("top-k", top_k=50),
    Way("top-p", top_p=0.9),
    Way("both", top_k=50, top_p=0.9),
    Way("plain"),
)
KINDS = ("flat", "peaked")
# The most telling first: a limit leaves out the last.
VOCABULARIES = {"cuda": (131072, 50304, 262144), "cpu": (50304,)}
BATCHES = {"cuda": (128, 1, 32, 256, 8), "cpu": (1, 8)}
# Milliseconds at this vocabulary and batch: the best published for a data-centre GPU (vLLM PR 40376).
PUBLISHED_AT = (131072, 128)
PUBLISHED = {"top-k": 0.20, "top-p": 0.14, "both": 0.26}
FLOORS, FLOORS_FROM_BATCH = 4, 64
HEAD, HEAD_EXPONENT, HEAD_MASS = 100, 1.2, 0.97
MOST_BUFFERS = 8
CHECKED_ROWS = 4
COMPILED = "compiled"
OURS, IN_NUMPY = "ds2ds", "NumPy"
RIVALS = (IN_NUMPY, "torch", "torch.topk", "flashinfer")
OTHER_SIZES: dict[str, dict[str, int]] = {"4 warps": {"scan_warps": 4, "draw_warps": 4}}
"""How else our kernels could cut up the work, which may suit a GPU better; at PUBLISHED_AT. See `Sizes`."""


def make_logits(kind: str, rows: int, vocab: int, generator: torch.Generator) -> Tensor:
    """float32 [rows, vocab], of a kind that the module's docstring describes."""
    device = generator.device
    logits = torch.randn(rows, vocab, device=device, generator=generator)
    if kind == "flat":
        return logits
    logits *= 2
    # The mean of exp of a normal of deviation 2 is exp(2), so what the head has to outweigh is known.
    rank = torch.arange(1, min(HEAD, vocab) + 1, device=device, dtype=torch.float32)
    head = -HEAD_EXPONENT * rank.log()
    head += math.log(vocab) + 2 + math.log(HEAD_MASS / (1 - HEAD_MASS)) - head.logsumexp(0)
    # Now and then two ranks fall on one token, which then has the logit of either.
    ids = torch.randint(vocab, (rows, len(rank)), device=device, generator=generator)
    return logits.scatter_(1, ids, head.expand(rows, -1))


def buffers_of(size: int) -> int:
    """How many buffers of so many bytes to take turns with: more than a cache holds, but a few at most."""
    return min(max(math.ceil(FAR_BEYOND_CACHE / size), 2), MOST_BUFFERS)


def settings_of(way: Way, rows: Tensor) -> dict[str, Tensor]:
    """As `sample_rows` takes them, with the number of each row as its seed and its position."""

    def each(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((len(rows),), value, dtype=dtype, device=rows.device)

    return {
        "temperature": each(way.temperature),
        "top_k": each(way.top_k, torch.int32),
        "top_p": each(way.top_p),
        "min_p": each(0.0),
        "seed": rows,
        "position": rows,
    }


def by_ds2ds(way: Way, rows: Tensor, backend: str) -> Sampler:
    """`sample_rows`, or what an engine's steps call on a CPU."""
    settings = settings_of(way, rows)
    if backend == COMPILED:
        return lambda logits: compiled.sample_rows(logits, **settings).tokens
    return lambda logits: sample_rows(logits, **settings, backend=backend).tokens


def by_kernels_in(way: Way, rows: Tensor, sizes: dict[str, int]) -> Sampler:
    """Our kernels, cut up otherwise than by default."""
    from ds2ds.kernels.sampling.launch import SIZES, sample_on_device

    settings, cut = tuple(settings_of(way, rows).values()), replace(SIZES, **sizes)
    return lambda logits: sample_on_device(logits, settings, None, cut).tokens


def count_wrong(way: Way, logits: Tensor, tokens: Tensor) -> tuple[int, int]:
    """Of how many rows the token is not what the host reference draws for the row alone, and of how many compared."""
    some = torch.linspace(0, len(logits) - 1, min(len(logits), CHECKED_ROWS)).round().long()
    reference = by_ds2ds(way, some, "torch")(logits[some.to(logits.device)].cpu())
    return int((reference != tokens.cpu()[some]).sum()), len(some)


class Bench:
    """Args:
    clock: of the device that all runs on.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock, self.device = clock, clock.device
        self.backend = "triton" if self.device.type == "cuda" else COMPILED if available() else "torch"
        self.bandwidth = clock.copy_bandwidth()
        self.flashinfer: FlashInfer | Missing
        try:
            self.flashinfer = FlashInfer()
        except Missing as why:
            self.flashinfer = why

    def measure(self, way: Way, buffers: Sequence[Tensor]) -> dict[str, Any]:
        batch, vocab = buffers[0].shape
        ours = self.clock.prepare(by_ds2ds(way, torch.arange(batch, device=self.device), self.backend), buffers)
        wrong, checked = count_wrong(way, buffers[0], ours.tokens)
        taken = {OURS: self._figures(self.clock.seconds(ours), buffers[0].nbytes)}
        for name in RIVALS:
            if (name != "torch.topk" or way.top_k) and (name != IN_NUMPY or self.backend == COMPILED):
                taken[name] = self._rival(name, way, buffers)
        if self.device.type == "cuda" and (vocab, batch) == PUBLISHED_AT:
            for name, sizes in OTHER_SIZES.items():
                sampler = by_kernels_in(way, torch.arange(batch, device=self.device), sizes)
                seconds = self.clock.seconds(self.clock.prepare(sampler, buffers))
                taken[name] = self._figures(seconds, buffers[0].nbytes)
        result = {"way": way.name, "batch": batch, "checked_rows": checked, "wrong": wrong}
        result |= {"floor_us": round(buffers[0].nbytes / self.bandwidth * 1e6, 5), "samplers": taken}
        if self.device.type == "cuda":
            result["aims"] = aims(way.name, batch, vocab, taken[OURS])
        return result

    def _rival(self, name: str, way: Way, buffers: Sequence[Tensor]) -> dict[str, Any]:
        """Its figures, or what the problem is: whatever a rival raises must not end the run."""
        batch = len(buffers[0])
        try:
            if name == IN_NUMPY:
                sampler, graph = by_ds2ds(way, torch.arange(batch), "torch"), True
            elif name != "flashinfer":
                sampler, graph = by_torch(way, batch, self.device, with_topk=name == "torch.topk"), True
            elif isinstance(self.flashinfer, Missing):
                raise self.flashinfer
            else:
                sampler, graph = self.flashinfer.sampler(way, batch, self.device)
            seconds = self.clock.seconds(self.clock.prepare(sampler, buffers, graph))
        except Missing as why:
            return {"problem": str(why)}
        except Exception as error:
            return {"problem": f"{type(error).__name__}: {error}".splitlines()[0]}
        return self._figures(seconds, buffers[0].nbytes) | ({} if graph else {"no_graph": True})

    def _figures(self, seconds: float, read: int) -> dict[str, Any]:
        return {
            "microseconds": round(seconds * 1e6, 2),
            "gb_per_second": round(read / seconds / 1e9, 2),
            "times_floor": round(seconds * self.bandwidth / read, 2),
        }


def aims(way: str, batch: int, vocab: int, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """What a GPU is to reach in this configuration, and whether it did."""
    found = []
    if (vocab, batch) == PUBLISHED_AT and way in PUBLISHED:
        met = figures["microseconds"] <= PUBLISHED[way] * 1e3
        found.append({"aim": f"{PUBLISHED[way]:.2f} ms", "met": met})
    if batch >= FLOORS_FROM_BATCH:
        found.append({"aim": f"{FLOORS}x floor", "met": figures["times_floor"] <= FLOORS})
    return found


def measurements(
    bench: Bench, vocabularies: Sequence[int], dtypes: Sequence[str], kinds: Sequence[str], batches: Sequence[int]
) -> Iterator[dict[str, Any]]:
    for vocab, dtype, kind in product(vocabularies, dtypes, kinds):
        precision, generator = the_dtype(dtype, bench.device), torch.Generator(bench.device).manual_seed(0)
        rows = {batch: batch * buffers_of(batch * vocab * precision.itemsize) for batch in batches}
        logits = make_logits(kind, max(rows.values()), vocab, generator).to(precision)
        for batch, way in product(batches, WAYS):
            head = {"vocab": vocab, "dtype": dtype, "logits": kind}
            yield head | bench.measure(way, logits[: rows[batch]].split(batch))
        del logits
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()  # what the graphs held


def table(measured: dict[str, Any]) -> Table:
    copied = f"copy {measured['copy_gb_per_second']:,.0f} GB/s"
    notes = [copied, f"FlashInfer: {measured['flashinfer']}", "* without a graph"]
    if measured["left_out"]:
        notes.append(f"{measured['left_out']} configurations left out: out of time")
    others = [*RIVALS, *(OTHER_SIZES if measured["settings"]["device"].startswith("cuda") else [])]
    out = Table(title="Sampling, microseconds (times as long as ds2ds)", caption="; ".join(notes))
    for heading in ("vocabulary", "dtype", "logits", "batch", "way", OURS, "GB/s", "x floor", *others, "wrong", "aims"):
        out.add_column(heading, justify="left" if heading in ("dtype", "logits", "way", "aims") else "right")
    for result in measured["results"]:
        own = result["samplers"][OURS]
        out.add_row(
            f"{result['vocab']:,}",
            *(str(result[name]) for name in ("dtype", "logits", "batch", "way")),
            f"{own['microseconds']:,.1f}",
            f"{own['gb_per_second']:,.1f}",
            f"{own['times_floor']:,.1f}",
            *(shown(result["samplers"].get(name), own) for name in others),
            f"{result['wrong']}/{result['checked_rows']}",
            ", ".join(f"{aim['aim']} {'yes' if aim['met'] else 'NO'}" for aim in result.get("aims", [])),
        )
    return out


def shown(rival: dict[str, Any] | None, own: dict[str, Any]) -> str:
    if rival is None or "problem" in rival:
        return "" if rival is None else rival["problem"]
    mark = "*" if rival.get("no_graph") else ""
    return f"{rival['microseconds']:,.1f}{mark} ({rival['microseconds'] / own['microseconds']:.1f})"


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[list[str], typer.Option(help="float32, bfloat16 or float16; may be given again.")] = ["float32"],  # noqa: B006
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    vocab: Annotated[list[int] | None, typer.Option(min=1, help="May be given again.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="May be given again.")] = None,
    logits: Annotated[list[str], typer.Option(help="flat or peaked; may be given again.")] = list(KINDS),  # noqa: B006
    budget: Annotated[float, typer.Option(help="Seconds for each sampler in a configuration, about.")] = 0.05,
    limit: Annotated[float, typer.Option(help="Seconds after which no configuration is begun.")] = math.inf,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure, print a table and write JSON."""
    started = time.monotonic()
    where = the_device(device)
    torch.set_num_threads(threads)
    if unknown := [name for name in logits if name not in KINDS]:
        raise typer.BadParameter(f"logits are of no kind {unknown[0]!r}, but {' or '.join(KINDS)}")
    vocabularies, batches = vocab or VOCABULARIES[where.type], batch or BATCHES[where.type]
    bench = Bench(make_clock(where, budget))
    wanted = len(vocabularies) * len(dtype) * len(logits) * len(batches) * len(WAYS)
    results: list[dict[str, Any]] = []
    flashinfer = str(bench.flashinfer) if isinstance(bench.flashinfer, Missing) else bench.flashinfer.version
    measured = {
        "environment": environment(where),
        "settings": {"device": device, "backend": bench.backend, "budget": budget},
        "copy_gb_per_second": round(bench.bandwidth / 1e9, 1),
        "flashinfer": flashinfer,
        "left_out": wanted,
        "wrong": 0,
        "results": results,
    }
    file = output / f"sampling_{where.type}.json"
    for result in measurements(bench, vocabularies, dtype, logits, batches):
        results.append(result)
        measured |= {"left_out": wanted - len(results), "wrong": measured["wrong"] + result["wrong"]}
        keep(measured, file)
        if time.monotonic() - started > limit:
            break
    report(table(measured), measured, file)
    if measured["wrong"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
