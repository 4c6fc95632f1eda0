"""The matrices of models on a GPU, as ways to multiply few rows with them: what bench/linear.py measures there.

Times are of one product in a CUDA graph that goes through enough matrices of a shape, after the cache was filled with
something else. The floor is the bytes of int8 weights at the speed of a large sum in the same run.

    float     torch's linear, weights in the dtype of x
    few_rows  ds2ds.kernels.few_rows, the same weights
    int8      ds2ds.kernels.few_rows, weights of int8
    expanded  int8 weights made x's dtype in each call, as many rows have it
    int8pack  torch._weight_int8pack_mm, up to 8 rows: it has a thread or a warp for each output of each row
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from sampling_clock import FAR_BEYOND_CACHE, Calls, Clock
from torch import Tensor

from ds2ds.bench.models import HEAD_DIM, VOCAB_SIZE, parse_size
from ds2ds.kernels.few_rows import MOST_ROWS, product
from ds2ds.model.config import ModelConfig
from ds2ds.model.int8_weight import Int8Weight
from ds2ds.model.linear import expanded

SIZES = ("12x768", "24x1024", "36x1280")
ROWS = (1, 8, 16, 64)
WEIGHTS_BYTES = 2**26
INT8PACK_ROWS = 8
WAYS = ("float", "few_rows", "int8", "expanded", "int8pack")


def shapes(size: str) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of a layer's matrices and of the head, by their names."""
    layers, width = parse_size(size) or (0, 0)
    config = ModelConfig(vocab_size=VOCAB_SIZE, num_layers=layers, model_dim=width, num_heads=width // HEAD_DIM)
    return {
        "Wqkv": (3 * width, width),
        "Wout": (width, width),
        "Wup_gate": (2 * config.mlp_dim, width),
        "Wdown": (width, config.mlp_dim),
        "head": (VOCAB_SIZE, width),
    }


def read_bandwidth(clock: Clock) -> float:
    """Bytes per second of a sum of far more than a cache holds."""
    buffer = torch.ones(FAR_BEYOND_CACHE * (4 if clock.device.type == "cuda" else 1) // 4, device=clock.device)
    return buffer.nbytes / clock.seconds(Calls(buffer.sum, 1, buffer))


def measure(
    outputs: int, inputs: int, rows: Sequence[int], dtype: torch.dtype, clock: Clock, bandwidth: float
) -> Iterator[dict[str, Any]]:
    """For each number of rows the microseconds of each way, plain JSON types."""
    count = max(4, WEIGHTS_BYTES // (outputs * inputs))
    floats = [torch.randn(outputs, inputs, device=clock.device) for _ in range(count)]
    int8 = [Int8Weight(weight) for weight in floats]
    floats = [weight.to(dtype) for weight in floats]
    floor = outputs * inputs / bandwidth
    for number in rows:
        x = torch.randn(number, inputs, device=clock.device).to(dtype)
        ways: dict[str, Callable[[int], Tensor]] = {
            "float": lambda at, x=x: F.linear(x, floats[at]),
            "few_rows": lambda at, x=x: product(x, floats[at]),
            "int8": lambda at, x=x: product(x, int8[at].values, int8[at].scales),
            "expanded": lambda at, x=x: expanded(x, int8[at]),
            "int8pack": lambda at, x=x: torch._weight_int8pack_mm(x, int8[at].values, int8[at].scales),
        }
        result: dict[str, Any] = {"rows": number, "floor_us": round(floor * 1e6, 3)}
        products: dict[str, Tensor] = {}
        for name, way in ways.items():
            result[name] = None
            most = {"few_rows": MOST_ROWS[dtype], "int8": MOST_ROWS[dtype], "int8pack": INT8PACK_ROWS}
            if number > most.get(name, number):
                continue
            try:
                calls = clock.prepare(way, range(count))
            except RuntimeError as error:
                if name != "int8pack":
                    raise
                result["problem"] = str(error).splitlines()[0]  # this torch does not have it here
                continue
            result[name] = round(clock.seconds(calls) * 1e6, 3)
            products[name] = calls.tokens.float()
        if "int8" in products:
            off = (products["int8"] - products["expanded"]).abs().max() / products["expanded"].abs().max()
            result["difference"] = round(float(off), 6)
        yield result


def results(
    sizes: Sequence[str], rows: Sequence[int], dtype: torch.dtype, clock: Clock, limit: float
) -> Iterator[dict[str, Any]]:
    """Of all shapes that are begun within so many seconds."""
    started, bandwidth = time.monotonic(), read_bandwidth(clock)
    for size in sizes:
        for name, shape in shapes(size).items():
            if time.monotonic() - started > limit:
                return
            for result in measure(*shape, rows, dtype, clock, bandwidth):
                yield {"model": size, "matrix": name, "outputs": shape[0], "inputs": shape[1], **result}


def table(measured: Sequence[dict[str, Any]]) -> Table:
    out = Table(title="A product with a matrix of a model: µs (x the floor of int8)")
    for heading in ("model", "matrix", "outputs x inputs", "rows", "floor µs", *WAYS, "float / int8"):
        out.add_column(heading, justify="right")
    for one in measured:
        times = ["-" if one[way] is None else f"{one[way]:,.2f} ({one[way] / one['floor_us']:.1f})" for way in WAYS]
        faster = "-" if one["int8"] is None else f"{one['float'] / one['int8']:.2f}"
        shape = f"{one['outputs']} x {one['inputs']}"
        out.add_row(
            one["model"], one["matrix"], shape, str(one["rows"]), f"{one['floor_us']:,.2f}", *times, faster
        )  # fmt: skip
    return out
