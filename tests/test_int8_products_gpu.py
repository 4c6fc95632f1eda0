"""Few rows times int8 weights on a GPU: against float64, row by row to the bit, and captured."""

from __future__ import annotations

import pytest
import torch
from test_int8_products import bound, drawn
from torch import Tensor

from ds2ds.kernels import few_rows as kernels
from ds2ds.kernels import fused
from ds2ds.model import linear as model_linear
from ds2ds.model.int8_weight import LARGEST, Int8Weight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KINDS = [torch.float32, torch.bfloat16, torch.float16]
# All sizes of programs; inputs that are dealt out evenly, with a rest, and that are no multiple of 16. Each size is
# compiled, so other dtypes than bfloat16 have fewer.
SHAPES = [(768, 768), (77, 1030), (768, 2048), (2304, 768), (10_001, 512), (2200, 600)]
CASES = [(torch.bfloat16, shape) for shape in SHAPES]
CASES += [(dtype, shape) for dtype in (torch.float32, torch.float16) for shape in SHAPES[:2]]
ROWS = (1, 2, 7, 8, 9, 16, 17, 33, 64)


def on_gpu(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x, values, scales = drawn(rows, outputs, inputs, rows)
    return x.cuda().to(dtype), values.cuda(), scales.cuda()


def rows_for(dtype: torch.dtype) -> list[int]:
    return [rows for rows in ROWS if rows <= kernels.MOST_ROWS[dtype]]


@pytest.mark.parametrize(("dtype", "shape"), CASES)
def test_random_rows(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    for rows in rows_for(dtype):
        x, values, scales = on_gpu(rows, *shape, dtype)
        wide = torch.cat([x, torch.full_like(x, torch.nan)], dim=1)[:, : shape[1]]
        exact = x.double() @ values.double().T * scales.double()
        # Tensor cores cut off where they add.
        most = bound(x, values, scales, exact, unit=2.0**-22)
        for given_so in (x, wide):
            assert ((kernels.product(given_so, values, scales).double() - exact).abs() <= most).all()


@pytest.mark.parametrize(("dtype", "shape"), CASES)
def test_whole_numbers_are_exact(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    for rows in rows_for(dtype):
        x, values, scales = on_gpu(rows, *shape, dtype)
        x, scales = x.round().clamp(-3, 3), torch.full_like(scales, 2.0**-8)
        exact = (x.double() @ values.double().T * 2.0**-8).to(dtype)
        assert torch.equal(kernels.product(x, values, scales), exact)


@pytest.mark.parametrize(("dtype", "shape"), CASES)
def test_a_row_is_the_same_bits_alone_and_among_others(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    most = kernels.MOST_ROWS[dtype]
    x, values, scales = on_gpu(most, *shape, dtype)
    alone = torch.cat([kernels.product(row, values, scales) for row in x.split(1)])
    for rows in rows_for(dtype):
        assert torch.equal(kernels.product(x[:rows], values, scales), alone[:rows])
        assert torch.equal(kernels.product(x[-rows:], values, scales), alone[-rows:])


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(dtype: torch.dtype, wrong: float) -> None:
    x, values, scales = on_gpu(13, 900, 300, dtype)
    values[:, -1] = 5
    expected = kernels.product(x, values, scales)
    x[6, -1] = wrong
    found = kernels.product(x, values, scales)
    assert not found[6].isfinite().any()
    assert torch.equal(found[:6], expected[:6]) and torch.equal(found[7:], expected[7:])


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("inputs", [7, 768, 9000])
def test_rounded_rows(dtype: torch.dtype, inputs: int) -> None:
    x = on_gpu(5, 1, inputs, dtype)[0] * 3
    x[2] = 0.0
    scales = (x.float().cpu().abs().amax(-1, keepdim=True) / LARGEST).to(dtype)
    steps = (x.float().cpu() / scales.float().clamp_min(torch.finfo(dtype).tiny)).to(dtype).float().round()
    assert torch.equal(fused.rounded(x).cpu(), (steps * scales.float()).to(dtype))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", KINDS)
def test_the_model_multiplies_few_rows_so_captured_too(
    dtype: torch.dtype, dynamic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    ours = kernels.product
    monkeypatch.setattr(kernels, "product", lambda *args: called.append(len(args[0])) or ours(*args))
    int8 = Int8Weight(torch.randn(768, 768), dynamic).cuda()
    x = torch.zeros(4, 768, device="cuda", dtype=dtype)
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            model_linear.linear(x, int8)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model_linear.linear(x, int8)
        for _ in range(3):
            x.normal_()
            graph.replay()
            assert torch.equal(captured, model_linear.linear(x, int8))
            plain = model_linear.expanded(model_linear.rounded(x) if dynamic else x, int8)
            # A number halfway between two steps may go either way, as PyTorch divides by a multiplication.
            close = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}[dtype]
            off = (captured.double() - plain.double()).norm() / plain.double().norm()
            assert off < (close if not dynamic else 2e-2)
        assert called == [4] * 5
        many = torch.randn(65, 768, device="cuda", dtype=dtype)
        model_linear.linear(many, int8)
    assert called == [4] * 5
