"""Launches that overlap: a kernel starts while the one before it still runs (programmatic dependent launch, sm_90 on).

A decoded token is some eighty kernels, one after the other, and small ones: to launch one, and to wait for the first
bytes of its weights, takes longer than to read the rest of them. But which weights those are does not depend on the
kernel before. So each is launched early, asks for its weights, and only then waits for its predecessor to end.

Where `overlapping()` is on, a kernel that takes part

1. asks for, or reads, before its wait, only what neither its predecessor nor any kernel beside that writes: weights,
   what is older than the step, tables that a kernel before its predecessor has written;
2. in every program calls `take_over`, which waits until all of its predecessor has ended and is in memory, and then
   lets its own successor be launched. As it waits first, at most two kernels run at a time, and those before them have
   ended;
3. writes nothing before that.

`tests/ptx` holds kernels to these rules. A predecessor that does not take part lets go when it ends; a successor that
does not is launched then. A program that waits keeps no other from running, as all of its predecessor's run already.

Source: CUDA Programming Guide, "Programmatic Dependent Launch and Synchronization"; PTX ISA, `griddepcontrol` and
`cp.async.bulk.prefetch.L2`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

CAPABILITY = 90
"""Compute capability of the first GPU that has it."""

_on: ContextVar[bool] = ContextVar("overlapping", default=False)


@contextmanager
def overlapping(on: bool = True) -> Iterator[None]:
    """Launches in here, by this thread, may overlap, where kernels can. The GPU must be of CAPABILITY or later."""
    token = _on.set(on)
    try:
        yield
    finally:
        _on.reset(token)


def launch_options(possible: bool = True) -> dict[str, Any]:
    """What a launch of a kernel with OVERLAP is given besides; `possible`: whether it keeps the rules, called so."""
    return {"OVERLAP": True, "launch_pdl": True} if possible and _on.get() else {"OVERLAP": False}


@triton.jit
def take_over():
    """Wait for the kernel before, and let the one after be launched."""
    gdc_wait()
    gdc_launch_dependents()


@triton.jit
def ask_for(pointer, number):
    """Have so many elements from here on brought to the L2 cache, but for the last few that fill no 16 bytes."""
    start = pointer.to(tl.int64)
    end = start + number.to(tl.int64) * (pointer.dtype.element_ty.primitive_bitwidth // 8)
    start &= -16
    # One thread for all of the program, and nothing of no length.
    tl.inline_asm_elementwise(
        """{
        .reg .b32 %asker;
        .reg .pred %asks;
        mov.u32 %asker, %tid.x;
        setp.eq.u32 %asks, %asker, 0;
        setp.gt.and.s32 %asks, $2, 0, %asks;
        @%asks cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [start, ((end - start) & -16).to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
