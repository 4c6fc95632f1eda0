"""x W^T for few rows: ds2ds.model.linear beside torch's linear and the floor, a plain sum over as many bytes.

The same for int8 weights, beside what torch has for those: `_weight_int8pack_mm`, in bfloat16, and FBGEMM's
`linear_dynamic`, which rounds all rows together by one scale (and makes its weights in a way that is deprecated).

    python bench/linear.py

Side by side in one run, medians; prints two tables and writes bench/results/linear_cpu.json. With --device cuda it
measures what linear_gpu.py says, for the matrices of whole models, into linear_cuda.json, whose JSON is the last line.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from options import the_device, the_dtype
from report import keep, report
from rich.console import Console
from rich.table import Table
from sampling_clock import make_clock

from ds2ds.environment import environment
from ds2ds.files import atomic_write_text
from ds2ds.model.int8_weight import Int8Weight
from ds2ds.model.linear import linear

RESULTS = Path(__file__).parent / "results"
SHAPES = ((50257, 768), (4096, 768), (2304, 768), (768, 2048), (50257, 384), (1152, 384))
ROWS = (1, 2, 4, 8, 16, 64, 128)
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


@torch.inference_mode()
def measure_int8(outputs: int, inputs: int, rows: int, repeats: int) -> dict[str, float | int | None]:
    """GB/s of int8 weights read; None: this torch does not have it."""
    count = max(1, WEIGHTS_BYTES // 2 // (outputs * inputs))
    weights = [torch.randn(outputs, inputs) for _ in range(count)]
    x = torch.randn(rows, inputs)
    low = x.bfloat16()
    int8, dynamic = ([Int8Weight(weight, dynamic=way) for weight in weights] for way in (False, True))
    gigabytes = count * outputs * inputs / 1e9
    zeros = torch.zeros(outputs, dtype=torch.int64)
    plain = [w.values for w in int8]

    def packed() -> list[object]:
        quantised = (
            torch._make_per_channel_quantized_tensor(values, w.scales.double(), zeros, 0)
            for values, w in zip(plain, int8, strict=True)
        )
        return [torch.ops.quantized.linear_prepack(one, None) for one in quantised]

    def fbgemm() -> Callable[[], object]:
        weights = packed()
        return lambda: [torch.ops.quantized.linear_dynamic(x, w, False) for w in weights]

    ways: dict[str, Callable[[], Callable[[], object]]] = {
        "int8": lambda: lambda: [linear(x, w) for w in int8],
        "int8_dynamic": lambda: lambda: [linear(x, w) for w in dynamic],
        "int8pack_bfloat16": lambda: (
            lambda: [
                torch._weight_int8pack_mm(low, values, w.scales.bfloat16())
                for values, w in zip(plain, int8, strict=True)
            ]
        ),
        "fbgemm_dynamic": fbgemm,
        "sum": lambda: lambda: [w.view(-1)[: outputs * inputs // 8 * 8].view(torch.int64).sum() for w in plain],
    }
    speeds: dict[str, float | None] = {}
    for name, way in ways.items():
        try:
            speeds[name] = round(gigabytes / seconds(way(), repeats), 1)
        except (AttributeError, RuntimeError):
            speeds[name] = None
    return {"outputs": outputs, "inputs": inputs, "rows": rows, **speeds}


def on_gpu(device: torch.device, dtype: torch.dtype, budget: float, limit: float, file: Path) -> None:
    """Measure, print, write: the matrices of models."""
    # Imported here, as Triton is not on every system.
    import linear_gpu

    settings = {"device": "cuda", "dtype": str(dtype).removeprefix("torch."), "budget": budget, "limit": limit}
    results: list[dict[str, Any]] = []
    measured = {"environment": environment(device), "settings": settings, "results": results}
    with torch.inference_mode():
        clock = make_clock(device, budget)
        for result in linear_gpu.results(linear_gpu.SIZES, linear_gpu.ROWS, dtype, clock, limit):
            results.append(result)
            keep(measured, file)
    report(linear_gpu.table(results), measured, file)


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="On a GPU: float32, bfloat16 or float16.")] = "bfloat16",
    repeats: Annotated[int, typer.Option(min=1, help="On a CPU.")] = 9,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    budget: Annotated[float, typer.Option(help="On a GPU: seconds for a way, shape and number of rows, about.")] = 0.02,
    limit: Annotated[float, typer.Option(help="On a GPU: seconds after which no shape is begun.")] = math.inf,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure, print, write."""
    torch.set_num_threads(threads)
    where = the_device(device)
    if where.type == "cuda":
        on_gpu(where, the_dtype(dtype, where), budget, limit, output / "linear_cuda.json")
        return
    results = [measure(outputs, inputs, rows, repeats) for outputs, inputs in SHAPES for rows in ROWS]
    table = Table("weights", "rows", "ds2ds GB/s", "torch GB/s", "sum GB/s", "times faster")
    for r in results:
        shape = f"{r['outputs']} x {r['inputs']}"
        table.add_row(
            shape, str(r["rows"]), *(str(r[n]) for n in ("ds2ds", "torch", "sum")), f"{r['ds2ds'] / r['torch']:.2f}"
        )
    Console().print(table)
    int8 = [measure_int8(outputs, inputs, rows, repeats) for outputs, inputs in SHAPES for rows in ROWS]
    ways = [name for name in int8[0] if name not in ("outputs", "inputs", "rows")]
    table = Table("int8 weights, GB/s", "rows", *ways)
    for one in int8:
        table.add_row(f"{one['outputs']} x {one['inputs']}", str(one["rows"]), *(str(one[way]) for way in ways))
    Console(width=160).print(table)
    measured = {"environment": environment(), "results": results, "int8": int8}
    atomic_write_text(output / "linear_cpu.json", json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
