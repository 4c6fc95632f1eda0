"""x W^T at the speed of memory for few rows, and of arithmetic for many, for weights of floats and of int8.

Decoding reads every weight once per token, so the floor is bytes over bandwidth. For few rows of float32 on a CPU,
torch's own linear (a gemv or a thin gemm of MKL) stays far above it on some machines: measured on 2 cores of an
AMD EPYC, 14 to 20 GB/s for one row where a plain sum reads 39 to 46. ``ds2ds.native`` stands in, and for many rows too,
so that one pool of threads does it all: threads of two would take the cores from each other. Where it cannot be
compiled, batched products of the same weights do for few rows, which read 33 to 40 GB/s. ``bench/linear.py`` measures
all of them (``bench/results/linear_cpu.json``).

On a CPU int8 weights are multiplied in integers, few rows or many (``native/int8.c``). On a GPU torch multiplies
floats, and ``ds2ds.kernels.few_rows`` few rows by int8 weights as they are. For many rows, whose products are bound by
arithmetic, int8 weights are expanded in each call.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ds2ds.model.fusion import few_rows, fused, fuses
from ds2ds.model.int8_weight import LARGEST, Int8Weight
from ds2ds.native import operations as native
from ds2ds.native.invariance import rows_apart

FEW_ROWS = 128
"""Of torch's products: for more rows MKL's plain ones are as fast, and then faster."""

Weight: TypeAlias = Tensor | Int8Weight


def linear(x: Tensor, weight: Weight) -> Tensor:
    """``F.linear`` for x [rows, inputs] and weight [..., inputs], whose leading dimensions are flattened.

    Returns:
        [rows, outputs] in x's dtype, equal to torch's up to rounding; an int8 weight counts as what it dequantises to.
    """
    if isinstance(weight, Int8Weight):
        return _int8(x, weight)
    weight = weight.flatten(0, -2)
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x, weight)
    if native.takes(x, weight):
        return native.linear_float(x, weight)
    return _batched(x, weight) if x.shape[0] <= FEW_ROWS or rows_apart() else F.linear(x, weight)


def gated_unit(x: Tensor) -> Tensor:
    """x [rows, 2 width], which holds (up, gate), to up * silu(gate) [rows, width]."""
    if native.takes(x):
        return native.gated_unit(x)
    if fuses(x):
        return fused().gated_unit(x)
    up, gate = x.chunk(2, dim=-1)
    return up * F.silu(gate)


def _batched(x: Tensor, weight: Tensor) -> Tensor:
    """Float32 on a CPU, through torch alone."""
    rows = x.shape[0]
    if rows > 1 and rows_apart():
        return torch.cat([_batched(row, weight) for row in x.split(1)])
    if rows > 1:
        return torch.bmm(weight.unsqueeze(0), x.t().unsqueeze(0))[0].t()
    # One row: a batch of one would be a gemv again, so each thread gets a part of the weights.
    parts = max(2, torch.get_num_threads())
    outputs, inputs = weight.shape
    size = outputs // parts
    split = weight[: parts * size].view(parts, size, inputs)
    out = torch.bmm(split, x.t().expand(parts, inputs, 1)).view(1, parts * size)
    rest = weight[parts * size :]
    return torch.cat([out, F.linear(x, rest)], dim=1) if len(rest) else out


def _int8(x: Tensor, weight: Int8Weight) -> Tensor:
    if weight.packed is not None and x.dtype != torch.float64:
        rows = x.float()
        if native.takes(rows):
            return native.linear_int8(rows, weight.packed, weight.dynamic).to(x.dtype)
    if fuses(x) and few_rows().takes(x):
        return few_rows().product(fused().rounded(x) if weight.dynamic else x, weight.values, weight.scales)
    return expanded(rounded(x) if weight.dynamic else x, weight)


def rounded(x: Tensor) -> Tensor:
    """x [rows, inputs], each row rounded to 255 steps up to its largest magnitude, in x's dtype."""
    scales = x.abs().amax(-1, keepdim=True) / LARGEST
    return (x / scales.clamp_min(torch.finfo(x.dtype).tiny)).round_() * scales


def expanded(x: Tensor, weight: Int8Weight) -> Tensor:
    """x [rows, inputs] times a weight that is made x's dtype for that."""
    # Scaled after the product: the int8 values are exact in every dtype, bfloat16 included.
    values = weight.values.to(x.dtype)
    product = linear(x, values) if x.dtype == torch.float32 else F.linear(x, values)
    return (product * weight.scales).to(x.dtype)
