"""The backbone in compiled code: the numbers of its modules, and out of their way where somebody looks into them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds import DS2DSModel, Runtime
from ds2ds.model.backbone import GLU
from ds2ds.model.compiled_backbone import CompiledBackbone, compiled_backbone
from ds2ds.model.quantised import quantise_weights
from ds2ds.native import operations as native
from ds2ds.native.backbone import backbone_rows
from ds2ds.native.operations import RowReads

pytestmark = pytest.mark.skipif(not native.available(), reason="there is no C compiler")

WEIGHTS = [None, "int8", "int8_dynamic"]


def made(layers: int = 3, heads: int = 2, head_dim: int = 16, weights: str | None = None) -> DS2DSModel:
    torch.manual_seed(layers)
    model = DS2DSModel.from_config(
        vocab_size=61, num_layers=layers, model_dim=heads * head_dim, num_heads=heads, max_seq_len=64
    )
    with torch.no_grad():
        model.backbone.skip_weights.copy_(torch.rand(layers // 2) * 2 - 1)
    return quantise_weights(model, weights) if weights else model


def some_reads(model: DS2DSModel, sizes: list[int], slots: int, generator: torch.Generator) -> RowReads:
    """Chunks of so many rows, which write the last slots and read of them what is before, and some of those before."""
    chunks, reads = [], []
    row = 0

    def some(most: int) -> int:
        return int(torch.randint(0, most, (1,), generator=generator))

    for rows in sizes:
        first, slot = len(reads), slots - sum(sizes) + row
        reads.append([0, rows, slot, slot + 1, 1, some(64 - rows)])
        for _ in range(some(3)):
            start = some(slots - sum(sizes))
            stop, at = start + 1 + some(slots - sum(sizes) - start), some(rows)
            reads.append([at, 1 + some(rows - at), start, stop, 0, some(64 - rows)])
        chunks.append([row, rows, slot, first, len(reads)])
        row += rows
    return RowReads(torch.tensor(chunks), torch.tensor(reads), model.rotary.cos, model.rotary.sin)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from([4, 16, 20, 64]),
    st.lists(st.sampled_from([1, 1, 1, 2, 5, 20]), min_size=1, max_size=5),
    st.integers(0, 2**31),
    st.integers(1, 3),
)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_it_computes_what_the_modules_do(
    weights: str | None, layers: int, heads: int, head_dim: int, sizes: list[int], seed: int, threads: int
) -> None:
    model, generator = made(layers, heads, head_dim, weights), torch.Generator().manual_seed(seed)
    slots, before, rows = 140, torch.get_num_threads(), sum(sizes)
    arena = torch.randn(layers, 2, heads, slots, head_dim, generator=generator)
    arenas = arena, arena.clone()
    reads = some_reads(model, sizes, slots, generator)
    x, scale = torch.randn(rows, heads * head_dim, generator=generator), head_dim**-0.5

    def attend(layer: int, qk: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return native.attend_rows(qk, v, reads, arenas[1][layer], scale)

    compiled = compiled_backbone(model.backbone)
    assert compiled is not None
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            expected = model.backbone(x, attend)
            ours = backbone_rows(x.clone(), compiled.table, compiled.skips, reads, arenas[0], scale)
    finally:
        torch.set_num_threads(before)
    # Rounded to 8 bits, a row may fall on another side of a step.
    tolerance = 0.1 if weights == "int8_dynamic" else 2e-4
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(arenas[0], arenas[1], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_rows_bits_do_not_depend_on_the_others(weights: str | None) -> None:
    model, generator = made(weights=weights), torch.Generator().manual_seed(0)
    compiled = compiled_backbone(model.backbone)
    assert compiled is not None
    arena = torch.randn(3, 2, 2, 40, 16, generator=generator)
    reads = some_reads(model, [1] * 9, 40, generator)
    x = torch.randn(9, 32, generator=generator)
    with torch.inference_mode():
        together = backbone_rows(x.clone(), compiled.table, compiled.skips, reads, arena.clone(), 0.25)
        for row in range(9):
            _, _, slot, first, last = reads.chunks[row].tolist()
            chunk = torch.tensor([[0, 1, slot, 0, last - first]])
            one = RowReads(chunk, reads.reads[first:last].contiguous(), reads.cos, reads.sin)
            alone = backbone_rows(x[row : row + 1].clone(), compiled.table, compiled.skips, one, arena.clone(), 0.25)
            assert torch.equal(alone[0], together[row])


def test_queries_keys_and_values_may_lie_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    reads = some_reads(made(), [1, 5], 40, generator)
    both = torch.randn(6, 3, 2, 16, generator=generator)
    strided = both.mT.contiguous().mT
    found = []
    for qkv in (both, strided):
        for copied in (False, True):
            qk, v = (part.contiguous() if copied else part for part in (qkv[:, :2], qkv[:, 2]))
            arena = torch.ones(2, 2, 40, 16)
            with torch.inference_mode():
                found.append((native.attend_rows(qk, v, reads, arena, 0.25), arena))
    for read, arena in found[1:]:
        assert torch.equal(read, found[0][0]) and torch.equal(arena, found[0][1])


def test_rows_of_zeros_stay_zeros() -> None:
    """And are not divided by the root of nothing: neither the stream's, nor queries' and keys'."""
    model = made()
    compiled = compiled_backbone(model.backbone)
    assert compiled is not None
    arena, reads = torch.zeros(3, 2, 2, 40, 16), some_reads(model, [1, 20], 40, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out = backbone_rows(torch.zeros(21, 32), compiled.table, compiled.skips, reads, arena, 0.25)
    assert (out == 0).all() and (arena == 0).all()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("layers", "rows"), [(1, 1), (6, 64), (6, 3)])
def test_the_room_that_it_is_given_suffices(
    weights: str | None, layers: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it writes beyond is nobody's, most of the time, and would be noticed at some other."""
    model = made(layers, weights=weights)
    compiled = compiled_backbone(model.backbone)
    assert compiled is not None
    arena, reads = torch.zeros(layers, 2, 2, 140, 16), some_reads(model, [1] * rows, 140, torch.Generator())
    rooms, empty = [], torch.empty

    def guarded(size: int, **options: Any) -> torch.Tensor:
        rooms.append((size, torch.full((size + 2**16,), 165, **options)))
        return rooms[-1][1][:size]

    x = torch.randn(rows, 32)
    monkeypatch.setattr(torch, "empty", lambda size, **options: (guarded if size else empty)(size, **options))
    with torch.inference_mode():
        backbone_rows(x, compiled.table, compiled.skips, reads, arena, 0.25)
    ((size, whole),) = rooms
    assert (whole[size:] == 165).all() and (whole[:size] != 165).any()


# Where it stands in


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call to compiled code."""
    seen: list[int] = []
    plain = CompiledBackbone.forward

    def counted(self: CompiledBackbone, x: torch.Tensor, attend: Any) -> torch.Tensor | None:
        done = plain(self, x, attend)
        if done is not None:
            seen.append(len(x))
        return done

    monkeypatch.setattr(CompiledBackbone, "forward", counted)
    return seen


def write(runtime: Runtime, requests: int = 1, tokens: int = 3) -> list[list[int]]:
    prompts = [[1 + at % 50, 2, 3] for at in range(requests)]
    results = runtime.generate_batch(prompts, max_new_tokens=tokens, temperature=0.0, max_link_depth=0, eos_token_id=61)
    return [result.root_document.tokens[3:] for result in results]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_all_steps_take_it(calls: list[int], weights: str | None) -> None:
    runtime = Runtime(made(weights=weights), document_store=False, max_running=200, arena_tokens=2**15)
    write(runtime, 150)
    assert calls[0] == 256 and sum(calls) == 150 * (3 + 2)


@pytest.mark.parametrize("pre", [False, True])
def test_hooks_are_called(calls: list[int], pre: bool) -> None:
    model = made()
    runtime, seen = Runtime(model, document_store=False), []
    plain = write(runtime)
    layer = model.backbone.layers[1]
    register = layer.register_forward_pre_hook if pre else layer.register_forward_hook
    handle = register(lambda *_: seen.append(1))
    calls.clear()
    assert write(runtime) == plain
    assert len(seen) == 3 and calls == []
    handle.remove()
    assert write(runtime) == plain
    assert len(seen) == 3 and calls == [3, 1, 1]


def test_modules_of_others_are_called(calls: list[int]) -> None:
    class Twice(GLU):
        def forward(self, normed: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(normed)

    model = made()
    runtime = Runtime(model, document_store=False)
    plain = write(runtime, tokens=12)
    model.backbone.layers[1].mlp.__class__ = Twice
    calls.clear()
    assert write(runtime, tokens=12) != plain and calls == []
    model.backbone.layers[1].mlp.__class__ = GLU
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert compiled_backbone(model.backbone) is None
    finally:
        handle.remove()
    assert compiled_backbone(model.backbone) is not None


def test_weights_that_change_between_requests_are_seen() -> None:
    model, other = made(), made(layers=3)
    runtime = Runtime(model, document_store=False)
    before = write(runtime, tokens=12)
    with torch.no_grad():
        for layer in other.backbone.layers:
            layer.mlp.Wdown.weight.mul_(-3)
        model.backbone.layers[1] = other.backbone.layers[1]
        model.backbone.layers[2].attn.Wqkv = torch.nn.Parameter(-model.backbone.layers[2].attn.Wqkv)
    after = write(runtime, tokens=12)
    assert after != before and after == write(Runtime(model, document_store=False), tokens=12)


def test_a_forward_of_a_module_of_its_own_is_called(calls: list[int]) -> None:
    """As libraries that offload or quantise put one there."""
    model = made()
    runtime, seen = Runtime(model, document_store=False), []
    plain = write(runtime)
    mlp = model.backbone.layers[1].mlp
    mlp.forward = lambda normed: seen.append(1) or GLU.forward(mlp, normed)
    calls.clear()
    assert write(runtime) == plain and len(seen) == 3 and calls == []
    del mlp.forward
    assert compiled_backbone(model.backbone) is not None


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_that_change_within_a_request_stay_in_memory(weights: str | None) -> None:
    model = made(weights=weights)
    compiled = compiled_backbone(model.backbone)
    assert compiled is not None
    x, reads = torch.randn(3, 32), some_reads(model, [1, 2], 40, torch.Generator().manual_seed(0))

    def run() -> torch.Tensor:
        arena = torch.ones(3, 2, 2, 40, 16)
        return backbone_rows(x.clone(), compiled.table, compiled.skips, reads, arena, 0.25)

    with torch.inference_mode():
        before = run()
    model.double()
    new = [torch.full((n,), 3, dtype=torch.int8) for n in range(64, 2**15, 64)]  # takes what memory was given back
    with torch.inference_mode():
        assert torch.equal(run(), before) and len(new) > 0


CHANGES = ["double", "quantised and double", "one double", "strided", "a strided layer", "strided skips", "fewer skips"]


@pytest.mark.parametrize("change", [*CHANGES, "wider", "unpacked", "without"])
def test_what_it_cannot_do_with_is_left_to_the_modules(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(weights="int8" if change in ("quantised and double", "unpacked") else None)
    if "double" in change:
        (model.backbone.layers[1].mlp if change == "one double" else model).double()
    elif change == "a strided layer":
        # The last of three: of the two before it all fits, as far as shapes tell.
        attn, mlp = model.backbone.layers[2].attn, model.backbone.layers[2].mlp
        for weight in (attn.Wqkv, attn.Wout.weight, mlp.Wup_gate.weight, mlp.Wdown.weight):
            weight.data = weight.data.mT.contiguous().mT
    elif change == "fewer skips":
        model.backbone.skip_weights = torch.nn.Parameter(torch.ones(0))
    elif change == "unpacked":
        model.backbone.layers[1].mlp.Wdown.weight.packed = None
    elif change == "strided":
        weight = model.backbone.layers[0].mlp.Wdown.weight
        weight.data = weight.data.t().contiguous().t()
    elif change == "strided skips":
        model = made(layers=4)
        model.backbone.skip_weights = torch.nn.Parameter(torch.ones(2, 2)[:, 0])
    elif change == "wider":
        mlp = model.backbone.layers[1].mlp
        mlp.Wup_gate, mlp.Wdown = (torch.nn.Linear(*shape, bias=False) for shape in ((32, 512), (256, 32)))
    else:
        monkeypatch.setattr(native, "available", lambda: False)
    assert compiled_backbone(model.backbone) is None


def test_attention_that_is_not_compiled_is_left_to_the_modules() -> None:
    compiled = compiled_backbone(made().backbone)
    assert compiled is not None
    x = torch.randn(2, 32)
    before = x.clone()
    assert compiled.forward(x, lambda layer, qk, v: v) is None and torch.equal(x, before)
