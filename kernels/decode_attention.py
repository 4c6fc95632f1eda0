"""Attention of single tokens over a KV arena, in three launches: store what is new, read in parts, add up the parts; or
in two, where no row reads what another stores: a row's new key and value go into its sums as they are, and are stored
beside that.

A decoded token reads some documents, each a run of slots, at a distance of its own. Each (token, document) pair is cut
into *parts* of at most PART keys, and a program reads one part for one head: it turns the query to where that document
sees it, in registers, and writes the sum of the exponentials and the values they weigh. No largest score is looked for
first: queries and keys have unit mean square, so a scaled score lies within +-sqrt(head_dim) and its exponential far
within float32. So parts simply add up, in the order of the table; a token's result does not depend on its batch.

Floor: the keys and values in view, once, by the memory's bandwidth. In bfloat16 with heads of 64 a program has 32 KiB
in flight; what it writes is 1/128 of what it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fused import EPSILON
from .overlap import CAPABILITY, launch_options, take_over

if TYPE_CHECKING:
    from .build import Build

PART = 128
"""Keys that a program reads."""

_MERGED = 16
"""Parts that are added up at once."""

_ONE_WARP: dict[str, Any] = {"num_warps": 1, "enable_fp_fusion": True}


def _reading(part: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Warps that have the keys and values of a part in their registers, all at once.

    And no more: were there not two vectors for each thread, several would have the same numbers, and by fused
    multiply-adds not the same sums of them, of which any is stored for all to use.
    """
    return _ONE_WARP | {"num_warps": min(max(part * width * dtype.itemsize // 4096, 1), 8)}


def store_rows(data: Tensor, qk: Tensor, v: Tensor, cos: Tensor, sin: Tensor, position: Tensor, slot: Tensor) -> None:
    """Put new keys, rotated to their positions, and values into one layer of an arena.

    Args:
        data: [2, heads, slots, head_dim], contiguous, float32, bfloat16 or float16.
        qk: [rows, 2, heads, head_dim], queries and keys, not rotated; contiguous in the last two dimensions.
        v: [rows, heads, head_dim], any strides. What is not finite is stored as `nan_to_num` would have it.
        cos, sin: float32 [positions, head_dim], the tables of `ds2ds.attention.rotary`.
        position, slot: int32 [rows]; a slot below 0 is a row that is not there.
    """
    _, heads, slots, width = data.shape
    v = _with_whole_heads(v)
    _store[(len(v), heads)](
        data, qk, v, cos, sin, position, slot, slots * width, data.stride(0), qk.stride(0), v.stride(0),
        WIDTH=width, LARGEST=torch.finfo(data.dtype).max, **_ONE_WARP,
    )  # fmt: skip


def read_parts(
    data: Tensor,
    qk: Tensor,
    cos: Tensor,
    sin: Tensor,
    parts: Tensor,
    first: Tensor,
    count: Tensor,
    part: int = PART,
) -> Tensor:
    """What rows read of one layer of an arena.

    Args:
        data, qk, cos, sin: as for `store_rows`; all that is read has been stored.
        parts: int32 [M, 4]: row, position its query is rotated to, first slot, number of keys (at most `part`, 0 for
            one that is not there). A row's parts follow one another.
        first, count: int32 [rows]: the parts of each row. A row without any gives 0.
        part: most keys of a part, a power of two.

    Returns:
        [rows, heads, head_dim] in the dtype of qk.
    """
    return _read_parts(data, qk, None, cos, sin, parts, first, count, part, norm=False)


def store_and_read(
    data: Tensor,
    qk: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    slot: Tensor,
    parts: Tensor,
    first: Tensor,
    count: Tensor,
    part: int = PART,
    *,
    norm: bool = False,
) -> Tensor:
    """`store_rows` and `read_parts` at once, where no row reads what another stores.

    Args:
        data, qk, v, cos, sin, slot: as for `store_rows`.
        parts, first, count, part: as for `read_parts`. A row's new key is in a part that is not turned any further than
            the key.
        norm: queries and keys are as they were projected: RMSNorm of each comes first, rounded to their dtype.
    """
    return _read_parts(data, qk, (_with_whole_heads(v), slot), cos, sin, parts, first, count, part, norm)


def _read_parts(
    data: Tensor,
    qk: Tensor,
    new: tuple[Tensor, Tensor] | None,
    cos: Tensor,
    sin: Tensor,
    parts: Tensor,
    first: Tensor,
    count: Tensor,
    part: int,
    norm: bool,
) -> Tensor:
    _, heads, slots, width = data.shape
    total = torch.empty(len(parts), heads, dtype=torch.float32, device=data.device)
    summed = torch.empty(len(parts), heads, width, dtype=torch.float32, device=data.device)
    out = torch.empty(len(qk), heads, width, dtype=qk.dtype, device=data.device)
    v, slot = (qk, parts) if new is None else new  # what is not there is not read
    _read[(len(parts), heads)](
        data, qk, v, cos, sin, slot, parts, total, summed, slots * width, data.stride(0), qk.stride(0), v.stride(0),
        width**-0.5, WIDTH=width, NORM=norm, NEW=new is not None, LARGEST=torch.finfo(data.dtype).max,
        PART=part, **_reading(part, width, data.dtype), **launch_options(possible=new is not None),
    )  # fmt: skip
    _merge[(len(qk), heads)](
        total, summed, first, count, out, WIDTH=width, PARTS=_MERGED, **_ONE_WARP, **launch_options()
    )
    return out


def _with_whole_heads(v: Tensor) -> Tensor:
    """v, whose rows may lie anywhere, but each with one head after the other."""
    return v if v.stride()[1:] == (v.shape[2], 1) else v.contiguous()


@triton.jit
def _turned(x, cos, sin, position, WIDTH: tl.constexpr, NORM: tl.constexpr):
    """The two halves of a query or key, normed and rotated; float32 [WIDTH / 2] each. x points to it."""
    half = tl.arange(0, WIDTH // 2)
    x1 = tl.load(x + half).to(tl.float32)
    x2 = tl.load(x + WIDTH // 2 + half).to(tl.float32)
    if NORM:
        root = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2) / WIDTH + EPSILON)
        x1 = (x1 * root).to(x.dtype.element_ty).to(tl.float32)
        x2 = (x2 * root).to(x.dtype.element_ty).to(tl.float32)
    # Both halves of a table's row hold the same angles; sin's second half has the other sign.
    c = tl.load(cos + position * WIDTH + half)
    s = tl.load(sin + position * WIDTH + half)
    return x1 * c + x2 * s, x2 * c - x1 * s


@triton.jit
def _finite(value, LARGEST: tl.constexpr):
    """As `nan_to_num` would have it; float32.

    A row that is NaN is noticed through its key. As a value it would reach whoever has this slot masked, as
    FlexAttention does: 0 times NaN, or infinity, is NaN.
    """
    value = value.to(tl.float32)
    return tl.where(value == value, tl.minimum(tl.maximum(value, -LARGEST), LARGEST), 0.0)


@triton.jit
def _store(
    data, qk, v, cos, sin, position, slot, plane, kind, qk_row, v_row,
    WIDTH: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    at = tl.load(slot + row).to(tl.int64)
    if at >= 0:
        key = qk + row * qk_row + (tl.num_programs(1) + head) * WIDTH
        k1, k2 = _turned(key, cos, sin, tl.load(position + row), WIDTH, NORM=False)
        half = tl.arange(0, WIDTH // 2)
        keys = data + head.to(tl.int64) * plane + at * WIDTH
        tl.store(keys + half, k1.to(data.dtype.element_ty))
        tl.store(keys + WIDTH // 2 + half, k2.to(data.dtype.element_ty))
        every = tl.arange(0, WIDTH)
        value = _finite(tl.load(v + row * v_row + head * WIDTH + every), LARGEST)
        tl.store(keys + kind + every, value.to(data.dtype.element_ty))


@triton.jit
def _read(
    data, qk, v, cos, sin, slot, parts, total, summed, plane, kind, qk_row, v_row, scale,
    WIDTH: tl.constexpr, NORM: tl.constexpr, NEW: tl.constexpr, LARGEST: tl.constexpr, PART: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.load(parts + 4 * part)
    position = tl.load(parts + 4 * part + 1)
    first = tl.load(parts + 4 * part + 2)
    number = tl.load(parts + 4 * part + 3)
    key = tl.arange(0, PART)
    half = tl.arange(0, WIDTH // 2)
    every = tl.arange(0, WIDTH)
    arena = data + head.to(tl.int64) * plane
    start = arena + (first.to(tl.int64) + key) * WIDTH
    here = key < number
    newest = -1
    if NEW:
        newest = tl.load(slot + row, mask=number > 0, other=-1) - first
        here &= key != newest
    keys = start[:, None] + half[None, :]
    k1 = tl.load(keys, mask=here[:, None], other=0.0)
    k2 = tl.load(keys + WIDTH // 2, mask=here[:, None], other=0.0)
    values = tl.load(start[:, None] + kind + every[None, :], mask=here[:, None], other=0.0)
    if OVERLAP:
        take_over()  # with all that on its way
    if number > 0:
        query = qk + row * qk_row + head * WIDTH
        q1, q2 = _turned(query, cos, sin, position, WIDTH, NORM)
        if NEW:
            # Nobody waits for what is stored here: the new key and value go into the sums as they are.
            among = (newest >= 0) & (newest < number)
            n1, n2 = _turned(query + tl.num_programs(1) * WIDTH, cos, sin, position, WIDTH, NORM)
            n1, n2 = n1.to(data.dtype.element_ty), n2.to(data.dtype.element_ty)
            new_value = _finite(tl.load(v + row * v_row + head * WIDTH + every), LARGEST).to(data.dtype.element_ty)
            if among:
                at = arena + (first + newest).to(tl.int64) * WIDTH
                tl.store(at + half, n1)
                tl.store(at + WIDTH // 2 + half, n2)
                tl.store(at + kind + every, new_value)
            score = tl.sum(n1.to(tl.float32) * q1 + n2.to(tl.float32) * q2) * scale
            new_weight = tl.where(among, tl.exp(score), 0.0)
        score = tl.sum(k1.to(tl.float32) * q1[None, :] + k2.to(tl.float32) * q2[None, :], axis=1) * scale
        weight = tl.where(here, tl.exp(score), 0.0)
        whole, weighted = tl.sum(weight), tl.sum(values.to(tl.float32) * weight[:, None], axis=0)
        if NEW:
            whole += new_weight
            weighted += new_weight * new_value.to(tl.float32)
        at = part * tl.num_programs(1) + head
        tl.store(total + at, whole)
        tl.store(summed + at * WIDTH + every, weighted)


@triton.jit
def _merge(total, summed, first, count, out, WIDTH: tl.constexpr, PARTS: tl.constexpr, OVERLAP: tl.constexpr):
    row = tl.program_id(0)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    every = tl.arange(0, WIDTH)
    start, number = tl.load(first + row), tl.load(count + row)
    if OVERLAP:
        take_over()
    whole = tl.full((), 0.0, tl.float32)
    weighted = tl.zeros((WIDTH,), tl.float32)
    # Many at a time, for each turn waits for memory.
    for some in range(0, number, PARTS):
        part = some + tl.arange(0, PARTS)
        at = (start + part) * heads + head
        whole += tl.sum(tl.load(total + at, mask=part < number, other=0.0))
        sums = tl.load(summed + at[:, None] * WIDTH + every[None, :], mask=(part < number)[:, None], other=0.0)
        weighted += tl.sum(sums, axis=0)
    # Not where it is above 0, either, as it may be NaN: what a row reads of one that is NaN, is NaN.
    read = tl.where(whole == 0, 0.0, weighted / whole)
    tl.store(out + (row * heads + head) * WIDTH + every, read.to(out.dtype.element_ty))


def builds() -> Iterator[Build]:
    """Every dtype, for heads of 64 and 128; `_read` with all that is asked of it at once, and overlapping."""
    from .build import ARCHITECTURES, Build

    types = {
        **dict.fromkeys(("cos", "sin", "total", "summed"), "*fp32"),
        **dict.fromkeys(("position", "slot", "parts", "first", "count"), "*i32"),
        **dict.fromkeys(("plane", "kind", "qk_row", "v_row"), "i32"),
        "scale": "fp32",
    }
    for dtype, kind_of in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        largest = {"LARGEST": torch.finfo(kind_of).max}
        for width in (64, 128):
            kernels: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
                (_merge, {"PARTS": _MERGED, "OVERLAP": overlap}, _ONE_WARP) for overlap in (False, True)
            ]
            kernels.append((_store, largest, _ONE_WARP))
            for new, norm, overlap in [(False, False, False), *product((True,), (False, True), (False, True))]:
                constants = {"NORM": norm, "NEW": new, "PART": PART, "OVERLAP": overlap, **largest}
                kernels.append((_read, constants, _reading(PART, width, kind_of)))
            for kernel, constants, options in kernels:
                constants = {"WIDTH": width, **constants}
                signature = {name: types.get(name, f"*{dtype}") for name in kernel.arg_names if name not in constants}
                normed = ", norm" if constants.get("NORM") else ""
                newest = ", new" if constants.get("NEW") else ""
                overlaps = ", overlapping" if constants.get("OVERLAP") else ""
                yield Build(
                    kernel=kernel,
                    name=f"attention{kernel.__name__}[{dtype} heads of {width}{normed}{newest}{overlaps}]",
                    signature=signature,
                    constexprs=constants,
                    attrs={name: 16 for name, kind in signature.items() if kind != "fp32"},
                    options=options,
                    since=CAPABILITY if overlaps else ARCHITECTURES[0],
                )
