"""Small kernels, sound and not, that test_kernel_builds.py has compiled in another process."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from ds2ds.kernels.build import Build


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    tl.store(out + i, tl.load(x + i, mask=mask) * 2.5 + tl.load(y + i, mask=mask), mask=mask)


@triton.jit
def rescale(x, n, BLOCK: tl.constexpr):
    """All BLOCK values are needed at once, BLOCK / 32 registers of each thread of a warp."""
    i = tl.arange(0, BLOCK)
    values = tl.load(x + i)
    for _ in range(n):
        values = values * tl.sum(values)
    tl.store(x + i, values)


@triton.jit
def fuse(x):
    tl.store(x, tl.fma(tl.load(x), 2.5, tl.load(x + 1)))


@triton.jit
def flush(x):
    value = tl.inline_asm_elementwise(
        "mul.rn.ftz.f32 $0, $1, $1;", "=r,r", [tl.load(x)], dtype=tl.float32, is_pure=True, pack=1
    )
    tl.store(x, value)


@triton.jit
def reads_no_such_thing(value):
    return value + nonsense  # noqa: F821


@triton.jit
def broken(x):
    tl.store(x, reads_no_such_thing(tl.load(x)))


@triton.jit
def refused_by_ptxas(x):
    value = tl.inline_asm_elementwise("bogus.op $0, $1;", "=r,r", [tl.load(x)], dtype=tl.float32, is_pure=True, pack=1)
    tl.store(x, value)


def builds() -> Iterator[Build]:
    pointer, exact = {"x": "*fp32"}, {"num_warps": 1, "enable_fp_fusion": False}
    add_types = {**pointer, "y": "*fp32", "out": "*fp32", "n": "i32"}
    aligned = dict.fromkeys(("x", "y", "out"), 16)
    yield Build(add, "sound add", add_types, {"BLOCK": 1024}, aligned, exact)
    yield Build(add, "sound fused add", add_types, {"BLOCK": 1024}, aligned, {"num_warps": 8, "enable_fp_fusion": True})
    many, rescale_types = {"BLOCK": 2048}, {**pointer, "n": "i32"}
    yield Build(rescale, "sound rescale", rescale_types, many, options=exact)
    yield Build(rescale, "sound spare rescale", rescale_types, many, options={**exact, "maxnreg": 32}, default=False)
    yield Build(rescale, "spilling rescale", rescale_types, many, options={**exact, "maxnreg": 32})
    yield Build(fuse, "fused", pointer, options=exact)
    yield Build(flush, "flushing", pointer, options=exact)
    yield Build(broken, "broken", pointer, options=exact)
    yield Build(refused_by_ptxas, "refused", pointer, options=exact)
