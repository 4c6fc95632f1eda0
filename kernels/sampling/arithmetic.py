"""The arithmetic of ``elementary`` and ``philox`` for Triton kernels: the same operations, the same bits.

To be compiled with ``enable_fp_fusion=False``: a product fused with a sum is rounded once where the reference rounds
twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import elementary, philox

LOG2_E = tl.constexpr(elementary.LOG2_E)
LN2_HIGH = tl.constexpr(elementary.LN2_HIGH)
LN2_LOW = tl.constexpr(elementary.LN2_LOW)
EXP_FLOOR = tl.constexpr(elementary.EXP_FLOOR)
ROUNDER = tl.constexpr(elementary.ROUNDER)
SQRT_HALF_BITS = tl.constexpr(elementary.SQRT_HALF_BITS)
MANTISSA_BITS = tl.constexpr(elementary.MANTISSA_BITS)
MULTIPLIER_0, MULTIPLIER_1 = map(tl.constexpr, philox.MULTIPLIERS)
WEYL_0, WEYL_1 = map(tl.constexpr, philox.WEYL)
E0, E1, E2, E3, E4 = map(tl.constexpr, elementary.EXP_POLYNOMIAL)
L0, L1, L2, L3, L4, L5, L6, L7 = map(tl.constexpr, elementary.LOG_POLYNOMIAL)


@triton.jit
def exact_exp(y):
    """``elementary.exp``: of float32 y <= 0."""
    return tl.where(y < EXP_FLOOR, 0.0, _scaled_exp(tl.maximum(y, EXP_FLOOR), ROUNDER))


@triton.jit
def exact_mass(y):
    """int64 floor(exp(y) * 2**44), in fewer steps. Below -32 it is 0."""
    return _scaled_exp(tl.maximum(y, -32.0), ROUNDER + 44).to(tl.int64)


@triton.jit
def _scaled_exp(y, rounder: tl.constexpr):
    """exp, times as many powers of two as the rounder is above its own."""
    shifted = y * LOG2_E + rounder
    n = shifted - rounder
    r = y - n * LN2_HIGH
    r = r - n * LN2_LOW
    p = (((r * E0 + E1) * r + E2) * r + E3) * r + E4
    p = p * (r * r)
    p = p + r
    p = p + 1.0
    return p * (shifted.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exact_log(x):
    """``elementary.log``: of float32 x > 0, normal."""
    bits = x.to(tl.int32, bitcast=True) - SQRT_HALF_BITS
    e = (bits >> 23).to(tl.float32)
    f = ((bits & MANTISSA_BITS) + SQRT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    square = f * f
    p = ((((((L0 * f + L1) * f + L2) * f + L3) * f + L4) * f + L5) * f + L6) * f + L7
    p = p * f
    p = p * square
    p = p + e * LN2_LOW
    p = p - square * 0.5
    p = p + f
    return p + e * LN2_HIGH


@triton.jit
def gumbel(words):
    """``philox._gumbel``: the noise float32 made from random uint32 words."""
    large = words >= 2147483648
    # Not ~words: what interprets kernels in Triton 3.7 cannot do that.
    near = ((tl.where(large, words ^ 0xFFFFFFFF, words) << 1) | 1).to(tl.float32) * 1.1641532182693481e-10  # 2**-33
    rounded = 1.0 - near
    lost = tl.div_rn((1.0 - rounded) - near, rounded)
    exponential = exact_log(tl.where(large, near, rounded)) + tl.where(large, 0.0, lost)
    # A minus of Triton's makes 0 of 0 up to 3.6, and -0 later.
    return 0.0 - exact_log(-exponential)


@triton.jit
def arrival(words, y):
    """Of a token with these random words and scores y without noise: when it arrives, if not later.

    Scores rank as an exponential race does: the best one arrives first, at -log1p(-u) * exp(-y), and -log1p(-u) >= u.
    """
    return words.to(tl.float32) * tl.exp2(y * -LOG2_E)


@triton.jit
def score_bound(arrival):
    """At least the score, noise with it, of what arrives then, but for rounding; much more for 0."""
    score = 22.18070977791825 - exact_log(arrival)  # log(2**32): u is words / 2**32
    return tl.where(arrival < float("inf"), score, -float("inf"))


@triton.jit
def gumbel_at(seed, position, ids):
    """The noise of token ids int32 [N] of one row: seed and position are int64 scalars."""
    w0, w1, w2, w3 = _words(seed, position, ids >> 2)
    lane = ids & 3
    return gumbel(tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3)))


@triton.jit
def words_from(seed, position, first, SIZE: tl.constexpr):
    """The random words of the SIZE tokens from ``first`` on, a multiple of 4: four from every run of Philox."""
    w0, w1, w2, w3 = _words(seed, position, (first >> 2) + tl.arange(0, SIZE // 4))
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (SIZE,))


@triton.jit
def _words(seed, position, blocks):
    """``philox.philox4x32``. Not tl.philox: it multiplies twice, for the lower halves and for the upper ones."""
    zero = tl.zeros_like(blocks).to(tl.uint32)
    c0, c1, c2, c3 = blocks.to(tl.uint32), zero + _low(position), zero + _low(position >> 32), zero
    k0, k1 = _low(seed), _low(seed >> 32)
    for _ in tl.static_range(10):
        product_0 = c0.to(tl.uint64) * MULTIPLIER_0
        product_1 = c2.to(tl.uint64) * MULTIPLIER_1
        c0, c1 = _low(product_1 >> 32) ^ c1 ^ k0, _low(product_1)
        c2, c3 = _low(product_0 >> 32) ^ c3 ^ k1, _low(product_0)
        k0 += WEYL_0
        k1 += WEYL_1
    return c0, c1, c2, c3


@triton.jit
def _low(x):
    return (x & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def ordered_key(x):
    """uint32 that ascends as float32 x does; the two zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@triton.jit
def from_key(key):
    """The x of ``ordered_key``."""
    bits = key.to(tl.int32, bitcast=True)
    return (bits ^ (~(bits >> 31) | -2147483648)).to(tl.float32, bitcast=True)
