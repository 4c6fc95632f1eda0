"""Compacting the arena: bytes per second, beside a plain copy of as many bytes.

    python bench/compaction.py

The arena is filled with extents of FOLDOC's lengths and every second one is freed; then all others slide down. Every
byte moved counts twice, read once and written once, as does every byte of the copy, which goes from one buffer to
another. The two take turns; medians over rounds.

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
from report import report
from rich.table import Table

from ds2ds.cache.extents import ExtentAllocator, Move
from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.engine.arena_size import KV_BLOCK
from ds2ds.environment import environment
from ds2ds.kernels import compact_arena

SIZE = "12x768"
SLOTS = (8192, 32768)
LONGEST = 512


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
        compact_arena(self.arena, self.moves)

    def copy(self) -> None:
        self.target.copy_(self.source)

    def seconds(self, work: Callable[[], None]) -> float:
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
    return {
        "slots": bench.arena.shape[-2],
        "moves": len(bench.moves),
        "moved_slots": bench.moved_slots,
        "moved_bytes": bench.moved_bytes,
        "milliseconds": round(statistics.median(seconds["compaction"]) * 1e3, 3),
        "gb_per_second": round(speeds["compaction"], 2),
        "copy_gb_per_second": round(speeds["copy"], 2),
        "share_of_copy": round(share, 3),
    }


def table(results: list[dict[str, Any]]) -> Table:
    out = Table(title="Compaction")
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
    slots: Annotated[list[int], typer.Option(min=1024, help="Of the arena; may be given again.")] = list(SLOTS),  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1)] = 9,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure, print a table and write JSON."""
    where, precision = torch.device(device), getattr(torch, dtype)
    torch.set_num_threads(threads)
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
    results = [measure(Bench(size, number, where, precision, lengths), rounds) for number in slots]
    measured["results"] = results
    report(table(results), measured, output / f"compaction_{where.type}.json")


if __name__ == "__main__":
    typer.run(main)
