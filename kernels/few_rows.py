"""What a decoder layer computes of few rows, in four launches: products with weights of floats or int8, and what stands
before and after them.

    product(x, Wqkv, norm=True)                     rms_norm(x) W^T
    product(read, Wout, add=x)                      x + read W^T
    product(x, Wup_gate, norm=True, gated=True)     up * silu(gate), where (up, gate) = rms_norm(x) W^T
    product(h, Wdown, add=x, skip=...)              x + h W^T, and the layer skip on top

A weight is read once from memory for any number of rows, once from the L2 cache for eight, as it is stored, and never
written wider. A program has some outputs and all of the inputs, so nothing is added up between programs and no float
is added atomically: the same bits every time. For the same reason the norm needs no pass of its own before the
product: a row's inverse root mean square is one number, known with the last input, and multiplies the finished sum.

bfloat16 and float16 go through tensor cores from the first row on. To multiply and sum in registers takes a
conversion of each int8 weight and an instruction more for each row, and at its full speed of reading an H200 has about
six for a byte: four rows would be bound by arithmetic. A tensor core takes 16 outputs by 8 rows, whether those are
there or not, and the loop over int8 weights comes to 3 to 4 instructions for each, for all of 8 rows (counted in its
code). So rows are padded to 8, beside int8 weights to 2, 4 or 8; padding is not read. Weights pass through shared
memory, 16 bytes a thread at a time and up to six turns of the loop ahead, into registers, and are converted there,
exactly.

Where a matrix is small, what counts is how much of it is on its way at once. A program has 8 outputs, so that there
are programs for most multiprocessors: 768 outputs are 96 programs of 8 warps. Each warp has inputs of its own (a
product in three dimensions, the first of them the warps); the warps' sums are added up at the end, neighbours first.

What limits a program is shared memory, which all bytes pass twice, and x beside them. Of 8 or 64 outputs a warp finds
what it takes at once in different banks. Of 16 or 32 for four warps Triton lays a tile out such that it lies in the
same ones, and takes eight times as long: more than memory does (counted by tests/ptx). For the same reason the norm's
squares are a product in tensor cores, of rows with rows, of which the diagonal counts: squared number by number x
would be read in another order, and neither would be free of conflicts.

float32 is multiplied and summed in registers, as tensor cores would round x, up to four rows at a time.

A row's numbers depend in no bit on how many rows are beside it: how inputs are dealt out follows from the shape of the
weight alone. Beyond MOST_ROWS another product takes over, and with it other bits.

The plain version is `plain_product`, PyTorch's operations one after the other, and rounds where they do but for the
normed row, which is never written and so never rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from .few_rows_kernels import dot, sums
from .fused import ANOTHER, ITSELF, NO_SKIP, Skip, skip_arguments
from .overlap import CAPABILITY, launch_options

if TYPE_CHECKING:
    from .build import Build

MOST_ROWS = {torch.float32: 16, torch.bfloat16: 64, torch.float16: 64}
"""Beyond it, each program reading all of x takes as long as to expand int8 weights once."""

_MULTIPROCESSORS = 132
_STEP_BYTES = 64
"""Of an output's weights, that a warp takes at a time: four threads read 16 each."""
_BUFFER_BYTES, _MOST_BUFFERS = 72 * 1024, 6
"""Of shared memory, which every GPU since sm_80 has; and turns of the loop that are on their way."""
_MOST_REGISTERS = 168
"""Of a thread, in programs of 64 outputs: shared memory has room for three, and so have registers. Without a limit
ptxas may set itself a lower one, and spill (int8 weights, sm_80).
"""
_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}


class Way(NamedTuple):
    """What a kernel is compiled for; a program has ROWS rows and OUTPUTS outputs."""

    kernel: Any
    constants: dict[str, Any]
    options: dict[str, Any]


def way(
    dtype: torch.dtype,
    weight_bytes: int,
    rows: int,
    outputs: int,
    inputs: int,
    norm: bool = False,
    gated: bool = False,
) -> Way:
    """How to multiply so many rows with a weight of this shape (for a gated unit: of each of its halves)."""
    if dtype == torch.float32:
        return _in_registers(min(triton.next_power_of_2(rows), 4), gated)
    # Few outputs leave a program for most multiprocessors, with all the warps that it can use.
    tile, warps = 8, 8 if outputs < 16 * _MULTIPROCESSORS else 4
    if outputs >= 64 * _MULTIPROCESSORS and not gated:
        tile = 64  # which reads x less often
    even = inputs % (warps * (_STEP_BYTES // weight_bytes)) == 0
    return _on_tensor_cores(weight_bytes, rows, tile, warps, even, norm, gated)


def _in_registers(rows: int, gated: bool) -> Way:
    return Way(sums, {"ROWS": rows, "OUTPUTS": 2 if gated else 4, "BLOCK": 1024}, _OPTIONS | {"num_warps": 8})


def _on_tensor_cores(
    weight_bytes: int, rows: int, outputs: int, warps: int, even: bool, norm: bool, gated: bool
) -> Way:
    step = _STEP_BYTES // weight_bytes
    # Beside int8 weights x takes twice their room, so that padding is dear.
    rows = 8 if weight_bytes > 1 else min(max(triton.next_power_of_2(rows), 2), 8)
    of_weights = _STEP_BYTES * outputs * (2 if gated else 1)
    of_x = 2 * step * rows * (2 if norm and weight_bytes == 1 else 1)
    buffers = min(_BUFFER_BYTES // (warps * (of_weights + of_x)), _MOST_BUFFERS)
    constants = {"ROWS": rows, "OUTPUTS": outputs, "WARPS": warps, "STEP": step, "EVEN": even}
    options = _OPTIONS | {"num_warps": warps, "num_stages": 1 + buffers}
    return Way(dot, constants, options | {"maxnreg": _MOST_REGISTERS} if outputs == 64 else options)


def takes(x: Tensor) -> bool:
    """Whether these are rows for `product`."""
    return 0 < len(x) <= MOST_ROWS.get(x.dtype, 0)


def product(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None = None,
    *,
    norm: bool = False,
    gated: bool = False,
    add: Tensor | None = None,
    skip: Skip | None = None,
) -> Tensor:
    """x weight^T, added up in float32, with what stands before and after it.

    Args:
        x: [rows, inputs], float32, bfloat16 or float16, at least one row and as few as `takes`.
        weight: [..., inputs], contiguous, whose leading dimensions are flattened; of x's dtype, or int8.
        scales: float32 [outputs], what int8 weights are multiplied with; None: they are floats.
        norm: of x's rows, RMSNorm without weights.
        gated: the outputs are (up, gate), and make up * silu(gate).
        add: [rows, outputs] of x's dtype, contiguous, added to the product.
        skip: what joins that sum, see `fused.Skip`.

    Returns:
        [rows, outputs] in x's dtype, half as many if gated. What is not finite in a row is in no other.
    """
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, inputs = x.shape
    outputs = weight.numel() // inputs // (2 if gated else 1)
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    kernel, constants, options = way(x.dtype, weight.element_size(), rows, outputs, inputs, norm, gated)
    programs = triton.cdiv(outputs, constants["OUTPUTS"]) * triton.cdiv(rows, constants["ROWS"])
    weights, other, index, mode = skip_arguments(skip, out)
    # What is not there is not read; `out` stands for it.
    kernel[(programs,)](
        x, weight, out if scales is None else scales, out if add is None else add, weights, other, out,
        rows, x.stride(0), outputs, inputs, index,
        SCALED=scales is not None, NORM=norm, GATED=gated, ADD=add is not None, SKIP=mode,
        **constants, **options, **launch_options(),
    )  # fmt: skip
    return out


def plain_product(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None = None,
    *,
    norm: bool = False,
    gated: bool = False,
    add: Tensor | None = None,
    skip: Skip | None = None,
) -> Tensor:
    """`product`, one operation after the other."""
    x = F.rms_norm(x, (x.shape[1],)) if norm else x
    y = F.linear(x, weight.flatten(0, -2).to(x.dtype))
    y = y if scales is None else (y * scales).to(x.dtype)
    if gated:
        up, gate = y.chunk(2, dim=1)
        y = up * F.silu(gate)
    y = y if add is None else add + y
    if skip is not None:
        weights, index, other = skip
        y = torch.addcmul(y, weights[index], y if other is None else other)
    return y


OPERATIONS: dict[str, dict[str, Any]] = {
    "": {},
    "norm": {"NORM": True},
    "add": {"ADD": True},
    "norm, gated": {"NORM": True, "GATED": True},
    "add, skip": {"ADD": True, "SKIP": ANOTHER},
    "add, skip itself": {"ADD": True, "SKIP": ITSELF},
}
"""What a decoder asks of `product`."""


def builds() -> Iterator[Build]:
    """Normed rows, which take most registers, in all sizes of programs; else the largest, which overlaps, too."""
    from .build import ARCHITECTURES, Build

    numbers = dict.fromkeys(("rows", "row_stride", "outputs", "inputs", "index"), "i32")
    off = {"SCALED": False, "NORM": False, "GATED": False, "ADD": False, "SKIP": NO_SKIP}
    for dtype, weight in (("fp32", "fp32"), ("fp32", "i8"), ("bf16", "bf16"), ("bf16", "i8"), ("fp16", "fp16")):
        pointers = dict.fromkeys(("x", "weight", "scales", "add", "skip_weights", "other", "out"), f"*{dtype}")
        if weight == "i8":
            pointers |= {"weight": "*i8", "scales": "*fp32"}
        for operation, constants in OPERATIONS.items():
            ways = _ways(dtype, weight, "NORM" in constants, "GATED" in constants)
            chosen = [(way, False) for way in (ways if "NORM" in constants and dtype != "fp16" else ways[-1:])]
            for (name, one), overlap in (*chosen, (ways[-1], True)):
                details = ", ".join(filter(None, (dtype, name, operation, "overlapping" if overlap else "")))
                yield Build(
                    kernel=one.kernel,
                    name=f"few_rows_{one.kernel.__name__}[{weight} x {details}]",
                    signature=pointers | numbers,
                    constexprs=off | {"SCALED": weight == "i8", "OVERLAP": overlap} | constants | one.constants,
                    attrs=dict.fromkeys((*pointers, "row_stride", "inputs"), 16),
                    options=one.options,
                    since=CAPABILITY if overlap else ARCHITECTURES[0],
                )


def _ways(dtype: str, weight: str, norm: bool, gated: bool) -> list[tuple[str, Way]]:
    if dtype == "fp32":
        return [(f"{rows} rows", _in_registers(rows, gated)) for rows in (1, 4)]
    weight_bytes = 1 if weight == "i8" else 2
    return [
        (
            f"{rows} rows, {outputs} outputs in {warps} warps{'' if even else ', a rest'}",
            _on_tensor_cores(weight_bytes, rows, outputs, warps, even, norm, gated),
        )
        for outputs, warps in ((8, 8), (8, 4), *([] if gated else [(64, 4)]))
        for rows, even in ((8, False), *([(2, True)] if weight == "i8" else []), (8, True))
    ]
