"""x W^T for few rows equals torch's linear, whatever the number of rows, outputs and threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds.model.linear import FEW_ROWS, linear


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


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


@pytest.mark.parametrize("rows", [1, 3])
def test_gradients_flow(rows: int) -> None:
    x = torch.randn(rows, 8, requires_grad=True)
    weight = torch.randn(5, 8, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, weight.detach().sum(0).expand(rows, 8), atol=1e-6)
    assert weight.grad is not None and torch.allclose(weight.grad, x.detach().sum(0).expand(5, 8), atol=1e-6)
