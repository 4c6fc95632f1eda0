"""exp and log in float32, spelled out operation by operation, so that NumPy and a GPU give the same bits.

Which token top-p ends at, and which of two close scores is the larger, can hang on the last bit of an exponential or
a logarithm, and every library rounds those its own way. Here each is a fixed sequence of float32 additions,
multiplications and divisions that IEEE 754 rounds in one way only; ``arithmetic`` has the same sequences for
Triton, compiled without contraction to fused multiply-adds. Both are within 1.5 ulp or so of the true value.

The polynomials are near-minimax fits on the reduced range: exp(r) = 1 + r + r**2 P(r) for abs(r) <= log(2) / 2, and
log(1 + f) = f - f**2 / 2 + f**3 Q(f) for 1 + f in [sqrt(1/2), sqrt(2)).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LOG2_E = 1.4426950408889634
# log(2) in two parts: the product of the first with an exponent is exact.
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4
EXP_FLOOR = -87.0  # below it exp is 0: the last whole power of two there is the least normal float32
# Added to a small number it rounds that to a whole one, n, and leaves n + 127, the exponent of 2**n, in the last bits.
ROUNDER = 1.5 * 2**23 + 127
EXP_POLYNOMIAL = (0.001395049155689776, 0.008368889801204205, 0.04166620597243309, 0.166665181517601, 0.5)
LOG_POLYNOMIAL = (
    -0.0786093920469284,
    0.12883494794368744,
    -0.13129101693630219,
    0.14180956780910492,
    -0.1662449836730957,
    0.20002295076847076,
    -0.25000810623168945,
    0.33333316445350647,
)
SQRT_HALF_BITS = 0x3F3504F3
MANTISSA_BITS = 0x007FFFFF

_F = np.float32


def exp(y: Floats) -> Floats:
    """exp of y <= 0, any shape; 0 below -87. exp(0) is 1, and no value is above it."""
    clamped = np.maximum(y, _F(EXP_FLOOR))
    shifted = clamped * _F(LOG2_E)
    shifted += _F(ROUNDER)
    n = shifted - _F(ROUNDER)
    r = clamped
    r -= n * _F(LN2_HIGH)
    r -= n * _F(LN2_LOW)
    p = _polynomial(EXP_POLYNOMIAL, r)
    p *= r * r
    p += r
    p += _F(1)
    scale = shifted.view(np.int32)
    scale <<= np.int32(23)
    p *= scale.view(np.float32)
    p[y < _F(EXP_FLOOR)] = 0
    return p


def log(x: Floats) -> Floats:
    """Natural logarithm of x > 0 and normal, any shape."""
    # Bits counted from sqrt(1/2), so that the exponent is that of x over a mantissa in [sqrt(1/2), sqrt(2)).
    bits = x.view(np.int32) - np.int32(SQRT_HALF_BITS)
    e = (bits >> np.int32(23)).astype(np.float32)
    bits &= np.int32(MANTISSA_BITS)
    bits += np.int32(SQRT_HALF_BITS)
    f = bits.view(np.float32)
    f -= _F(1)
    square = f * f
    p = _polynomial(LOG_POLYNOMIAL, f)
    p *= f
    p *= square
    p += e * _F(LN2_LOW)
    square *= _F(0.5)
    p -= square
    p += f
    e *= _F(LN2_HIGH)
    p += e
    return p


def _polynomial(coefficients: tuple[float, ...], x: Floats) -> Floats:
    p = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        p *= x
        p += _F(coefficient)
    return p
