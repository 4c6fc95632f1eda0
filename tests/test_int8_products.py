"""Few rows times int8 weights in one launch, interpreted, against float64 and PyTorch's own operations.

The interpreter has no products in bfloat16: those are in test_int8_products_gpu.py.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ds2ds.kernels import few_rows as kernels
from ds2ds.kernels import fused
from ds2ds.model import linear as model_linear
from ds2ds.model.int8_weight import Int8Weight
from ds2ds.native.operations import takes as takes_natively

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="compiled there: test_int8_products_gpu.py"),
    pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning"),
]
SOME = settings(max_examples=60, deadline=None, derandomize=True)
KINDS = st.sampled_from([torch.float32, torch.float16])
INPUTS = st.one_of(st.integers(1, 700), st.sampled_from([256, 512, 768, 1024, 1030]))


@pytest.fixture(autouse=True)
def few_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that weights of few outputs get the programs of many, as in test_few_rows_kernel."""
    monkeypatch.setattr(kernels, "_MULTIPROCESSORS", 1)


def drawn(rows: int, outputs: int, inputs: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    values = torch.randint(-127, 128, (outputs, inputs), generator=dice, dtype=torch.int8)
    return torch.randn(rows, inputs, generator=dice), values, torch.rand(outputs, generator=dice) / 127


def bound(x: Tensor, values: Tensor, scales: Tensor, exact: Tensor, unit: float = 2.0**-24) -> Tensor:
    """How far a product that is added up in float32, in whatever order, and rounded once may be from the exact one.

    Each of n products and each of n additions errs by a unit of what has been added up at most, so does the scale.
    """
    steps = (x.shape[1] * 2 + 1) * unit
    total = x.double().abs() @ values.double().abs().T * scales.double().abs()
    facts = torch.finfo(x.dtype)
    return steps / (1 - steps) * total * (1 + facts.eps) + exact.abs() * facts.eps / 2 + facts.smallest_normal


@SOME
@given(st.integers(1, 64), st.integers(1, 80), INPUTS, KINDS, st.booleans(), st.integers(0, 99))
def test_random_rows(rows: int, outputs: int, inputs: int, dtype: torch.dtype, apart: bool, seed: int) -> None:
    x, values, scales = drawn(min(rows, kernels.MOST_ROWS[dtype]), outputs, inputs, seed)
    x = x.to(dtype)
    if apart:  # rows that do not lie together
        x = torch.cat([x, torch.full_like(x, torch.nan)], dim=1)[:, :inputs]
    ours = kernels.product(x, values, scales)
    assert ours.dtype == dtype and ours.is_contiguous() and ours.shape == (len(x), outputs)
    exact = x.double() @ values.double().T * scales.double()
    assert ((ours.double() - exact).abs() <= bound(x, values, scales, exact)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_weight_of_zeros(dtype: torch.dtype) -> None:
    x, values, scales = drawn(3, 20, 100, 0)
    scales[::2] = 0.0
    found = kernels.product(x.to(dtype), values, scales)
    assert not found[:, ::2].any() and found[:, 1::2].all()


def test_half_precision_holds_sums_beyond_its_range() -> None:
    """Only the scaled sum has to fit: PyTorch's operations would scale an infinity."""
    x, values = torch.full((1, 64), 64.0, dtype=torch.float16), torch.full((1, 64), 127, dtype=torch.int8)
    assert kernels.product(x, values, torch.tensor([1 / 128])).item() == 4064.0


# Rows that are rounded too


@SOME
@given(st.integers(1, 5), st.integers(1, 300), KINDS, st.sampled_from([1.0, 1e-4, 300.0]), st.integers(0, 99))
def test_rounded_rows(rows: int, inputs: int, dtype: torch.dtype, scale: float, seed: int) -> None:
    x = (drawn(rows, 1, inputs, seed)[0] * scale).to(dtype)
    x[0] = 0.0
    wide = torch.cat([x, torch.full_like(x, torch.nan)], dim=1)[:, :inputs]
    for given_so in (x, wide, x.t().contiguous().t()):
        assert torch.equal(fused.rounded(given_so), model_linear.rounded(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_long_rows_are_rounded_by_one_scale(dtype: torch.dtype) -> None:
    x = drawn(2, 1, 9000, 0)[0].to(dtype)
    x[0, 8999], x[1, 4] = 9.0, -7.0
    assert torch.equal(fused.rounded(x), model_linear.rounded(x))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_row_that_cannot_be_rounded_is_noticed(wrong: float) -> None:
    x, values, scales = drawn(3, 9, 70, 0)
    x[1, 3] = wrong
    found = kernels.product(fused.rounded(x), values, scales)
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()


# The model


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which kernels are launched where a GPU would launch them."""
    names: list[str] = []
    for module, name in ((kernels, "product"), (fused, "rounded")):
        ours = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, ours=ours, name=name: names.append(name) or ours(*args))
    monkeypatch.setattr(model_linear, "fuses", lambda x: True)
    monkeypatch.setattr(model_linear.native, "takes", lambda *tensors: False)
    return names


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("rows", "dtype"), [(1, torch.float32), (16, torch.float32), (64, torch.float16)])
def test_the_model_multiplies_few_rows_so(called: list[str], rows: int, dtype: torch.dtype, dynamic: bool) -> None:
    x, weight, _ = drawn(rows, 30, 80, 0)
    int8, x = Int8Weight(weight.float(), dynamic), x.to(dtype)
    plain = model_linear.expanded(model_linear.rounded(x) if dynamic else x, int8)
    with torch.inference_mode():
        ours = model_linear.linear(x, int8)
    assert called == (["rounded"] if dynamic else []) + ["product"]
    close = 1e-4 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(ours, plain, atol=close * 500, rtol=close)


def test_the_model_expands_weights_for_many_rows_and_elsewhere(
    called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, _ = drawn(65, 30, 80, 0)
    int8 = Int8Weight(weight.float())
    with torch.inference_mode():
        for many in (x[:17], x.half()):
            assert torch.equal(model_linear.linear(many, int8), model_linear.expanded(many, int8))
    monkeypatch.undo()
    assert not takes_natively(x.half())
    model_linear.linear(x[:1].half(), int8)
    assert not called


def test_rows_that_it_takes() -> None:
    for dtype, most in kernels.MOST_ROWS.items():
        taken = [rows for rows in range(most + 2) if kernels.takes(torch.empty(rows, 3, dtype=dtype))]
        assert taken == list(range(1, most + 1))
    assert not kernels.takes(torch.empty(1, 3, dtype=torch.float64))
