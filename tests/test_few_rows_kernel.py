"""Products of few rows with what stands before and after them, interpreted, against PyTorch's operations in float64.

The interpreter has no products in bfloat16: those are in test_few_rows_kernel_gpu.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ds2ds.kernels import few_rows as kernels

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="compiled there: test_few_rows_kernel_gpu.py"),
    pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning"),
]
SOME = settings(max_examples=60, deadline=None, derandomize=True)
KINDS = st.sampled_from([torch.float32, torch.float16])
INPUTS = st.one_of(st.integers(1, 300), st.sampled_from([256, 512, 768]))
CLOSE = {torch.float32: 1e-5, torch.float16: 4e-3}
"""Of results around 1: sums of 768 products in float32, and four roundings of float16."""


@pytest.fixture(autouse=True)
def few_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that weights of few outputs get the programs of many: from 16 on of four warps, from 64 on of 64 outputs."""
    monkeypatch.setattr(kernels, "_MULTIPROCESSORS", 1)


def drawn(dice: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=dice).to(dtype)


def wide(given: Any) -> Any:
    """The same in float64, for `plain_product`."""
    if isinstance(given, Tensor):
        return given if given.dtype == torch.int8 else given.double()
    return tuple(map(wide, given)) if isinstance(given, tuple) else given


@st.composite
def products(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Rows, a weight, and options of `product`."""
    dtype = draw(KINDS)
    rows = draw(st.integers(1, 40 if dtype == torch.float16 else 9))
    outputs, inputs, gated = draw(st.integers(1, 70)), draw(INPUTS), draw(st.booleans())
    dice = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = drawn(dice, rows, inputs, dtype=dtype)
    if draw(st.booleans()):  # rows that do not lie together
        x = torch.cat([x, torch.full_like(x, torch.nan)], dim=1)[:, :inputs]
    options: dict[str, Any] = {"gated": gated, "norm": draw(st.booleans())}
    all_outputs = outputs * (2 if gated else 1)
    if draw(st.booleans()):
        weight = torch.randint(-127, 128, (all_outputs, inputs), generator=dice, dtype=torch.int8)
        options["scales"] = torch.rand(all_outputs, generator=dice) / 127 * inputs**-0.5
    else:
        weight = drawn(dice, all_outputs, inputs, dtype=dtype) * inputs**-0.5
    if draw(st.booleans()):
        options["add"] = drawn(dice, rows, outputs, dtype=dtype)
    other = drawn(dice, rows, outputs, dtype=dtype) if draw(st.booleans()) else None
    if draw(st.booleans()):
        options["skip"] = (drawn(dice, 3, dtype=dtype), draw(st.integers(0, 2)), other)
    return x, weight, options


@SOME
@given(products())
def test_random_products(case: tuple[Tensor, Tensor, dict[str, Any]]) -> None:
    x, weight, options = case
    ours = kernels.product(x, weight, **options)
    exact = kernels.plain_product(wide(x), wide(weight), **{name: wide(value) for name, value in options.items()})
    assert ours.dtype == x.dtype and ours.is_contiguous() and ours.shape == exact.shape
    assert ((ours.double() - exact).abs() <= CLOSE[x.dtype] * (1 + exact.abs())).all()


@SOME
@given(products())
def test_one_operation_after_the_other_rounds_alike(case: tuple[Tensor, Tensor, dict[str, Any]]) -> None:
    x, weight, options = case
    torch.testing.assert_close(
        kernels.product(x, weight, **options),
        kernels.plain_product(x, weight, **options),
        atol=CLOSE[x.dtype],
        rtol=CLOSE[x.dtype],
    )


@SOME
@given(st.integers(1, 40), st.integers(1, 80), INPUTS, KINDS, st.integers(0, 99))
def test_whole_numbers_are_exact(rows: int, outputs: int, inputs: int, dtype: torch.dtype, seed: int) -> None:
    """Not one product is missing, or there twice."""
    dice = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 2, (min(rows, kernels.MOST_ROWS[dtype]), inputs), generator=dice).to(dtype)
    weight = torch.randint(-1, 2, (outputs, inputs), generator=dice).to(dtype)
    add, other = (torch.randint(-9, 10, (len(x), outputs), generator=dice).to(dtype) for _ in range(2))
    product = x.double() @ weight.double().T
    assert torch.equal(kernels.product(x, weight).double(), product)
    skip = (torch.tensor([0.0, 2.0]).to(dtype), 1, other)
    exact = product + add + 2 * other.double()
    assert torch.equal(kernels.product(x, weight, add=add, skip=skip).double(), exact)
    itself = kernels.product(x, weight, add=add, skip=(*skip[:2], None))
    assert torch.equal(itself.double(), 3 * (product + add))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [0, 6, 12])
def test_what_is_not_finite_stays_in_its_row(dtype: torch.dtype, wrong: float, row: int) -> None:
    dice = torch.Generator().manual_seed(0)
    x, weight = drawn(dice, 13, 300, dtype=dtype), drawn(dice, 42, 300, dtype=dtype)
    options: dict[str, Any] = {"norm": True, "gated": True, "add": drawn(dice, 13, 21, dtype=dtype)}
    expected = kernels.product(x, weight, **options)
    x[row, -1] = wrong
    found = kernels.product(x, weight, **options)
    assert found[row].isnan().all()
    others = [other for other in range(13) if other != row]
    assert torch.equal(found[others], expected[others])


def test_rows_do_not_depend_on_each_other() -> None:
    dice = torch.Generator().manual_seed(0)
    x, weight = drawn(dice, 16, 300, dtype=torch.float32), drawn(dice, 42, 300, dtype=torch.float32)
    alone = torch.cat([kernels.product(row, weight, norm=True, gated=True) for row in x.split(1)])
    for rows in (2, 3, 7, 16):
        assert torch.equal(kernels.product(x[:rows], weight, norm=True, gated=True), alone[:rows])


@pytest.mark.parametrize("rows", [1, 9, 16, 17, 33, 64])
@pytest.mark.parametrize("shape", [(768, 768), (768, 2048), (2304, 768), (1024, 2816), (50257, 1280), (5, 7)])
@pytest.mark.parametrize("weight_bytes", [1, 2])
def test_how_inputs_are_dealt_out_follows_from_the_weight_alone(
    rows: int, shape: tuple[int, int], weight_bytes: int
) -> None:
    kernel, one, options = kernels.way(torch.bfloat16, weight_bytes, 1, *shape)
    way = kernels.way(torch.bfloat16, weight_bytes, rows, *shape)
    assert way.kernel is kernel and way.constants | {"ROWS": one["ROWS"]} == one
    assert way.options["num_warps"] == options["num_warps"] == one["WARPS"]


def test_few_outputs_still_fill_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    shapes = ((768, 768), (768, 2048), (2304, 768), (2048, 768), (1024, 1024), (50257, 768))
    ways = [kernels.way(torch.bfloat16, 2, 1, *shape).constants for shape in shapes]
    assert [(way["OUTPUTS"], way["WARPS"]) for way in ways] == [(8, 8), (8, 8), (8, 4), (8, 8), (8, 8), (64, 4)]
    assert all(outputs / way["OUTPUTS"] >= 96 for (outputs, _), way in zip(shapes, ways, strict=True))
