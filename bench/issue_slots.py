"""What sampling would take of a GPU that is not there: its instructions, counted, and the issue slots they fill.

    python bench/issue_slots.py

The kernels' PTX for sm_90 is run thread by thread (`tests/ptx`) for one row of float32 logits, and counted. The time is
that in which the schedulers of an H100 (132 processors of four, 1.755 GHz) would issue so many instructions for a whole
batch, 1.15 for each of PTX, as ptxas makes of them here: a lower bound, no measurement. What reads tiles fills all
processors; what has one program a row fills as many as there are rows, and a warp of it is given three cycles an
instruction at least, as each waits for the one before. Memory, caches and launches are not in it; the floor, one read
of the logits at 3.35 TB/s, is given beside it.

"flat" and "peaked" logits, and ways to sample, are those of bench/sampling.py. Prints a table, writes
bench/results/issue_slots.json; the last line of the output is the same JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from report import report
from rich.table import Table
from sampling import KINDS, WAYS, make_logits
from torch_sampling import Way

from ds2ds.environment import environment
from ds2ds.kernels.sampling import launch
from ds2ds.kernels.sampling.launch import SIZES

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from ptx.device import Device  # the tests' emulator, which is not installed

RESULT = Path(__file__).parent / "results" / "issue_slots.json"
KERNELS = {"scan": SIZES.scan_warps, "choose": SIZES.row_warps, "draw": SIZES.draw_warps, "finish": SIZES.row_warps}
BY_TILE = ("scan", "draw")
PROCESSORS, SCHEDULERS, CYCLES, BANDWIDTH = 132, 4, 1755.0, 3.35e6  # cycles and bytes a microsecond
OF_PTX, DEPENDENT = 1.15, 3


def microseconds(name: str, instructions: float, batch: int, vocab: int) -> float:
    """In which a kernel's warps, of so many instructions of PTX each, are issued."""
    issued = instructions * OF_PTX
    if name in BY_TILE:
        warps = batch * -(-vocab // SIZES.tile) * KERNELS[name]
        return warps * issued / (PROCESSORS * SCHEDULERS * CYCLES)
    rows = -(-batch // PROCESSORS)  # one after the other on a processor
    return rows * issued * max(KERNELS[name] / SCHEDULERS, DEPENDENT) / CYCLES


def counted(way: Way, logits: torch.Tensor) -> Iterator[tuple[str, float, float]]:
    """Of each kernel its name, the instructions of a warp, and the barriers of a program."""

    def one(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full((1,), value, dtype=dtype)

    settings = (
        one(way.temperature), one(way.top_k, torch.int32), one(way.top_p), one(0.0),
        one(3, torch.int64), one(7, torch.int64),
    )  # fmt: skip
    device = Device(90, together=1, bundles=1)
    with device.runs(launch, *KERNELS):
        launch.sample_on_device(logits, settings, None)
    if device.findings:
        raise RuntimeError(f"the kernels are wrong: {device.findings}")
    for name, result in device.results:
        yield name, result.instructions, result.barriers


def measure(kind: str, way: Way, vocab: int, batch: int) -> dict[str, Any]:
    logits = make_logits(kind, 1, vocab, torch.Generator().manual_seed(1))
    kernels = {
        name: {
            "instructions": round(instructions),
            "barriers": round(barriers, 1),
            "microseconds": round(microseconds(name, instructions, batch, vocab), 1),
        }
        for name, instructions, barriers in counted(way, logits)
    }
    return {
        "logits": kind,
        "way": way.name,
        "vocab": vocab,
        "batch": batch,
        "kernels": kernels,
        "microseconds": round(sum(one["microseconds"] for one in kernels.values()), 1),
        "floor_microseconds": round(batch * vocab * 4 / BANDWIDTH, 1),
    }


def table(results: list[dict[str, Any]]) -> Table:
    out = Table("logits", "way", "vocabulary", "rows", *KERNELS, "all, µs", "one read", title="Issue slots of an H100")
    for result in results:
        cells = (f"{result['kernels'][name]['microseconds']:.1f}" for name in KERNELS)
        sizes = f"{result['vocab']:,}", str(result["batch"])
        times = f"{result['microseconds']:.0f}", f"{result['floor_microseconds']:.0f}"
        out.add_row(result["logits"], result["way"], *sizes, *cells, *times)
    return out


def main(
    vocab: Annotated[list[int], typer.Option(help="Tokens of a row.", min=1)] = [131072, 50304],  # noqa: B006
    batch: Annotated[int, typer.Option(help="Rows.", min=1)] = 128,
    output: Annotated[Path, typer.Option(help="The file to write.")] = RESULT,
) -> None:
    results = [measure(kind, way, size, batch) for size, kind, way in product(vocab, KINDS, WAYS)]
    report(table(results), {"results": results, "environment": environment()}, output)


if __name__ == "__main__":
    typer.run(main)
