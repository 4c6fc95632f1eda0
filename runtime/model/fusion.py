"""Whether small operations run as single kernels of ours: on a GPU, where nothing is to be differentiated."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fuses(x: Tensor) -> bool:
    """Whether `fused` has what such a tensor needs, here and now. Triton launches on the current GPU alone."""
    suits = x.is_cuda and len(x) > 0 and x.dtype in DTYPES and not torch.is_grad_enabled()
    return suits and x.get_device() == torch.cuda.current_device() and triton_is_there()


def fused() -> ModuleType:
    """The kernels, `ds2ds.kernels.fused`. Imported here, as Triton is slow to import and not on every system."""
    from ds2ds.kernels import fused

    return fused


def few_rows() -> ModuleType:
    """`ds2ds.kernels.few_rows`, imported here for the same reason."""
    from ds2ds.kernels import few_rows

    return few_rows


@functools.cache
def triton_is_there() -> bool:
    return find_spec("triton") is not None
