"""Small operations in one launch, on a GPU, against PyTorch's own there; and that the model runs them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ds2ds.kernels import fused
from ds2ds.model import backbone, linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CLOSE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize(("rows", "width"), [(1, 768), (3, 1024), (300, 384)])
def test_they_do_what_the_plain_operations_do(
    rows: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, qkv = (torch.randn(rows, *shape, device="cuda").to(dtype) for shape in ((width,), (width,), (3, 4, 64)))
    up_gate = torch.randn(rows, 2 * width, device="cuda").to(dtype) * 3
    others, weights = x.roll(1), torch.tensor([3.0, 0.5], device="cuda").to(dtype)
    called = []
    for name in ("rms_norm", "add_norm", "gated_unit"):
        ours = getattr(fused, name)
        monkeypatch.setattr(fused, name, lambda *args, ours=ours, name=name: called.append(name) or ours(*args))
    with torch.inference_mode():
        found = [backbone.rms_norm(x), backbone.rms_norm(qkv[:, :2]), *backbone.add_norm(x, y)]
        for other in (others, None):
            found += backbone.add_norm(x, y, backbone.Skip(weights, 1, other))
        found.append(linear.gated_unit(up_gate))
    assert called == ["rms_norm", "rms_norm", *["add_norm"] * 3, "gated_unit"]
    up, gate = up_gate.chunk(2, dim=-1)
    expected = [F.rms_norm(x, (width,)), F.rms_norm(qkv[:, :2], (64,)), x + y, F.rms_norm(x + y, (width,))]
    for other in (others, x + y):
        total = torch.addcmul(x + y, weights[1], other)
        expected += [total, F.rms_norm(total, (width,))]
    expected.append(up * F.silu(gate))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.contiguous(), atol=CLOSE[dtype], rtol=CLOSE[dtype])
