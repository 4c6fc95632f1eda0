"""A weight matrix in 8 bits: symmetric, a scale for each output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ds2ds.native import operations as native

LARGEST = 127
"""-128 stays unused, so that the steps are the same on both sides of zero."""

MOST_INPUTS = 2**16
"""255 * 127 times as many stay below 2^31."""


class Int8Weight(nn.Module):
    """Stands where a weight [..., inputs] stood; its leading dimensions are flattened.

    On a CPU with compiled code it lies in the order in which that reads it, and in this order alone.

    Args:
        weight: floats, finite.
        dynamic: rows that are multiplied with it are rounded to 8 bits too, each by its own scale.

    Attributes:
        stored: int8 [outputs, inputs], or the blocks of `packed`; not to be changed in place.
        scales: float32 [outputs], whatever dtype the model is moved to.
        packed: as compiled code multiplies with it; None where it does not.
        shape: (outputs, inputs).
    """

    stored: Tensor
    scales: Tensor
    packed: native.PackedInt8 | None

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
        self.shape = rows.shape
        self._store(values.clamp_(-LARGEST, LARGEST).to(torch.int8), scales)

    @property
    def values(self) -> Tensor:
        """int8 [outputs, inputs]; values * scales is the weight within half a scale. A copy where it is packed."""
        return self.stored if self.packed is None else native.unpack_int8(self.stored, *self.shape)

    def _store(self, values: Tensor, scales: Tensor) -> None:
        packs = values.is_cpu and values.shape[1] <= MOST_INPUTS and native.available()
        self.packed = native.pack_int8(values, scales) if packs else None
        self.register_buffer("stored", values if self.packed is None else self.packed.blocks)
        self.register_buffer("scales", scales)

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Weight:
        # Scales follow the device alone: rounded to half precision they would move every weight of their row.
        values, scales = fn(self.values), self.scales.to(fn(self.scales).device)
        super()._apply(fn, recurse)
        self._store(values, scales)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # The same numbers wherever they lie: a digest of the weights is the same on every machine.
        destination[f"{prefix}values"] = self.values
        destination[f"{prefix}scales"] = self.scales

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = [f"{prefix}values", f"{prefix}scales"]
        missing = [name for name in names if name not in state_dict]
        missing_keys += missing
        unexpected_keys += [name for name in state_dict if name.startswith(prefix) and name not in names]
        if missing:
            return
        values, scales = (state_dict[name] for name in names)
        if (values.shape, values.dtype, scales.shape) != (self.shape, torch.int8, self.scales.shape):
            got = f"{values.dtype} {list(values.shape)} and scales {list(scales.shape)}"
            error_msgs.append(f"{prefix}values must be int8 {list(self.shape)} with a scale for each output, got {got}")
            return
        device = self.scales.device
        self._store(values.to(device, copy=True), scales.to(device, torch.float32, copy=True))
