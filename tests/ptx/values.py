"""What instructions compute that is no operator of NumPy's; arrays have one value for each thread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
S8, S16, S32, S64 = np.int8, np.int16, np.int32, np.int64
F16, F32, F64 = np.float16, np.float32, np.float64
where, isnan, sqrt, floor, ceil, trunc, rint = np.where, np.isnan, np.sqrt, np.floor, np.ceil, np.trunc, np.rint
minimum, maximum, exp2, count_bits = np.minimum, np.maximum, np.exp2, np.bitwise_count


def largest(a: Array, b: Array) -> Array:
    """A number rather than NaN, and 0 rather than -0."""
    both = (a.view(f"u{a.itemsize}") & b.view(f"u{a.itemsize}")).view(a.dtype)
    return np.where(a == b, both, np.fmax(a, b))


def least(a: Array, b: Array) -> Array:
    """A number rather than NaN, and -0 rather than 0."""
    both = (a.view(f"u{a.itemsize}") | b.view(f"u{a.itemsize}")).view(a.dtype)
    return np.where(a == b, both, np.fmin(a, b))


def from_bf16(bits: Array) -> Array:
    return (bits.astype(U32) << U32(16)).view(F32)


def to_bf16(value: Array) -> Array:
    """To the nearest, ties to even; every NaN is the same one."""
    bits = np.ascontiguousarray(value, F32).view(U32)
    rounded = ((bits + (U32(0x7FFF) + ((bits >> U32(16)) & U32(1)))) >> U32(16)).astype(U16)
    return np.where(np.isnan(value), U16(0x7FFF), rounded)


def to_f16(value: Array) -> Array:
    return np.where(np.isnan(value), U16(0x7FFF), value.astype(F16).view(U16))


def pair(low: Array, high: Array) -> Array:
    """Two values of 16 or 32 bits as one of twice as many."""
    low, high = np.broadcast_arrays(low, high)
    return np.ascontiguousarray(np.stack([low, high], -1)).view({2: U32, 4: U64}[low.itemsize])[..., 0]


def part(value: Array, kind: Any, number: int) -> Array:
    return np.ascontiguousarray(value).view(kind)[..., number :: value.itemsize // np.dtype(kind).itemsize]


def divide(a: Array, b: Array) -> Array:
    """Integers, towards zero."""
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(np.result_type(a, b))


def to_integer(value: Array, kind: Any) -> Array:
    """Of a whole float: what is beyond the ends becomes the end; NaN 0, or the least where there are 64 bits."""
    limits = np.iinfo(kind)
    inside = (value > limits.min) & (value < limits.max)
    result = np.where(inside, value, 0).astype(kind)
    result = np.where(value >= limits.max, limits.max, np.where(value <= limits.min, limits.min, result)).astype(kind)
    nan = limits.min if limits.bits == 64 else 0
    return np.where(np.isnan(value), kind(nan), result)


def bit_field(value: Array, start: int, count: int, signed: bool) -> Array:
    bits = value.itemsize * 8
    kept = (value << U32(bits - start - count)).astype(value.dtype)
    if signed:
        return (kept.view(f"i{value.itemsize}") >> S32(bits - count)).view(value.dtype)
    return kept >> U32(bits - count)


def permute(a: Array, b: Array, selector: int) -> Array:
    """prmt: each digit of the selector names a byte of a and b; from 8 on, that byte's sign all over."""
    source = np.ascontiguousarray(np.stack(np.broadcast_arrays(U32(a), U32(b)), -1)).view(U8)
    out = np.empty((*source.shape[:-1], 4), U8)
    for place in range(4):
        digit = selector >> (4 * place) & 15
        byte = source[..., digit & 7]
        out[..., place] = byte if digit < 8 else (byte >> 7) * 255
    return out.view(U32)[..., 0]


def rough(value: Array, bits: int = 22) -> Array:
    """An approximation: off by up to 2**-bits of the value, always the same for the same value."""
    noise = ((value.view(U32) * U32(2654435761)) >> U32(8)).astype(F32) * F32(2.0**-23) - F32(1)
    return value * (F32(1) + noise * F32(2.0**-bits))


def reduce(name: str, value: Array) -> Array:
    """redux.sync: over the threads of each warp."""
    whole = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
    lanes = value.reshape(-1, 32)
    return np.repeat(whole[name].reduce(lanes, axis=1, dtype=value.dtype), 32)


def exchange(mode: str, value: Array, by: Array | int, clamp: int) -> Array:
    """shfl.sync: each thread has another's value, or its own where there is no such thread."""
    lane = np.arange(value.size) & 31
    least = (lane & (clamp >> 8 & 31)) if mode == "up" else 0
    most = (lane & (clamp >> 8 & 31)) | (clamp & 31 & ~(clamp >> 8 & 31))
    by = np.asarray(by, S64)
    other = {"bfly": lane ^ by, "up": lane - by, "down": lane + by, "idx": by + 0 * lane}[mode]
    there = other >= least if mode == "up" else other <= most
    return value[np.where(there, other, lane) + (np.arange(value.size) & ~31)]


def multiply_16x8x16(kind: str, c: list[Array], a: list[Array], b: list[Array]) -> list[Array]:
    """mma.m16n8k16 of each warp: c + a b; a is 16 x 16 and b 16 x 8, of 16 bits each, and c 16 x 8, of float32."""
    row, column, warps = np.arange(32) // 4, np.arange(32) % 4 * 2, a[0].size // 32
    left, right = np.zeros((warps, 16, 16), F32), np.zeros((warps, 16, 8), F32)

    def number(register: Array, half: int) -> Array:
        bits = part(register, U16, half).reshape(warps, 32)
        return from_bf16(bits) if kind == "bf16" else np.ascontiguousarray(bits).view(F16).astype(F32)

    for half in (0, 1):
        for i, register in enumerate(a):
            left[:, row + 8 * (i % 2), column + half + 8 * (i // 2)] = number(register, half)
        for i, register in enumerate(b):
            right[:, column + half + 8 * i, row] = number(register, half)
    product = left.astype(F64) @ right.astype(F64)
    results = (product[:, row + 8 * (i // 2), column + i % 2].ravel() + c[i].view(F32) for i in range(4))
    return [result.astype(F32).view(U32) for result in results]
