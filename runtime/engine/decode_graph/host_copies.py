"""Small copies between the host and a device that neither waits for."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class HostBuffer:
    """Memory of the host, pinned where the device is a GPU, int32; a copy from or to it is done when `wait` returns.

    Attributes:
        values: what is in it; not to be touched while a copy may be under way.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._memory = torch.zeros(shape, dtype=torch.int32, pin_memory=on_gpu)
        self.values: NDArray[np.int32] = self._memory.numpy()
        self._copied = torch.cuda.Event() if on_gpu else None

    def send(self, rows: int, target: Tensor) -> None:
        """Copy the first rows into the target's."""
        target[:rows].copy_(self._memory[:rows], non_blocking=True)
        self._record()

    def fetch(self, rows: int, source: Tensor) -> None:
        """Copy the source's first rows into these."""
        self._memory[:rows].copy_(source[:rows], non_blocking=True)
        self._record()

    def wait(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()

    def _record(self) -> None:
        if self._copied is not None:
            self._copied.record()
