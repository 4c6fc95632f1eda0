"""Compacting the arena: bytes per second, beside a plain copy of as many bytes.

    python bench/compaction.py

The arena is filled with extents of FOLDOC's lengths and every second one is freed; then all others slide down. Every
byte moved counts twice, read once and written once, as does every byte of the copy, which goes from one buffer to
another. The two take turns; medians over rounds.

On a GPU they are timed there, by events, behind a wait that is long enough for the host to have queued them: what the
host does first, which it can do while the GPU is at work, is not in it. How long a call takes in all is reported
beside it. The arena is several times as large as the L2 cache, so nothing needs to be flushed. The aim is AIM of the
copy's bytes per second.

Prints a table, writes bench/results/compaction_{device}.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from decode import HEAD_DIM, RESULTS, parse_size
from options import the_device, the_dtype
from report import keep, report
from rich.table import Table

from ds2ds.cache.arena import move_slots
from ds2ds.cache.extents import ExtentAllocator, Move
from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.engine.arena_size import KV_BLOCK
from ds2ds.environment import environment

SIZE = "12x768"
SLOTS = {"cpu": (8192, 32768), "cuda": (8192, 32768, 131072)}
ROUNDS = {"cpu": 9, "cuda": 50}
LONGEST = 512
AIM = 0.8
WAIT_CYCLES = 10_000_000
"""About 5 ms of a GPU's clock: longer than the host takes to queue a compaction."""


def foldoc_lengths(longest: int = LONGEST) -> list[int]:
    with DocumentCorpus("demo") as corpus:
        return [min(node.length, longest) for node in corpus.graph.nodes()]


def fragmented(slots: int, block: int, lengths: Sequence[int]) -> list[Move]:
    """The moves that compact an arena which was filled with extents of these lengths, every second one freed since."""
    allocator = ExtentAllocator(slots, block)
    extents = []
    for length in lengths:
        extent = allocator.allocate(length)
        if extent is None:
            break
        extents.append(extent)
    for extent in extents[::2]:
        allocator.release(extent)
    return allocator.compact()


class Bench:
    """An arena of a model's geometry, and two buffers of as many bytes as its compaction moves."""

    def __init__(self, size: str, slots: int, device: torch.device, dtype: torch.dtype, lengths: Sequence[int]) -> None:
        layers, width = parse_size(size)
        self.moves = fragmented(slots, KV_BLOCK[device.type], lengths)
        self.moved_slots = sum(move.length for move in self.moves)
        # Ones, as all memory is to be there before it is timed; nothing depends on what is moved.
        self.arena = torch.ones(layers, 2, width // HEAD_DIM, slots, HEAD_DIM, dtype=dtype, device=device)
        self.moved_bytes = self.moved_slots * self.arena[..., 0, :].nbytes
        self.source = torch.ones(self.moved_bytes, dtype=torch.uint8, device=device)
        self.target = torch.ones_like(self.source)

    def compact(self) -> None:
        move_slots(self.arena, self.moves)

    def copy(self) -> None:
        self.target.copy_(self.source)

    def seconds(self, work: Callable[[], None]) -> float:
        """On the device, from when the work before it is done."""
        if self.arena.device.type != "cuda":
            return self.call_seconds(work)
        self._wait()
        with torch.cuda.device(self.arena.device):
            started, stopped = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(WAIT_CYCLES)
            started.record()
            work()
            stopped.record()
        stopped.synchronize()
        return started.elapsed_time(stopped) / 1e3

    def call_seconds(self, work: Callable[[], None]) -> float:
        """From the call until the device has done it."""
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.arena.device.type == "cuda":
            torch.cuda.synchronize(self.arena.device)


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Let the compaction and the copy take turns."""
    ways = {"compaction": bench.compact, "copy": bench.copy}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for work in ways.values():
        work()
    for turn in range(rounds):
        for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(bench.seconds(ways[name]))
    speeds = {name: 2 * bench.moved_bytes / statistics.median(taken) / 1e9 for name, taken in seconds.items()}
    share = statistics.median(copy / own for own, copy in zip(seconds["compaction"], seconds["copy"], strict=True))
    result = {
        "slots": bench.arena.shape[-2],
        "moves": len(bench.moves),
        "moved_slots": bench.moved_slots,
        "moved_bytes": bench.moved_bytes,
        "milliseconds": round(statistics.median(seconds["compaction"]) * 1e3, 3),
        "gb_per_second": round(speeds["compaction"], 2),
        "copy_gb_per_second": round(speeds["copy"], 2),
        "share_of_copy": round(share, 3),
    }
    if bench.arena.device.type == "cuda":
        calls = [bench.call_seconds(bench.compact) for _ in range(rounds)]
        result["call_milliseconds"] = round(statistics.median(calls) * 1e3, 3)
    return result


def table(results: list[dict[str, Any]]) -> Table:
    out = Table(title=f"Compaction (on a GPU the aim is {AIM:.0%} of the copy)")
    for heading in ("slots", "moves", "slots moved", "MB moved", "ms", "GB/s", "copy GB/s", "share"):
        out.add_column(heading, justify="right")
    for result in results:
        out.add_row(
            *(f"{result[name]:,}" for name in ("slots", "moves", "moved_slots")),
            f"{result['moved_bytes'] / 1e6:,.0f}",
            f"{result['milliseconds']:,.2f}",
            *(f"{result[name]:.1f}" for name in ("gb_per_second", "copy_gb_per_second")),
            f"{result['share_of_copy']:.0%}",
        )
    return out


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    size: Annotated[str, typer.Option(help="LAYERSxWIDTH, whose arena it is.")] = SIZE,
    slots: Annotated[
        list[int] | None, typer.Option(min=1024, help=f"Of the arena; may be given again. By default {SLOTS}.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help=f"By default {ROUNDS}.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure, print a table and write JSON."""
    where = the_device(device)
    precision = the_dtype(dtype, where)
    torch.set_num_threads(threads)
    rounds = rounds or ROUNDS[where.type]
    measured: dict[str, Any] = {
        "environment": environment(where),
        "settings": {
            "device": device,
            "dtype": dtype,
            "size": size,
            "block": KV_BLOCK[where.type],
            "longest": LONGEST,
            "rounds": rounds,
        },
    }
    lengths = foldoc_lengths()
    results = measured["results"] = []
    file = output / f"compaction_{where.type}.json"
    for number in slots or SLOTS[where.type]:
        results.append(measure(Bench(size, number, where, precision, lengths), rounds))
        keep(measured, file)
    report(table(results), measured, file)


if __name__ == "__main__":
    typer.run(main)
