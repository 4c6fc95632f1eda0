"""A weight matrix in 8 bits: symmetric, a scale for each output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 127
"""-128 stays unused, so that the steps are the same on both sides of zero."""

MOST_INPUTS = 2**16
"""255 * 127 times as many stay below 2^31."""


class Int8Weight(nn.Module):
    """Stands where a weight [..., inputs] stood; its leading dimensions are flattened.

    Args:
        weight: floats, finite.
        dynamic: rows that are multiplied with it are rounded to 8 bits too, each by its own scale.

    Attributes:
        values: int8 [outputs, inputs]; values * scales is the weight within half a scale.
        scales: float32 [outputs], whatever dtype the model is moved to.
    """

    values: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, dynamic: bool = False) -> None:
        super().__init__()
        self.dynamic = dynamic
        rows = weight.detach().flatten(0, -2).float()
        if dynamic and rows.shape[1] > MOST_INPUTS:
            raise ValueError(f"products of at most {MOST_INPUTS} bytes add up in 32 bits, got {rows.shape[1]} inputs")
        if not bool(rows.isfinite().all()):
            raise ValueError("weights must be finite to be quantised, got NaN or infinity")
        scales = rows.abs().amax(dim=1) / LARGEST
        # A row of zeros would be divided by its scale of zero.
        values = (rows / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_()
        self.register_buffer("values", values.clamp_(-LARGEST, LARGEST).to(torch.int8))
        self.register_buffer("scales", scales)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight that this stands for, [outputs, inputs]."""
        return (self.values.to(torch.float32) * self.scales[:, None]).to(dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Weight:
        scales = self.scales
        super()._apply(fn, recurse)
        # Scales follow the device alone: rounded to half precision they would move every weight of their row.
        self.scales = scales.to(self.values.device)
        return self
