"""FlexAttention's kernels compile for an H200, where torch is a build for CUDA; a GPU is not needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ds2ds.attention.flex_kernel import MOST_NUMBERS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.version.cuda is None, reason="needs a build of torch for CUDA"),
]

SHARED = 227 * 2**10
"""Bytes that one program can have on an H100 or H200."""


def build(kind: str, *sizes: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).parent / "flex_to_build.py"), kind, *map(str, sizes)]
    environ = {**os.environ, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)


LARGEST = MOST_NUMBERS // 768 // 128 * 128
"""Slots of the largest arena for 12 heads of 64 dimensions."""


# Rows, head_dim, block, dtype, slots, heads: the engine's, the GPU tests', wide heads, and such as are no power of two.
@pytest.mark.parametrize(
    "sizes",
    [
        (4, 64, 128, "bfloat16", 52096, 12),
        (16, 64, 64, "float32", 4032, 4),
        (4, 128, 16, "bfloat16", 4000, 4),
        (8, 16, 16, "float32", 4000, 4),
        (4, 48, 128, "float16", 4096, 4),
        (4, 256, 128, "float32", 4096, 2),
        (4, 64, 128, "bfloat16", LARGEST, 12),
    ],
)
@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_kernels_compile(kind: str, sizes: tuple[Any, ...]) -> None:
    done = build(kind, *sizes)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum("_tem_" in kernel["name"] for kernel in kernels) == 1
    assert max(kernel["shared"] for kernel in kernels) <= SHARED


def test_a_larger_arena_is_what_the_kernel_for_decoding_cannot_do() -> None:
    """What MOST_NUMBERS is for. When this fails, torch has mended it, and the limit may go."""
    done = build("decode", 4, 64, 128, "bfloat16", LARGEST + 128, 12)
    assert done.returncode != 0 and "inconsistent types int64 and int32" in done.stderr
