"""Products of few rows on a GPU, in bfloat16 too: against PyTorch's operations, and in CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_few_rows_kernel import wide

from ds2ds.kernels import few_rows as kernels
from ds2ds.kernels.fused import Skip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CLOSE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}
SHAPES = [(768, 768), (2304, 768), (768, 2048), (50257, 768), (50, 100)]


def case(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype, int8: bool, gated: bool = False
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    torch.manual_seed(0)
    x = torch.randn(rows, inputs, device="cuda").to(dtype)
    number = outputs * (2 if gated else 1)
    if int8:
        weight = torch.randint(-127, 128, (number, inputs), device="cuda", dtype=torch.int8)
        return x, weight, {"scales": torch.rand(number, device="cuda") / 127 * inputs**-0.5}
    return x, (torch.randn(number, inputs, device="cuda") * inputs**-0.5).to(dtype), {}


def assert_close(x: torch.Tensor, weight: torch.Tensor, **options: Any) -> None:
    ours = kernels.product(x, weight, **options)
    exact = kernels.plain_product(wide(x), wide(weight), **{name: wide(value) for name, value in options.items()})
    wrong = (ours.double() - exact).abs() / (1 + exact.abs())
    assert not ours.isnan().any() and wrong.max() <= CLOSE[x.dtype], (x.shape, weight.shape, wrong.max().item())


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape: tuple[int, int], dtype: torch.dtype, int8: bool) -> None:
    for rows in (1, 3, 16, kernels.MOST_ROWS[dtype]):
        x, weight, scales = case(rows, *shape, dtype, int8)
        assert_close(x, weight, **scales)
        # Rows of another tensor, side by side with what is not to be read.
        assert_close(torch.cat([x, torch.full_like(x, torch.nan)], dim=1)[:, : x.shape[1]], weight, **scales)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", list(CLOSE))
def test_what_stands_before_and_after(dtype: torch.dtype, int8: bool) -> None:
    for rows in (1, 5, 16):
        x, weight, scales = case(rows, 2048, 768, dtype, int8, gated=True)
        assert_close(x, weight, norm=True, gated=True, **scales)
        x, weight, scales = case(rows, 768, 2048, dtype, int8)
        add, other = (torch.randn(rows, 768, device="cuda").to(dtype) for _ in range(2))
        weights = torch.tensor([9.0, 0.5, -2.0], device="cuda").to(dtype)
        skips: list[Skip | None] = [None, (weights, 1, other), (weights, 2, None)]
        for skip in skips:
            assert_close(x, weight, add=add, skip=skip, **scales)


@pytest.mark.parametrize("dtype", list(CLOSE))
def test_rows_do_not_depend_on_each_other(dtype: torch.dtype) -> None:
    x, weight, _ = case(16, 768, 768, dtype, False)
    alone = torch.cat([kernels.product(row, weight, norm=True) for row in x.split(1)])
    for rows in (2, 3, 9, 16):
        assert torch.equal(kernels.product(x[:rows], weight, norm=True), alone[:rows]), rows
    x[3, -1] = torch.nan
    found = kernels.product(x, weight, norm=True)
    others = [row for row in range(16) if row != 3]
    assert found[3].isnan().all() and torch.equal(found[others], alone[others])


def test_captured_and_replayed() -> None:
    x, weight, _ = case(4, 2048, 768, torch.bfloat16, False, gated=True)
    expected = kernels.product(x, weight, norm=True, gated=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.product(x, weight, norm=True, gated=True)
    out.fill_(torch.nan)
    graph.replay()
    assert torch.equal(out, expected)
    x.neg_()
    graph.replay()
    assert torch.equal(out, kernels.product(x, weight, norm=True, gated=True))
