"""Kernels as they are compiled for GPUs, thread by thread, against the same references as interpreted.

`tests/ptx` says what it looks for: accesses that conflict, out of bounds, of what nothing has written.
"""

from __future__ import annotations

import decode_reference
import pytest
import torch
import torch.nn.functional as F
from ptx.device import Device
from ptx.kernel import Kernel
from test_compaction_kernel import Moves, filled, out_of_place, same_bytes
from test_sampling_kernel import INF, columns

from ds2ds.kernels import SampleOutput, compaction_triton, decode_attention, few_rows, fused, sample_rows
from ds2ds.kernels.sampling import launch
from ds2ds.kernels.sampling.launch import SIZES, Sizes

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU here")

MOVES: list[Moves] = [[(1, 0, 299)], [(4, 0, 100), (130, 100, 70), (220, 171, 25)], [(30 + i, i, 1) for i in range(9)]]


def compact(device: Device, arena: torch.Tensor, moves: Moves) -> bool:
    expected = out_of_place(arena, moves)
    with device.runs(compaction_triton, "_move_chunks"):
        compaction_triton.compact(arena, moves)
    return same_bytes(arena, expected)


@pytest.mark.parametrize(
    ("row", "gap", "capability"),
    [(256, 0, 90), (80, 0, 80), (32, 0, 90), (40, 8, 90), (12, 4, 80), (10, 2, 90), (5, 1, 80)],
)
def test_compaction(row: int, gap: int, capability: int) -> None:
    """Rows of all units, in tiles of all widths; addresses that are multiples of no more."""
    for seed, moves in enumerate(MOVES):
        memory = filled((gap + 2 * 300 * row,), torch.int8)
        before = memory.clone()
        device = Device(capability, seed, together=1 + seed)
        assert compact(device, memory[gap:].view(2, 300, row), moves)
        assert not device.findings
        assert torch.equal(memory[:gap], before[:gap])


@pytest.mark.parametrize("row", [256, 5])
def test_compaction_without_its_barrier_is_found_out(row: int) -> None:
    """In five orders of warps, as one may happen to have all loads before any store."""

    def change(name: str, kernel: Kernel) -> Kernel:
        return Kernel(kernel.code.without(r"^bar\.sync"))

    findings = []
    for seed in range(5):
        device = Device(90, seed, change=change)
        compact(device, filled((1, 300, row), torch.int8), MOVES[0])
        findings += device.findings
    assert any("loads what another stores" in finding for finding in findings)
    assert any("stores what another touches" in finding for finding in findings)


SMALL = Sizes(
    tile=256, group=16, capacity=128, chunk=256, pool=128, sample=128, pairs=32, scan_warps=2, draw_warps=2, row_warps=4
)
"""Several tiles, groups and chunks of a short row, and more candidates than its buffer holds; of few warps."""
ROWS: list[dict] = [
    {"temperature": 0.0},
    {"top_k": 7},
    {"top_k": 40, "top_p": 0.9},
    {"top_k": 200, "top_p": 0.5, "min_p": 0.01},
    {"top_p": 0.9},
    {"top_p": 0.99, "temperature": 0.7},
    {"min_p": 0.05},
    {},
]
LOGITS = {
    "random": torch.randn(700, generator=torch.Generator().manual_seed(1)) * 3,
    "ties": (torch.randn(700, generator=torch.Generator().manual_seed(2)) * 4).round() / 4,
    "equal": torch.zeros(700),
    "few": torch.tensor([0.0 if i in range(300, 310) else -31.0 for i in range(700)]),
    "holes": torch.tensor([-INF if (i // 16) % 2 else 0.01 * i for i in range(700)]),
}


def sample(device: Device, logits: torch.Tensor, rows: list[dict], sizes: Sizes = SMALL) -> SampleOutput:
    given = columns(rows)
    settings = tuple(given[name] for name in ("temperature", "top_k", "top_p", "min_p", "seed", "position"))
    penalty = (given["repetition_penalty"], given["penalty_tokens"]) if "penalty_tokens" in given else None
    with device.runs(launch, "mark", "scan", "choose", "draw", "finish"):
        return launch.sample_on_device(logits, settings, penalty, sizes)


def assert_sampled(device: Device, logits: torch.Tensor, rows: list[dict], sizes: Sizes = SMALL) -> None:
    out, expected = sample(device, logits, rows, sizes), sample_rows(logits, **columns(rows), backend="torch")
    assert not device.findings
    assert out.status.tolist() == expected.status.tolist()
    assert out.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(out.logprobs, expected.logprobs, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", LOGITS)
def test_sampling(name: str) -> None:
    rows = [row | {"seed": 3, "position": i} for i, row in enumerate(ROWS)]
    assert_sampled(Device(90, len(name), together=3), LOGITS[name].repeat(len(rows), 1), rows)


def test_sampling_with_a_penalty() -> None:
    rows = [row | {"repetition_penalty": 1.3, "listed": [i, 5, 5, 699]} for i, row in enumerate(ROWS)]
    assert_sampled(Device(80, 7), LOGITS["ties"].repeat(len(rows), 1).bfloat16(), rows)


def test_sampling_in_its_real_sizes() -> None:
    logits = torch.randn(4, 5003, generator=torch.Generator().manual_seed(3))[:, :5000] * 3
    logits[2, 77] = INF
    assert_sampled(Device(90, 1, bundles=4), logits, [ROWS[2], ROWS[4], ROWS[4], ROWS[7]], SIZES)


class Enough(Exception):
    """The launches that follow are of no interest."""


def test_every_barrier_of_scan_is_needed() -> None:
    """Taken out one at a time: what then conflicts is found."""
    rows = [{"top_k": 7}, {"top_p": 0.9}, {"top_p": 0.9, "temperature": 0.7}, {"temperature": 0.0}]
    logits = LOGITS["random"].repeat(len(rows), 1)
    found: list[bool] = []

    def change(name: str, kernel: Kernel) -> Kernel:
        if name == "choose":
            raise Enough
        return Kernel(kernel.code.without(r"^bar\.sync", len(found)))

    with pytest.raises(IndexError):  # there are no more
        while True:
            device = Device(90, len(found), change=change)
            with pytest.raises(Enough):
                sample(device, logits, rows)
            found.append(bool(device.findings))
    assert len(found) > 10 and all(found)


@pytest.mark.parametrize("width", [16, 64, 100, 768])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_norm(dtype: torch.dtype, width: int) -> None:
    """One bit of a sum once hung on which of a warp's threads was the last to store it, where each has one number."""
    dice = torch.Generator().manual_seed(width)
    x, y, other = (torch.randn(2, width, generator=dice).to(dtype) * 3 for _ in range(3))
    for skip in (None, (torch.ones(2, dtype=dtype) / 3, 1, other)):
        device = Device(90, width)
        with device.runs(fused, "_add_norm"):
            total, normed = fused.add_norm(x, y, skip)
        plain = x + y if skip is None else torch.addcmul(x + y, skip[0][1], other)
        assert not device.findings
        close = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(total, plain, atol=close, rtol=close)
        torch.testing.assert_close(normed, F.rms_norm(plain, (width,)), atol=close, rtol=close)


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "gated", "quantised"),
    [(3, 40, 256, False, False), (2, 24, 512, True, True), (17, 70, 200, False, True), (9, 64, 256, True, False)],
)
def test_products_of_few_rows(rows: int, outputs: int, inputs: int, gated: bool, quantised: bool) -> None:
    """In bfloat16, which the interpreter has no products in."""
    dice = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=dice).bfloat16()
    all_outputs = outputs * (2 if gated else 1)
    weight, scales = torch.randn(all_outputs, inputs, generator=dice).bfloat16() * inputs**-0.5, None
    if quantised:
        weight = torch.randint(-127, 128, (all_outputs, inputs), generator=dice, dtype=torch.int8)
        scales = torch.rand(all_outputs, generator=dice) / 127 * inputs**-0.5
    add = None if gated else torch.randn(rows, outputs, generator=dice).bfloat16()
    device = Device(80 if rows == 17 else 90, rows)
    with device.runs(few_rows, "dot"):
        ours = few_rows.product(x, weight, scales, norm=gated, gated=gated, add=add)
    wide = (None if one is None else one.double() for one in (x, weight, scales, add))
    x, weight, scales, add = wide
    exact = few_rows.plain_product(x, weight, scales, norm=gated, gated=gated, add=add)
    assert not device.findings
    assert ((ours.double() - exact).abs() <= 2e-2 * (1 + exact.abs())).all()


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize(("outputs", "gated"), [(8, False), (16, True), (16, False), (64, False)])
def test_products_pass_shared_memory_at_its_full_speed(
    outputs: int, gated: bool, quantised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In programs of all sizes, from the first copy to the sums of all warps; int8 weights, as they are copied. An
    eighth of it would be less than what memory gives.
    """
    monkeypatch.setattr(few_rows, "_MULTIPROCESSORS", 1)
    all_outputs = outputs * (1 + gated)
    x, weight = torch.ones(1, 256).bfloat16(), torch.ones(all_outputs, 256).bfloat16()
    weight, scales = (weight.to(torch.int8), torch.ones(all_outputs)) if quantised else (weight, None)
    device = Device(90, together=1, bundles=1)
    with device.runs(few_rows, "dot"):
        few_rows.product(x, weight, scales, norm=True, gated=gated)
    shared = device.results[0][1].traffic["shared"]
    assert all(one.units == one.least for one in shared if not quantised or "cp.async" in one.text)


@pytest.mark.parametrize(("at_once", "norm"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float32, 64), (torch.bfloat16, 64), (torch.float32, 4), (torch.bfloat16, 8)]
)
def test_decode_attention(dtype: torch.dtype, width: int, at_once: bool, norm: bool) -> None:
    """Two rows of three, of parts that are full, short and not there; heads that once kept too few threads busy."""
    heads, slots = 2, 300
    dice = torch.Generator().manual_seed(1)
    data = F.rms_norm(torch.randn(2, heads, slots, width, generator=dice), (width,)).to(dtype)
    qk, v = (torch.randn(3, *shape, width, generator=dice).to(dtype) for shape in ((2, heads), (heads,)))
    angles = torch.rand(slots, width // 2, generator=dice)
    cos, sin = torch.cat([angles.cos()] * 2, dim=1), torch.cat([angles.sin(), -angles.sin()], dim=1)
    position, slot = (torch.tensor(one, dtype=torch.int32) for one in ([5, 40, 299], [3, -1, 299]))
    parts = torch.tensor([[0, 5, 0, 4], [0, 250, 100, 128], [1, 0, 0, 0], [2, 299, 172, 128]], dtype=torch.int32)
    first, count = (torch.tensor(one, dtype=torch.int32) for one in ([0, 2, 3], [2, 0, 1]))
    tables = parts, first, count
    normed, expected = F.rms_norm(qk, (width,)) if norm else qk, data.clone()
    decode_reference.store_rows(expected, normed, v, cos, sin, position, slot)
    device = Device(90, 5)
    with device.runs(decode_attention, "_store", "_read", "_merge"):
        if at_once:
            ours = decode_attention.store_and_read(data, qk, v, cos, sin, slot, *tables, norm=norm)
        else:
            decode_attention.store_rows(data, qk, v, cos, sin, position, slot)
            ours = decode_attention.read_parts(data, qk, cos, sin, *tables)
    theirs = decode_reference.read_parts(data, normed, cos, sin, *tables, 128)
    assert not device.findings
    close = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(data, expected, atol=close, rtol=close)
    torch.testing.assert_close(ours, theirs, atol=close, rtol=close)
