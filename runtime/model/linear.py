"""x W^T for few rows, at the speed of memory.

Decoding reads every weight once per token, so the floor is bytes over bandwidth. For one to sixteen rows of float32 on
a CPU, torch's own linear (a gemv or a thin gemm of MKL) stays far above it on some machines: measured on 2 cores of an
AMD EPYC, 14 to 20 GB/s for one row where a plain sum reads 39 to 46 and batched products of the same weights 33 to 40.
``bench/linear.py`` measures all three (``bench/results/linear_cpu.json``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 16


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``F.linear(x, weight)`` for x [rows, in] and weight [out, in]; equal to it up to rounding."""
    rows = x.shape[0]
    if rows > FEW_ROWS or weight.dtype != torch.float32 or weight.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x, weight)
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
