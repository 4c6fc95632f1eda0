"""x W^T for few rows and weights of int8, in one launch: each weight is read once, as a byte, and never written wider.

A program has some outputs and all of the inputs, so nothing is added up between programs and no float is added
atomically: the same bits every time.

bfloat16 and float16 go through tensor cores from the first row on. To multiply and sum in registers takes a
conversion of each weight and an instruction more for each row, and at its full speed of reading an H200 has about six
for a byte: four rows would be bound by arithmetic. A tensor core takes 16 outputs by 8 rows, whether those are there
or not, and the loop over weights comes to 3 to 4 instructions for each, for all of 8 rows (counted in its code). So
rows are padded to 8, 16 or 32; padding is not read. Weights pass through shared memory, 16 bytes a thread at a time
and up to three turns of the loop ahead, into registers, and are converted there, exactly.

Where a matrix is small, what counts is how much of it is on its way at once. Outputs are so few for a program that
there are programs for most multiprocessors: 768 outputs are 96 programs of 8 warps. Each warp has inputs of its own (a
product in three dimensions, the first of them the warps); the warps' sums are added up at the end, in their order.

float32 is multiplied and summed in registers, as tensor cores would round x, up to four rows at a time.

A row's numbers depend in no bit on how many rows are beside it: how inputs are dealt out follows from the shape of the
weight alone. Beyond MOST_ROWS another product takes over, and with it other bits.

The plain versions are PyTorch's operations one after the other, `expanded` and `rounded` in `ds2ds.model.linear`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from .build import Build

MOST_ROWS = {torch.float32: 16, torch.bfloat16: 64, torch.float16: 64}
"""By an estimate: beyond it, to read x in every program takes as long as to expand the weights once."""

_MULTIPROCESSORS = 132
_STEP = tl.constexpr(64)
"""Inputs that a warp takes at a time."""
_LARGEST = tl.constexpr(127.0)
_ROUNDER = tl.constexpr(1.5 * 2**23)
"""Added and taken away again it rounds a float32 below 2^22 to an integer, halves to even."""

_BLOCK = 4096
_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}


class Way(NamedTuple):
    """What a kernel is compiled for; a program has ROWS rows and OUTPUTS outputs."""

    kernel: Any
    constants: dict[str, Any]
    options: dict[str, Any]


def way(dtype: torch.dtype, rows: int, outputs: int, inputs: int) -> Way:
    """How to multiply so many rows with a weight of this shape."""
    if dtype == torch.float32:
        return _in_registers(min(triton.next_power_of_2(rows), 4))
    # What has few outputs gets small programs, so that there are enough of them; large ones read x less often.
    if outputs < 16 * _MULTIPROCESSORS:
        tile, warps = 8, 8
    else:
        tile, warps = 16 if outputs < 64 * _MULTIPROCESSORS else 32, 4
    even = inputs % (warps * _STEP.value) == 0
    # Masks for a rest of inputs take registers.
    return _on_tensor_cores(min(max(triton.next_power_of_2(rows), 8), 32 if even else 16), tile, warps, even)


def _in_registers(rows: int) -> Way:
    return Way(_sum, {"ROWS": rows, "OUTPUTS": 4, "BLOCK": 1024}, _OPTIONS | {"num_warps": 8})


def _on_tensor_cores(rows: int, outputs: int, warps: int, even: bool) -> Way:
    constants = {"ROWS": rows, "OUTPUTS": outputs, "WARPS": warps, "EVEN": even}
    # Buffers in shared memory, one fewer than stages, come to 72 KiB at most: every GPU since sm_80 has them.
    return Way(_dot, constants, _OPTIONS | {"num_warps": warps, "num_stages": 4 if rows <= 16 else 3})


def int8_linear(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    """(x values^T) * scales, added up in float32.

    Args:
        x: [rows, inputs], float32, bfloat16 or float16, at least one row and as few as `takes`.
        values: int8 [outputs, inputs], contiguous.
        scales: float32 [outputs].

    Returns:
        [rows, outputs] in x's dtype. What is not finite in a row is in no other.
    """
    if x.stride(1) != 1:
        x = x.contiguous()
    (rows, inputs), outputs = x.shape, len(values)
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    kernel, constants, options = way(x.dtype, rows, outputs, inputs)
    programs = triton.cdiv(outputs, constants["OUTPUTS"]) * triton.cdiv(rows, constants["ROWS"])
    kernel[(programs,)](x, values, scales, out, rows, x.stride(0), outputs, inputs, **constants, **options)
    return out


def takes(x: Tensor) -> bool:
    """Whether these are rows for `int8_linear`."""
    return 0 < len(x) <= MOST_ROWS.get(x.dtype, 0)


def rounded(x: Tensor) -> Tensor:
    """x [rows, inputs], each row rounded to 255 steps up to its largest magnitude, in x's dtype."""
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, inputs = x.shape
    out = torch.empty(rows, inputs, dtype=x.dtype, device=x.device)
    block = min(triton.next_power_of_2(inputs), _BLOCK)
    _round[(rows,)](x, out, x.stride(0), inputs, torch.finfo(x.dtype).tiny, BLOCK=block, **_OPTIONS)
    return out


@triton.jit(do_not_specialize=["rows"])
def _dot(
    x, values, scales, out, rows, row_stride, outputs, inputs,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, WARPS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    groups = tl.cdiv(rows, ROWS)
    # Groups of rows that take the same weights follow one another, while those are in the L2 cache.
    output = (tl.program_id(0) // groups).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = (tl.program_id(0) % groups).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    input = tl.arange(0, WARPS)[:, None] * _STEP + tl.arange(0, _STEP)[None, :]
    # Beyond the last output that one is computed again, which takes no mask.
    weights = values + (tl.minimum(output, outputs - 1) * inputs)[None, :, None] + input[:, None, :]
    columns = x + (row * row_stride)[None, None, :] + input[:, :, None]
    there = (row < rows)[None, None, :]
    total = tl.zeros((WARPS, OUTPUTS, ROWS), tl.float32)
    for start in range(0, inputs, WARPS * _STEP):
        if EVEN:
            weight = tl.load(weights + start)
            column = tl.load(columns + start, mask=there, other=0.0)
        else:
            here = start + input < inputs
            weight = tl.load(weights + start, mask=here[:, None, :], other=0)
            column = tl.load(columns + start, mask=here[:, :, None] & there, other=0.0)
        total = tl.dot(weight.to(column.dtype), column, total)
    scale = tl.load(scales + output, mask=output < outputs, other=0.0)
    product = tl.sum(total, axis=0) * scale[:, None]
    to = out + row[None, :] * outputs + output[:, None]
    tl.store(to, product.to(out.dtype.element_ty), mask=(row < rows)[None, :] & (output < outputs)[:, None])


@triton.jit(do_not_specialize=["rows"])
def _sum(
    x, values, scales, out, rows, row_stride, outputs, inputs,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    groups = tl.cdiv(rows, ROWS)
    output = (tl.program_id(0) // groups).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = (tl.program_id(0) % groups).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    input = tl.arange(0, BLOCK)[None, None, :]
    weights = values + (tl.minimum(output, outputs - 1) * inputs)[None, :, None] + input
    columns = x + (row * row_stride)[:, None, None] + input
    there = (row < rows)[:, None, None]
    total = tl.zeros((ROWS, OUTPUTS, BLOCK), tl.float32)
    for start in range(0, inputs, BLOCK):
        here = start + input < inputs
        weight = tl.load(weights + start, mask=here, other=0)
        total += weight.to(tl.float32) * tl.load(columns + start, mask=here & there, other=0.0)
    scale = tl.load(scales + output, mask=output < outputs, other=0.0)
    product = tl.sum(total, axis=2) * scale[None, :]
    to = out + row[:, None] * outputs + output[None, :]
    tl.store(to, product, mask=(row < rows)[:, None] & (output < outputs)[None, :])


@triton.jit
def _round(x, out, row_stride, inputs, tiny, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    largest = tl.full((), 0.0, tl.float32)
    for start in range(0, inputs, BLOCK):
        values = tl.load(x + row * row_stride + start + lane, mask=start + lane < inputs, other=0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(values.to(tl.float32))))
    # Every result is rounded as a tensor of x's dtype would be.
    scale = tl.div_rn(largest, _LARGEST).to(out.dtype.element_ty).to(tl.float32)
    for start in range(0, inputs, BLOCK):
        here = start + lane < inputs
        values = tl.load(x + row * row_stride + start + lane, mask=here, other=0.0).to(tl.float32)
        steps = tl.div_rn(values, tl.zeros_like(values) + tl.maximum(scale, tiny)).to(out.dtype.element_ty)
        whole = (steps.to(tl.float32) + _ROUNDER) - _ROUNDER
        tl.store(out + row * inputs + start + lane, (whole * scale).to(out.dtype.element_ty), mask=here)


def builds() -> Iterator[Build]:
    """Every way to multiply, and to round rows of every dtype."""
    from .build import Build

    numbers = dict.fromkeys(("rows", "row_stride", "outputs", "inputs"), "i32")
    ways = [("fp32", f"{rows} rows", _in_registers(rows)) for rows in (1, 2, 4)]
    for dtype in ("bf16", "fp16"):
        for outputs, warps in ((8, 8), (16, 4), (32, 4)):
            for rows, even in ((8, True), (16, True), (32, True), (8, False), (16, False)):
                name = f"{dtype} {rows} rows, {outputs} outputs{'' if even else ', a rest'}"
                ways.append((dtype, name, _on_tensor_cores(rows, outputs, warps, even)))
    for dtype, name, (kernel, constants, options) in ways:
        yield Build(
            kernel=kernel,
            name=f"int8{kernel.__name__}[{name}]",
            signature={"x": f"*{dtype}", "values": "*i8", "scales": "*fp32", "out": f"*{dtype}", **numbers},
            constexprs=constants,
            attrs=dict.fromkeys(("x", "values", "scales", "out", "row_stride", "inputs"), 16),
            options=options,
        )
    for dtype in ("fp32", "bf16", "fp16"):
        for block in (1024, _BLOCK):
            yield Build(
                kernel=_round,
                name=f"int8_round[{dtype} up to {block}]",
                signature={"x": f"*{dtype}", "out": f"*{dtype}", "row_stride": "i32", "inputs": "i32", "tiny": "fp32"},
                constexprs={"BLOCK": block},
                attrs=dict.fromkeys(("x", "out", "row_stride", "inputs"), 16),
                options=_OPTIONS,
            )
