"""exp and log against float64: how far off they may be, and the values that the samplers rely on."""

from __future__ import annotations

import numpy as np

from ds2ds.kernels.sampling.elementary import EXP_FLOOR, exp, log


def test_exp_is_within_two_ulp() -> None:
    y = np.linspace(EXP_FLOOR, 0, 2_000_003).astype(np.float32)
    exact = np.exp(y.astype(np.float64))
    assert (abs(exp(y) - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()


def test_exp_at_its_ends() -> None:
    tiny = np.float32(2.0**-126)
    y = np.array([0.0, -0.0, -1e-45, -1e-9, EXP_FLOOR, -87.01, -1e30, -np.inf], dtype=np.float32)
    out = exp(y)
    assert out[:4].tolist() == [1.0] * 4
    assert tiny <= out[4] < 2 * tiny
    assert out[5:].tolist() == [0.0] * 3


def test_exp_is_never_above_one() -> None:
    """The largest mass is that of the largest logit: 2**44 and no more."""
    near_zero = np.arange(1_000_000, dtype=np.uint32).view(np.float32) * np.float32(-1)
    for y in (near_zero, -np.geomspace(1e-9, 1, 1_000_000).astype(np.float32)):
        assert exp(y).max() <= 1.0


def test_log_is_within_two_ulp() -> None:
    every_mantissa = (np.arange(2**23, dtype=np.uint32) + np.uint32(0x3F000000)).view(np.float32)  # [0.5, 1)
    wide = np.geomspace(2.0**-126, 1e38, 1_000_003).astype(np.float32)
    for x in (every_mantissa, every_mantissa * np.float32(2), wide):
        exact = np.log(x.astype(np.float64))
        assert (abs(log(x) - exact) <= 2 * np.spacing(abs(exact).astype(np.float32))).all()
    assert log(np.ones(1, dtype=np.float32)).item() == 0.0
