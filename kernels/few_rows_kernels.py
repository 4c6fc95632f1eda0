"""The kernels of `few_rows`: one on tensor cores, one in registers, and what both begin and end with.

x, add, other and out are rows of floats, [rows, inputs or outputs], of which x alone has a row stride; weight is
[outputs, inputs], of floats or int8, or [2 outputs, inputs] where GATED, and scales has as many; skip_weights is read
at index. See `few_rows.product` for what they are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .fused import EPSILON, joined, joining
from .overlap import ask_for, take_over

_NEXT = tl.constexpr(2 if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) else 1)
"""How many outputs, or rows, Triton is told are contiguous beside their inputs: one, as is true. Of two dimensions that
are not, 3.6 deals the first out to threads before the second, so that a warp would copy inputs of several warps, which
in shared memory lie in the same banks. Told of 2, which decides that order and nothing else, it takes the second first.
"""


@triton.jit(do_not_specialize=["rows", "index"])
def dot(
    x, weight, scales, add, skip_weights, other, out, rows, row_stride, outputs, inputs, index,
    SCALED: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr, SKIP: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, WARPS: tl.constexpr, STEP: tl.constexpr, EVEN: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    groups = tl.cdiv(rows, ROWS)
    # Groups of rows that take the same weights follow one another, while those are in the L2 cache.
    first = (tl.program_id(0) // groups).to(tl.int64) * OUTPUTS
    output = first + tl.arange(0, OUTPUTS)
    row = (tl.program_id(0) % groups).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    input = tl.arange(0, WARPS)[:, None] * STEP + tl.arange(0, STEP)[None, :]
    # Beyond the last output that one is computed again, which takes no mask.
    weights = weight + (tl.minimum(output, outputs - 1) * inputs)[None, :, None] + input[:, None, :]
    weights = tl.max_contiguous(weights, (1, _NEXT, STEP))
    columns = tl.max_contiguous(x + (row * row_stride)[None, None, :] + input[:, :, None], (1, STEP, _NEXT))
    there = (row < rows)[None, None, :]
    total = tl.zeros((WARPS, OUTPUTS, ROWS), tl.float32)
    gates = tl.zeros((WARPS, OUTPUTS, ROWS), tl.float32)
    products = tl.zeros((WARPS, ROWS, ROWS), tl.float32)
    to_gates = tl.full((), 1, tl.int64) * outputs * inputs  # an `outputs` of 1 is a constant, without a type
    _start(weight, first, outputs, inputs, GATED, OUTPUTS, OVERLAP)
    added, scale, gate_scale, share, joins = _beside(
        add, scales, skip_weights, other, output[:, None], row[None, :], outputs, rows, index, SCALED, GATED, ADD, SKIP
    )
    for start in range(0, inputs, WARPS * STEP):
        if EVEN:
            known = there
            some = tl.load(weights + start)
        else:
            here = start + input < inputs
            known = here[:, :, None] & there
            some = tl.load(weights + start, mask=here[:, None, :], other=0.0)
        column = tl.load(columns + start, mask=known, other=0.0)
        total = tl.dot(some.to(column.dtype), column, total)
        if GATED:
            if EVEN:
                some = tl.load(weights + to_gates + start)
            else:
                some = tl.load(weights + to_gates + start, mask=here[:, None, :], other=0.0)
            gates = tl.dot(some.to(column.dtype), column, gates)
        if NORM:
            if SCALED:  # int8 weights are multiplied with x in an order of their own, so it is loaded once more
                across = tl.load(tl.trans(columns, 0, 2, 1) + start, mask=tl.trans(known, 0, 2, 1), other=0.0)
                column = tl.trans(across, 0, 2, 1)
            products = tl.dot(tl.trans(column, 0, 2, 1), column, products)
    each = tl.arange(0, ROWS)
    square = tl.sum(tl.where(each[:, None] == each[None, :], _of_all_warps(products), 0.0), axis=0)
    gate = _of_all_warps(gates)
    _finish(
        _of_all_warps(total), gate, square[None, :], added, scale, gate_scale, share, joins,
        out, output[:, None], row[None, :], rows, outputs, inputs, SCALED, NORM, GATED, ADD, SKIP,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "index"])
def sums(
    x, weight, scales, add, skip_weights, other, out, rows, row_stride, outputs, inputs, index,
    SCALED: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr, SKIP: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    groups = tl.cdiv(rows, ROWS)
    first = (tl.program_id(0) // groups).to(tl.int64) * OUTPUTS
    output = first + tl.arange(0, OUTPUTS)
    row = (tl.program_id(0) % groups).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    input = tl.arange(0, BLOCK)[None, None, :]
    weights = weight + (tl.minimum(output, outputs - 1) * inputs)[None, :, None] + input
    columns = x + (row * row_stride)[:, None, None] + input
    there = (row < rows)[:, None, None]
    total = tl.zeros((ROWS, OUTPUTS, BLOCK), tl.float32)
    gates = tl.zeros((ROWS, OUTPUTS, BLOCK), tl.float32)
    squares = tl.zeros((ROWS, 1, BLOCK), tl.float32)
    to_gates = tl.full((), 1, tl.int64) * outputs * inputs  # an `outputs` of 1 is a constant, without a type
    _start(weight, first, outputs, inputs, GATED, OUTPUTS, OVERLAP)
    added, scale, gate_scale, share, joins = _beside(
        add, scales, skip_weights, other, output[None, :], row[:, None], outputs, rows, index, SCALED, GATED, ADD, SKIP
    )
    for start in range(0, inputs, BLOCK):
        here = start + input < inputs
        column = tl.load(columns + start, mask=here & there, other=0.0)
        total += tl.load(weights + start, mask=here, other=0.0).to(tl.float32) * column
        if GATED:
            gates += tl.load(weights + to_gates + start, mask=here, other=0.0).to(tl.float32) * column
        if NORM:
            squares += column * column
    _finish(
        tl.sum(total, axis=2), tl.sum(gates, axis=2), tl.sum(squares, axis=2), added, scale, gate_scale, share, joins,
        out, output[None, :], row[:, None], rows, outputs, inputs, SCALED, NORM, GATED, ADD, SKIP,
    )  # fmt: skip


@triton.jit
def _of_all_warps(sums):
    """[warps, ...] added up, neighbours first.

    Split, two warps' sums come to one thread, and all of them pass shared memory once. Triton 3.6 and 3.7 would add up
    what warps hold by storing a warp's sums as many words apart as there are warps: in the same banks.
    """
    flat = tl.reshape(sums, (sums.shape[0], sums.shape[1] * sums.shape[2]))
    one, other = tl.split(tl.reshape(tl.trans(flat), (flat.shape[1], flat.shape[0] // 2, 2)))
    return tl.reshape(tl.sum(one + other, axis=1), (sums.shape[1], sums.shape[2]))


@triton.jit
def _start(weight, first, outputs, inputs, GATED: tl.constexpr, OUTPUTS: tl.constexpr, OVERLAP: tl.constexpr):
    """Before anything is read that another kernel may write."""
    if OVERLAP:
        number = tl.minimum(OUTPUTS, outputs - first) * inputs
        ask_for(weight + first * inputs, number)
        if GATED:
            ask_for(weight + (outputs + first) * inputs, number)
        take_over()


@triton.jit
def _beside(
    add, scales, skip_weights, other, output, row, outputs, rows, index,
    SCALED: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """What the sums meet at the end: loaded before the product, as a wait for memory after it would be one more."""
    here = (row < rows) & (output < outputs)
    at = row * outputs + output
    added, scale, gate_scale = 0.0, 1.0, 1.0
    if ADD:
        added = tl.load(add + at, mask=here, other=0.0)
    if SCALED:
        scale = tl.load(scales + output, mask=output < outputs, other=0.0)
        if GATED:
            gate_scale = tl.load(scales + outputs + output, mask=output < outputs, other=0.0)
    share, joins = joining(skip_weights + index, other + at, here, SKIP)
    return added, scale, gate_scale, share, joins


@triton.jit
def _finish(
    y, gate, square, added, scale, gate_scale, share, joins, out, output, row, rows, outputs, inputs,
    SCALED: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """What comes after the sums, rounded where PyTorch's operations would round."""
    kind = out.dtype.element_ty
    if NORM:
        root = tl.rsqrt(square / inputs + EPSILON)
        y *= root
        gate *= root
    if SCALED:
        y *= scale
        gate *= gate_scale
    y = y.to(kind)
    if GATED:
        gate = gate.to(kind).to(tl.float32)
        y = (y.to(tl.float32) * (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)).to(kind)
    if ADD:
        y = (added.to(tl.float32) + y.to(tl.float32)).to(kind)
    tl.store(out + row * outputs + output, joined(y, share, joins, SKIP), mask=(row < rows) & (output < outputs))
