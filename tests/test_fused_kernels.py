"""Small operations in one launch, interpreted, against PyTorch's own one after the other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ds2ds.attention.rotary import Rotary
from ds2ds.kernels import fused
from ds2ds.kernels.decode_attention import store_rows
from ds2ds.model import backbone, linear
from ds2ds.model.fusion import fuses

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="the model runs them there: test_decode_graph_gpu.py"),
    pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning"),
]
SOME = settings(max_examples=15, deadline=None, derandomize=True)
CLOSE = {torch.float32: 1e-6, torch.float16: 2e-3}  # a unit in the last place of float16 below 2
KINDS = st.sampled_from(list(CLOSE))


def drawn(seed: int, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.is_contiguous()
    close = CLOSE[ours.dtype]
    torch.testing.assert_close(ours, theirs, atol=close, rtol=close)


@SOME
@given(st.integers(1, 3), st.sampled_from([4, 12, 130]), KINDS, st.sampled_from([1.0, 1e-3, 50.0]), st.integers(0, 99))
def test_rms_norm(rows: int, width: int, dtype: torch.dtype, scale: float, seed: int) -> None:
    x = drawn(seed, rows, width, dtype=dtype, scale=scale)
    assert_close(fused.rms_norm(x), F.rms_norm(x, (width,)))
    qkv = drawn(seed, rows, 3, 2, width, dtype=dtype, scale=scale)
    assert_close(fused.rms_norm(x.t().contiguous().t()), F.rms_norm(x, (width,)))
    # The queries and keys of a projection, which do not lie together.
    assert_close(fused.rms_norm(qkv[:, :2]), F.rms_norm(qkv[:, :2], (width,)).contiguous())


@SOME
@given(st.integers(1, 3), st.sampled_from([4, 12, 130]), KINDS, st.integers(0, 99))
def test_add_norm(rows: int, width: int, dtype: torch.dtype, seed: int) -> None:
    x, y = (drawn(seed + i, rows, width, dtype=dtype, scale=3.0) for i in range(2))
    total, normed = fused.add_norm(x, y)
    assert torch.equal(total, x + y)
    assert_close(normed, F.rms_norm(x + y, (width,)))
    assert_close(normed, backbone.add_norm(x, y)[1])


@SOME
@given(st.integers(1, 3), st.sampled_from([4, 130]), KINDS, st.integers(0, 2), st.booleans(), st.integers(0, 99))
def test_add_norm_with_a_skip(rows: int, width: int, dtype: torch.dtype, which: int, itself: bool, seed: int) -> None:
    x, y, other = (drawn(seed + i, rows, width, dtype=dtype, scale=3.0) for i in range(3))
    skip = backbone.Skip(drawn(seed, 3, dtype=dtype), which, None if itself else other)
    total, normed = fused.add_norm(x, y, skip)
    plain, plain_normed = backbone.add_norm(x, y, skip)
    # Multiplied and added in one rounding or in two, then rounded to the dtype: a unit of that more or less.
    assert_close(total / 8, plain / 8)
    assert_close(normed, plain_normed)


@SOME
@given(st.integers(1, 3), st.sampled_from([4, 12, 1030]), KINDS, st.integers(0, 99))
def test_the_gated_unit(rows: int, width: int, dtype: torch.dtype, seed: int) -> None:
    x = drawn(seed, rows, 2 * width, dtype=dtype, scale=2.0)
    x[0, width] = 60.0 if dtype == torch.float16 else 100.0
    x[0, width + 1] = -x[0, width]
    up, gate = x.chunk(2, dim=-1)
    assert_close(fused.gated_unit(x), up * F.silu(gate))
    with torch.no_grad():
        assert_close(fused.gated_unit(x), linear.gated_unit(x))


def test_a_cpu_has_no_use_for_them() -> None:
    with torch.inference_mode():
        assert not fuses(torch.ones(2, 4))


def test_they_are_for_the_current_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is stood in for. Triton would launch them on that one, wherever their arguments are."""

    class Rows(SimpleNamespace):
        def __len__(self) -> int:
            return 2

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with torch.inference_mode():
        found = [fuses(Rows(is_cuda=True, dtype=torch.bfloat16, get_device=lambda at=at: at)) for at in range(3)]
    assert found == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_value_in_the_arena_is_ever_not_finite(dtype: torch.dtype) -> None:
    """A key is: that is how a row without usable numbers is noticed."""
    data, rotary = torch.zeros(2, 1, 4, 8, dtype=dtype), Rotary(8, 4)
    v = torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0, 1.0, -2.0, 3.0, 4.0]]).to(dtype)[:, None]
    qk = torch.full((1, 2, 1, 8), torch.nan, dtype=dtype)
    one = torch.ones(1, dtype=torch.int32)
    store_rows(data, qk, v, rotary.cos, rotary.sin, one, 2 * one)
    assert torch.equal(data[1, 0, 2], v[0, 0].nan_to_num())
    assert data[0, 0, 2].isnan().all()
