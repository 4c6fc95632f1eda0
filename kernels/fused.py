"""What stands between a layer's products, in one launch each: a kernel costs a microsecond, however little it does.

All compute in float32 and round where PyTorch's own operations, one after the other, would round. Their plain versions
are those operations, see `ds2ds.model.backbone` and `ds2ds.model.linear`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from .build import Build

EPSILON = tl.constexpr(torch.finfo(torch.float32).eps)
"""What torch's RMSNorm adds to the mean square unless it is told otherwise, in half precision too."""

Skip: TypeAlias = tuple[Tensor, int, Tensor | None]
"""(weights [n], which of them, other): weights[which] * other joins a sum of other's shape and dtype, [rows, width] and
contiguous; None: of that sum itself."""

_LARGEST = tl.constexpr(127.0)
_ROUNDER = tl.constexpr(1.5 * 2**23)
"""Added and taken away again it rounds a float32 below 2^22 to an integer, halves to even."""

NO_SKIP, ANOTHER, ITSELF = 0, 1, 2  # SKIP of kernels

_BLOCK = 1024
_ROUNDED = 4096
# Not fused: where a thread has one number of a vector, its square and the sum with a neighbour's would be, and each of
# the two would round the other's square: sums that differ in a bit, of which threads store any for all to use.
_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
_OF_A_HEAD = _OPTIONS | {"num_warps": 1}


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm without weights over the last dimension of x [rows, ..., width]. Rows need not lie side by side."""
    if not x[0].is_contiguous():
        x = x.contiguous()
    rows, width = x.shape[0], x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    vectors = x.view(rows, -1, width).shape[1]
    options = _OF_A_HEAD if width <= 256 else _OPTIONS
    _rms_norm[(rows, vectors)](x, out, x.stride(0), width, BLOCK=triton.next_power_of_2(width), **options)
    return out


def add_norm(x: Tensor, y: Tensor, skip: Skip | None = None) -> tuple[Tensor, Tensor]:
    """x + y, both [rows, width], and what skips layers on top, and the RMSNorm of that."""
    x, y = x.contiguous(), y.contiguous()
    total, normed = torch.empty_like(x), torch.empty_like(x)
    rows, width = x.shape
    weights, other, index, mode = skip_arguments(skip, x)
    block = triton.next_power_of_2(width)
    _add_norm[(rows,)](x, y, weights, other, total, normed, index, width, SKIP=mode, BLOCK=block, **_OPTIONS)
    return total, normed


def gated_unit(x: Tensor) -> Tensor:
    """x [rows, 2 width], which holds (up, gate), to up * silu(gate) [rows, width]."""
    x = x.contiguous()
    rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    _gated_unit[(rows, triton.cdiv(width, _BLOCK))](x, out, width, BLOCK=_BLOCK, **_OPTIONS)
    return out


def rounded(x: Tensor) -> Tensor:
    """x [rows, inputs], each row rounded to 255 steps up to its largest magnitude, in x's dtype."""
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, inputs = x.shape
    out = torch.empty(rows, inputs, dtype=x.dtype, device=x.device)
    block = min(triton.next_power_of_2(inputs), _ROUNDED)
    _round[(rows,)](x, out, x.stride(0), inputs, torch.finfo(x.dtype).tiny, BLOCK=block, **_OPTIONS)
    return out


def skip_arguments(skip: Skip | None, absent: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """A kernel's weights, other, index and SKIP, for `joining`; `absent` stands for what is not there and not read."""
    if skip is None:
        return absent, absent, 0, NO_SKIP
    weights, index, other = skip
    return weights, absent if other is None else other, index, ITSELF if other is None else ANOTHER


@triton.jit
def joining(weight, other, here, SKIP: tl.constexpr):
    """What is to skip layers, and its weight, as far as there is such: what `weight` and `other` point to."""
    share, joins = 0.0, 0.0
    if SKIP != 0:
        share = tl.load(weight)
        if SKIP == 1:
            joins = tl.load(other, mask=here, other=0.0)
    return share, joins


@triton.jit
def joined(y, share, joins, SKIP: tl.constexpr):
    """y, and on top of it that share of what skips layers, or of y; rounded to y's dtype."""
    if SKIP != 0:
        if SKIP == 2:
            joins = y
        y = (y.to(tl.float32) + share.to(tl.float32) * joins.to(tl.float32)).to(y.dtype)
    return y


@triton.jit
def _norm(x, width):
    """Of float32 [BLOCK], zeros beyond the width."""
    return x * tl.rsqrt(tl.sum(x * x) / width + EPSILON)


@triton.jit
def _rms_norm(x, out, row_stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    vector = tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    values = tl.load(x + row * row_stride + vector * width + lane, mask=lane < width, other=0.0).to(tl.float32)
    normed = _norm(values, width).to(out.dtype.element_ty)
    tl.store(out + (row * tl.num_programs(1) + vector) * width + lane, normed, mask=lane < width)


@triton.jit(do_not_specialize=["index"])
def _add_norm(x, y, weights, other, total, normed, index, width, SKIP: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * width + lane
    here = lane < width
    first = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
    added = (first + tl.load(y + at, mask=here, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
    share, joins = joining(weights + index, other + at, here, SKIP)
    added = joined(added, share, joins, SKIP)
    tl.store(total + at, added, mask=here)
    tl.store(normed + at, _norm(added.to(tl.float32), width).to(normed.dtype.element_ty), mask=here)


@triton.jit
def _gated_unit(x, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = lane < width
    up = tl.load(x + row * 2 * width + lane, mask=here, other=0.0).to(tl.float32)
    gate = tl.load(x + (row * 2 + 1) * width + lane, mask=here, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + lane, (up * silu).to(out.dtype.element_ty), mask=here)


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
    """Every dtype, for vectors of a head and of a model."""
    from .build import Build

    skips = {"": NO_SKIP, ", skip": ANOTHER, ", skip itself": ITSELF}
    kernels: list[tuple[Any, int, str, dict[str, int]]] = [(_rms_norm, 64, "", {}), (_rms_norm, 1024, "", {})]
    kernels += [(_add_norm, 1024, name, {"SKIP": mode}) for name, mode in skips.items()]
    kernels += [(_gated_unit, _BLOCK, "", {}), (_round, 1024, "", {}), (_round, _ROUNDED, "", {})]
    kinds = dict.fromkeys(("row_stride", "width", "inputs", "index"), "i32") | {"tiny": "fp32"}
    for dtype in ("fp32", "bf16", "fp16"):
        for kernel, block, detail, constants in kernels:
            constants = {"BLOCK": block, **constants}
            signature = {name: kinds.get(name, f"*{dtype}") for name in kernel.arg_names if name not in constants}
            yield Build(
                kernel=kernel,
                name=f"fused{kernel.__name__}[{dtype} up to {block}{detail}]",
                signature=signature,
                constexprs=constants,
                attrs={name: 16 for name, kind in signature.items() if kind != "fp32" and name != "index"},
                options=_OF_A_HEAD if block <= 256 else _OPTIONS,
            )
