"""Which of the two versions of a kernel runs: Triton's, or the plain one."""

from __future__ import annotations

import os

import torch


def use_triton(backend: str, tensor: torch.Tensor) -> bool:
    """Whether this backend, "auto", "triton" or "torch", is Triton for this tensor.

    Raises:
        ValueError: it is none of them, or Triton cannot run where the tensor is.
    """
    if backend == "auto":
        return tensor.is_cuda
    if backend not in ("triton", "torch"):
        raise ValueError(f"backend must be 'auto', 'triton' or 'torch', got {backend!r}")
    # Triton's own interpreter, for tests, is chosen when kernels are defined, and runs on the host.
    if backend == "triton" and not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"backend 'triton' needs tensors on a CUDA device, got {tensor.device}; use backend='torch', "
            "or set TRITON_INTERPRET=1 before Python starts to have the kernels interpreted"
        )
    return backend == "triton"
