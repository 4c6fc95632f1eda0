"""x W^T for few rows: ds2ds.model.linear beside torch's linear and the floor, a plain sum over as many bytes.

    python bench/linear.py

Side by side in one run, medians; prints a table and writes bench/results/linear_cpu.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table

from ds2ds.environment import environment
from ds2ds.files import atomic_write_text
from ds2ds.model.linear import linear

RESULT = Path(__file__).parent / "results" / "linear_cpu.json"
SHAPES = ((50257, 768), (4096, 768), (2304, 768), (768, 2048), (50257, 384), (1152, 384))
ROWS = (1, 2, 4, 8, 16)
WEIGHTS_BYTES = 2**27


def seconds(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@torch.inference_mode()
def measure(outputs: int, inputs: int, rows: int, repeats: int) -> dict[str, float | int]:
    """GB/s of weights read. Enough matrices in turn that none stays in a cache."""
    count = max(1, WEIGHTS_BYTES // (4 * outputs * inputs))
    weights = [torch.randn(outputs, inputs) for _ in range(count)]
    x = torch.randn(rows, inputs)
    gigabytes = count * outputs * inputs * 4 / 1e9
    ways: dict[str, Callable[[torch.Tensor], object]] = {
        "ds2ds": lambda w: linear(x, w),
        "torch": lambda w: F.linear(x, w),
        "sum": lambda w: w.sum(),
    }
    speeds = {
        name: round(gigabytes / seconds(lambda way=way: [way(w) for w in weights], repeats), 1)
        for name, way in ways.items()
    }
    return {"outputs": outputs, "inputs": inputs, "rows": rows, **speeds}


def main(repeats: Annotated[int, typer.Option(min=1)] = 9, threads: Annotated[int, typer.Option(min=1)] = 2) -> None:
    """Measure, print, write."""
    torch.set_num_threads(threads)
    results = [measure(outputs, inputs, rows, repeats) for outputs, inputs in SHAPES for rows in ROWS]
    table = Table("weights", "rows", "ds2ds GB/s", "torch GB/s", "sum GB/s", "times faster")
    for r in results:
        shape = f"{r['outputs']} x {r['inputs']}"
        table.add_row(
            shape, str(r["rows"]), *(str(r[n]) for n in ("ds2ds", "torch", "sum")), f"{r['ds2ds'] / r['torch']:.2f}"
        )
    Console().print(table)
    atomic_write_text(RESULT, json.dumps({"environment": environment(), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
