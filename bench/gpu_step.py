"""The step that decodes on a GPU: tokens/s with CUDA graphs and without, beside the floor, and what fills its time.

    python bench/gpu_step.py

Some requests decode at a time, greedy, random weights, through the engine: planning, link scanning and all. A case is
a model, how many requests, and the tokens of each before the first one that is decoded. Modes:

    graphs      captured per bucket, each step launched before the tokens of the last one are read
    overlapping the same, each kernel of ours launched while the one before it runs (sm_90 on; else left out)
    torch       as graphs, but the products of few rows are PyTorch's, with what stands around them launched by itself
    not ahead   the same graphs, each launched when the tokens of the last one have been read
    launched    ahead, but every kernel launched from the host
    ordinary    without tables on the device (cuda_graphs=False)

The floor is what a step must read (weights once, keys and values in view) at the speed of a large sum in the same run.
For `graphs` and `overlapping` a profile follows: kernels per step, the share of the time in which none runs, and the
kernels that take the most. On a CPU, for a trial, the last two modes run, under TRITON_INTERPRET=1.

Prints a table, writes bench/results/gpu_step_{device}.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import torch
import typer
from options import the_device, the_dtype
from report import keep, report
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from ds2ds.attention.plain import PlainAttention
from ds2ds.attention.triton_decode import TritonPath
from ds2ds.bench.floor import make_buffer, read_bandwidth, token_bytes, tokens_in_view, weight_bytes
from ds2ds.bench.models import make_model
from ds2ds.engine.arena_size import KV_BLOCK
from ds2ds.engine.decode_graph.decoder import Decoder
from ds2ds.engine.decode_graph.graphs import can_overlap
from ds2ds.environment import environment
from ds2ds.generation.running import Running
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.runtime import Runtime

RESULTS = Path(__file__).parent / "results"
MODES: dict[str, dict[str, Any] | None] = {
    "graphs": {"capture": True, "ahead": True},
    "overlapping": {"capture": True, "ahead": True, "overlap": True},
    "torch": {"capture": True, "ahead": True, "few_rows": 0},
    "not ahead": {"capture": True, "ahead": False},
    "launched": {"capture": False, "ahead": True},
    "ordinary": None,
}
ON_CPU = ("launched", "ordinary")
PROFILED = ("graphs", "overlapping")
PROFILED_STEPS = 10


class Case(NamedTuple):
    """What is decoded: a model's size, and how many requests, each of so many tokens."""

    size: str
    batch: int
    context: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """ "SIZE BATCH CONTEXT".

        Raises:
            typer.BadParameter: it is something else.
        """
        size, *numbers = text.split() or [""]
        if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
            raise typer.BadParameter(f"a case is 'SIZE BATCH CONTEXT', say '12x768 8 256', got {text!r}")
        return cls(size, *map(int, numbers))


CASES = ("12x768 1 1024", "36x1280 1 1024", "12x768 8 256", "12x768 64 256")
"""The first two are those that there are aims for: half of the floor's speed, and four fifths."""


class Span(NamedTuple):
    """A kernel's time on the device, in microseconds."""

    name: str
    start: float
    end: float


def timeline(spans: Sequence[Span], steps: int) -> dict[str, Any]:
    """What kernels of so many steps come to, plain JSON types.

    A gap is time in which no kernel runs, between the first one and the last.
    """
    spans = sorted(spans, key=lambda span: span.start)
    reached, gaps = spans[0].start, []
    for span in spans:
        if span.start > reached:
            gaps.append(span.start - reached)
        reached = max(reached, span.end)
    whole = reached - spans[0].start
    taken: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for span in spans:
        taken[span.name] += span.end - span.start
        number[span.name] += 1
    starts = [after.start - before.start for before, after in pairwise(spans)]
    return {
        "kernels_per_step": round(len(spans) / steps, 2),
        "microseconds_per_step": round(whole / steps, 2),
        "gap_share": round(sum(gaps) / whole, 4),
        "median_gap_us": round(median(gaps), 3) if gaps else 0.0,
        "longest_gap_us": round(max(gaps), 3) if gaps else 0.0,
        "median_from_start_to_start_us": round(median(starts), 3) if starts else 0.0,
        "kernels": [
            {"name": name[:80], "per_step": round(number[name] / steps, 2), "us_per_step": round(us / steps, 2)}
            for name, us in taken.most_common(12)
        ],
    }


class Bench:
    """One model, decoded in one mode, by requests of up to so many tokens."""

    def __init__(self, model: DS2DSModel, mode: str, batch: int, length: int) -> None:
        # What the engine reckons with for a request: its window, its document, and a block more of each.
        slots = 2 * batch * (length + KV_BLOCK[model.device.type])
        on_gpu = model.device.type == "cuda"
        self.runtime = Runtime(
            model, arena_tokens=slots, attention="triton" if on_gpu else "plain", cuda_graphs=False, max_running=batch
        )
        self.engine = self.runtime.engine
        store = self.engine.store
        # Prefill is not measured, and FlexAttention takes long to compile.
        plain = partial(PlainAttention, store, model.rotary)
        if on_gpu:
            self.engine.attention = TritonPath(store, model.rotary, prefill=plain)
        options = MODES[mode]
        if options is not None:
            self.engine.decoder = Decoder(model, store, batch, **options)

    def start(self, batch: int, context: int, tokens: int) -> list[Running]:
        """Requests that decode, and go on for so many tokens."""
        vocabulary = self.runtime.model.config.vocab_size
        length = context + tokens
        config = self.runtime._generator.default_config().with_overrides(
            max_new_tokens=tokens,
            max_tokens_per_document=length,
            max_context_length=length,
            temperature=0.0,
            # Links are looked for but not followed, and no token ends the document.
            max_link_depth=0,
            process_prompt_links=False,
            max_auxiliary_documents=1,
            eos_token_id=vocabulary,
        )
        dice = torch.Generator().manual_seed(0)
        prompts = [torch.randint(vocabulary - 1, (context,), generator=dice).tolist() for _ in range(batch)]
        running = [self.runtime._generator.start(None, prompt, None, config) for prompt in prompts]
        while min(map(written, running)) < 3:
            self.engine.step()
        if len(self.engine.running) != batch:
            raise RuntimeError(f"{len(self.engine.running)} of {batch} requests run at a time")
        return running

    def steps(self, number: int) -> float:
        """Make so many; returns seconds."""
        synchronize(self.runtime.model.device)
        started = time.perf_counter()
        for _ in range(number):
            self.engine.step()
        synchronize(self.runtime.model.device)
        return time.perf_counter() - started

    def profile(self, number: int) -> dict[str, Any] | None:
        """None: this machine's profiler saw no kernel."""
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            self.steps(number)
        spans = [
            Span(event.name, event.time_range.start, event.time_range.end)
            for event in found.events()
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        ]
        return timeline(spans, number) if spans else None


def written(running: Running) -> int:
    root = running.request.context.root
    return len(root.tokens) - root.given


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tokens_of(steps: int) -> int:
    """What each request writes at most: first steps, timed ones and profiled ones, and some to start with."""
    return 3 * steps + PROFILED_STEPS + 16


def measure(model: DS2DSModel, modes: Sequence[str], case: Case, steps: int, read: float) -> dict[str, Any]:
    """All modes of one case, plain JSON types."""
    result: dict[str, Any] = case._asdict()
    for mode in modes:
        bench = Bench(model, mode, case.batch, case.context + tokens_of(steps))
        running = bench.start(case.batch, case.context, tokens_of(steps))
        bench.steps(steps)
        before = sum(map(written, running))
        seconds = bench.steps(steps)
        tokens = sum(map(written, running)) - before
        view = tokens_in_view((one.request.context.root, len(one.request.context.root.tokens)) for one in running)
        moved = weight_bytes(model) + token_bytes(bench.engine) * view
        step = seconds * case.batch / tokens
        result[mode] = {
            "tokens_per_second": round(tokens / seconds, 2),
            "step_us": round(step * 1e6, 2),
            "gb_per_second": round(moved / step / 1e9, 2),
            "share_of_floor": round(moved / read / step, 4),
        }
        if mode in PROFILED:
            result[mode]["profile"] = bench.profile(PROFILED_STEPS)
        for one in running:
            bench.engine.cancel(one.job)
    result["floor_us"] = round(moved / read * 1e6, 2)
    return result


def table(results: Sequence[dict[str, Any]], modes: Sequence[str]) -> Table:
    out = Table(title="A decoded step: µs (share of the floor), and its kernels")
    for heading in ("size", "batch", "context", "floor µs", *modes, "tokens/s", "kernels", "gaps"):
        out.add_column(heading, justify="right")
    for result in results:
        steps = [f"{result[mode]['step_us']:,.0f} ({result[mode]['share_of_floor']:.0%})" for mode in modes]
        profiled = result[modes[0]].get("profile")
        details = ("-", "-") if profiled is None else (
            f"{profiled['kernels_per_step']:.0f}", f"{profiled['gap_share']:.0%}"
        )  # fmt: skip
        speed = f"{result[modes[0]]['tokens_per_second']:,.0f}"
        out.add_row(
            result["size"],
            str(result["batch"]),
            str(result["context"]),
            f"{result['floor_us']:,.0f}",
            *steps,
            speed,
            *details,
        )
    return out


def main(
    device: Annotated[str, typer.Option(help="cuda, or cpu for a trial.")] = "cuda",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    case: Annotated[list[str], typer.Option(help="'SIZE BATCH CONTEXT'; may be given again.")] = list(CASES),  # noqa: B006
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 100,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure, print a table and write JSON."""
    where = the_device(device)
    weights = the_dtype(dtype, where)
    cases = [Case.parse(text) for text in case]
    modes = tuple(MODES) if where.type == "cuda" else ON_CPU
    if not can_overlap(where):
        modes = tuple(mode for mode in modes if mode != "overlapping")
    positions = max(one.context for one in cases) + tokens_of(steps)
    models = {size: make_model(size, where, weights, positions) for size in dict.fromkeys(one.size for one in cases)}
    buffer = make_buffer(where)
    read = median(read_bandwidth(buffer) for _ in range(5))
    del buffer
    settings = {"device": device, "dtype": dtype, "steps": steps, "read_gb_per_second": round(read / 1e9, 2)}
    results: list[dict[str, Any]] = []
    measured = {"environment": environment(where), "settings": settings, "results": results}
    file = output / f"gpu_step_{where.type}.json"
    for one in cases:
        results.append(measure(models[one.size], modes, one, steps, read))
        keep(measured, file)
    report(table(results, modes), measured, file)


if __name__ == "__main__":
    typer.run(main)
