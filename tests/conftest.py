"""Triton's kernels run under its interpreter where there is no GPU: chosen before anything imports them."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
