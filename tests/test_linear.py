"""x W^T for few rows equals torch's linear, whatever the number of rows, outputs and threads; the gated unit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.model.linear import FEW_ROWS, gated_unit, linear
from ds2ds.native import operations as native
from ds2ds.native.invariance import batch_invariant

pytestmark = pytest.mark.usefixtures("threads_as_before")


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.integers(1, FEW_ROWS + 4),
    st.integers(1, 70),
    st.integers(1, 40),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_equals_torch_linear(rows: int, outputs: int, inputs: int, threads: int, dtype: torch.dtype) -> None:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(rows * outputs + inputs)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    with torch.inference_mode():
        result = linear(x, weight)
    assert result.shape == (rows, outputs) and result.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.2}[dtype]
    torch.testing.assert_close(result, F.linear(x, weight), atol=tolerance, rtol=tolerance)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, FEW_ROWS + 4), st.integers(1, 70), st.integers(1, 40), st.booleans())
def test_without_compiled_code_it_is_the_same_to_rounding(rows: int, outputs: int, inputs: int, apart: bool) -> None:
    generator = torch.Generator().manual_seed(rows * outputs + inputs)
    x, weight = (torch.randn(n, inputs, generator=generator) for n in (rows, outputs))
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(), batch_invariant(apart):
        patch.setattr(native, "available", lambda: False)
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("fall_back", [False, True])
def test_rows_apart_are_the_same_bits_alone_and_among_others(
    threads: int, fall_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(threads)
    if fall_back:
        monkeypatch.setattr(native, "available", lambda: False)
    x, weight = torch.randn(41, 77), torch.randn(3, 15, 77)
    with torch.inference_mode(), batch_invariant():
        alone = torch.cat([linear(row, weight) for row in x.split(1)])
        for rows in (2, 5, 16, 17, 41):
            assert torch.equal(linear(x[:rows], weight), alone[:rows])
            assert torch.equal(linear(x[-rows:], weight), alone[-rows:])


@pytest.mark.skipif(not native.available(), reason="there is no C compiler")
@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 200), st.integers(0, 199), st.integers(1, 70), st.integers(1, 100), st.integers(1, 4))
def test_compiled_a_row_has_the_same_bits_in_any_batch(
    rows: int, row: int, outputs: int, inputs: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(rows * outputs + inputs)
    x, weight = (torch.randn(n, inputs, generator=generator) for n in (rows, outputs))
    with torch.inference_mode():
        alone = linear(x[row % rows][None], weight)
        assert torch.equal(linear(x, weight)[row % rows], alone[0])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 70), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_the_gated_unit(rows: int, width: int, dtype: torch.dtype) -> None:
    x = (torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(rows)) * 9).to(dtype)
    up, gate = x.double().chunk(2, dim=1)
    with torch.inference_mode():
        ours = gated_unit(x)
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 0.02}[dtype]
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), up * gate * gate.sigmoid(), atol=tolerance, rtol=tolerance)


def test_the_gated_unit_of_extremes() -> None:
    gates = torch.tensor([-1e30, -200, -90, 0, 90, 200, 1e30, torch.nan])
    with torch.inference_mode():
        out = gated_unit(torch.cat([torch.ones(8), gates])[None])[0]
    assert out[-1].isnan()
    torch.testing.assert_close(out[2:7], torch.tensor([0.0, 0, 90, 200, 1e30]), atol=1e-30, rtol=1e-6)
    assert (out[:2].abs() < 1e-5).all()


@pytest.mark.skipif(not native.available(), reason="there is no C compiler")
def test_exponentials_are_within_two_units_in_the_last_place() -> None:
    """1 + e^x is e^x there, but for the rounding; the quotient is rounded once more."""
    gate = -torch.linspace(17, 86.9, 200_000)
    with torch.inference_mode():
        out = gated_unit(torch.cat([torch.ones_like(gate), gate])[None])[0]
    exact = gate.double() / (1 + (-gate.double()).exp())
    assert (out.double() / exact - 1).abs().max() < 2 * 2**-23


@pytest.mark.parametrize("rows", [1, 3])
def test_gradients_flow(rows: int) -> None:
    x = torch.randn(rows, 8, requires_grad=True)
    weight = torch.randn(5, 8, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, weight.detach().sum(0).expand(rows, 8), atol=1e-6)
    assert weight.grad is not None and torch.allclose(weight.grad, x.detach().sum(0).expand(5, 8), atol=1e-6)
