"""Kernels whose launches overlap: the same bits, and no kernel touches what the one before it may still be at.

What a GPU would show only now and then, `tests/ptx` looks for in every access of every thread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from decode_reference import sample_on_device, use_plain_kernels
from ptx.device import Device
from ptx.kernel import Kernel
from scripted import TOKENIZER, Texts, finish, is_clean, small_model
from test_decode_graph import start
from test_ptx_kernels import sample
from torch import Tensor

from ds2ds import ConfigError, Runtime
from ds2ds.cache.arena import KVArena
from ds2ds.cache.document_store import DocumentStore
from ds2ds.engine.decode_graph import forward, graphs
from ds2ds.engine.decode_graph.decoder import Decoder
from ds2ds.engine.decode_graph.graphs import Bucket, Graphs
from ds2ds.kernels import decode_attention, decode_tables, few_rows
from ds2ds.kernels.overlap import launch_options, overlapping

HEADS, WIDTH, SLOTS = 2, 64, 300
DIM, HIDDEN = HEADS * WIDTH, 256
KERNELS = ["dot", "_read", "_merge", "dot", "dot", "dot"]

Change = Callable[[str, Kernel], Kernel]


class Layer:
    """A decoder layer of random weights, an arena with something in it, and two rows that read it."""

    def __init__(self, dtype: torch.dtype, quantised: bool) -> None:
        self.dice = torch.Generator().manual_seed(1)
        self.dtype, self.quantised = dtype, quantised
        self.x, self.pushed = self.random(2, DIM), self.random(2, DIM)
        shapes = {"qkv": (3 * DIM, DIM), "out": (DIM, DIM), "up_gate": (2 * HIDDEN, DIM), "down": (DIM, HIDDEN)}
        self.weights = {name: self.weight(*shape) for name, shape in shapes.items()}
        self.data = F.rms_norm(torch.randn(2, HEADS, SLOTS, WIDTH, generator=self.dice), (WIDTH,)).to(dtype)
        angles = torch.rand(SLOTS, WIDTH // 2, generator=self.dice)
        self.cos, self.sin = torch.cat([angles.cos()] * 2, dim=1), torch.cat([angles.sin(), -angles.sin()], dim=1)
        # A row that reads its own document and another, one of a long document, and a part that is not there.
        parts = [[0, 5, 0, 6], [0, 80, 10, 90], [0, 0, 0, 0], [1, 199, 100, 128], [1, 199, 228, 72]]
        self.parts = torch.tensor(parts, dtype=torch.int32)
        self.slot, self.first, self.count = (torch.tensor(one, dtype=torch.int32) for one in ([5, 299], [0, 3], [2, 2]))

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.dice).to(self.dtype)

    def weight(self, outputs: int, inputs: int) -> tuple[Tensor, Tensor | None]:
        if not self.quantised:
            return self.random(outputs, inputs) * inputs**-0.5, None
        values = torch.randint(-127, 128, (outputs, inputs), generator=self.dice, dtype=torch.int8)
        return values, torch.rand(outputs, generator=self.dice) / 127 * inputs**-0.5

    def run(self, device: Device) -> tuple[Tensor, Tensor]:
        """What the layer makes of the rows, and the arena after it."""
        data, weights = self.data.clone(), self.weights
        with device.runs(few_rows, "dot", "sums"), device.runs(decode_attention, "_store", "_read", "_merge"):
            qkv = few_rows.product(self.x, *weights["qkv"], norm=True).view(2, 3, HEADS, WIDTH)
            tables = self.cos, self.sin, self.slot, self.parts, self.first, self.count
            read = decode_attention.store_and_read(data, qkv[:, :2], qkv[:, 2], *tables, norm=True)
            x = few_rows.product(read.view(2, DIM), *weights["out"], add=self.x)
            hidden = few_rows.product(x, *weights["up_gate"], norm=True, gated=True)
            skip = (torch.full((3,), 0.5, dtype=self.dtype), 1, self.pushed)
            return few_rows.product(hidden, *weights["down"], add=x, skip=skip), data


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantised", [False, True])
def test_a_layer_is_the_same_bit_by_bit(dtype: torch.dtype, quantised: bool) -> None:
    layer, apart, beside = Layer(dtype, quantised), Device(90, 1, bundles=2), Device(90, 2, bundles=2)
    expected = layer.run(apart)
    with overlapping():
        ours = layer.run(beside)
    assert not apart.findings and not beside.findings
    product = "sums" if dtype == torch.float32 else "dot"
    assert [name for name, _ in beside.results] == [name.replace("dot", product) for name in KERNELS]
    assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))


@pytest.mark.parametrize("outputs", [40, 41])
@pytest.mark.parametrize("inputs", [128, 200])
@pytest.mark.parametrize("gated", [False, True])
def test_all_of_a_weight_is_asked_for_and_nothing_else(gated: bool, inputs: int, outputs: int) -> None:
    """Once, by the programs that read it, in multiples of 16 bytes, of which these rows are."""
    x, weight = torch.ones(1, inputs).bfloat16(), torch.ones(outputs * (1 + gated), inputs).bfloat16()
    device = Device(90, together=1, bundles=1)
    with overlapping(), device.runs(few_rows, "dot"):
        few_rows.product(x, weight, norm=True, gated=gated)
    assert not device.findings
    whole = device.fetched.pop(weight.untyped_storage().data_ptr())
    assert (whole == 1).all()
    assert not any(fetched.any() for fetched in device.fetched.values())


def test_what_fills_no_16_bytes_is_not_asked_for() -> None:
    x, weight = torch.ones(1, 3).bfloat16(), torch.ones(9, 3).bfloat16()
    device = Device(90, together=1, bundles=1)
    with overlapping(), device.runs(few_rows, "dot"):
        out = few_rows.product(x, weight)
    assert not device.findings and (out == 3).all()
    # 48 bytes of the first eight outputs; of the last one 6, which are part of 16 that a product reads by itself.
    assert device.fetched[weight.untyped_storage().data_ptr()].tolist() == [1] * 48 + [0] * 6


def test_what_starts_within_16_bytes_is_asked_for_with_what_is_before_it() -> None:
    """A program's eight outputs of int8 are 24 bytes here."""
    x, weight, scales = torch.ones(1, 3).bfloat16(), torch.ones(24, 3, dtype=torch.int8), torch.ones(24)
    device = Device(90, together=1, bundles=1)
    with overlapping(), device.runs(few_rows, "dot"):
        out = few_rows.product(x, weight, scales)
    assert not device.findings and (out == 3).all()
    assert device.fetched[weight.untyped_storage().data_ptr()].tolist() == [1] * 64 + [0] * 8


ALL = {
    decode_tables: ("_edit", "_lay_out", "_advance"),
    few_rows: ("dot", "sums"),
    decode_attention: ("_store", "_read", "_merge"),
}


def without(kernel: str, pattern: str) -> Change:
    return lambda name, code: Kernel(code.code.without(pattern)) if name == kernel else code


@pytest.mark.parametrize("kernel", ["dot", "_read", "_merge"])
def test_a_kernel_that_does_not_wait_is_found_out(kernel: str) -> None:
    device = Device(90, change=without(kernel, r"^griddepcontrol\.wait"), bundles=1)
    with overlapping():
        Layer(torch.bfloat16, False).run(device)
    found = {finding for finding in device.findings if finding.startswith(f"{kernel}: ")}
    for what in (
        "a thread has not waited",
        "the next kernel is let go",
        "writes ahead of the end of the kernel before",
        "loads, without waiting for its end, what the kernel before writes",
    ):
        assert any(what in finding for finding in found), what
    assert len(found) == len(set(device.findings))


ROWS = [{"temperature": 0.0}, {"top_k": 7}, {"top_p": 0.9}, {"top_k": 40, "top_p": 0.9, "min_p": 0.01}, {}]
SAMPLING = ["scan", "choose", "draw", "finish", "_advance"]


def draw(device: Device) -> list[Tensor]:
    """A token for each of some rows, and tables moved on by it."""
    logits = torch.randn(len(ROWS), 700, generator=torch.Generator().manual_seed(1)) * 3
    tables = decode_tables.DecodeTables.make(16, 4, 700, "cpu")
    tables.column("slot", len(ROWS)).fill_(3)
    out = sample(device, logits, [row | {"seed": 3} for row in ROWS])
    with device.runs(decode_tables, "_advance"):
        decode_tables.advance(tables, len(ROWS), *out, penalised=True)
    return [*out, *tables.state]


def test_sampling_is_the_same_bit_by_bit() -> None:
    apart, beside = Device(90, 1, bundles=2), Device(90, 2, bundles=2)
    expected = draw(apart)
    with overlapping():
        ours = draw(beside)
    assert not apart.findings and not beside.findings
    assert [name for name, _ in beside.results] == SAMPLING
    assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))


@pytest.mark.parametrize("kernel", SAMPLING)
def test_a_kernel_of_sampling_that_does_not_wait_is_found_out(kernel: str) -> None:
    device = Device(90, change=without(kernel, r"^griddepcontrol\.wait"), bundles=1)
    with overlapping():
        draw(device)
    found = {finding.partition(": ")[0] for finding in device.findings}
    assert found == {kernel}


def test_keys_that_the_kernel_before_stores_are_not_read_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """`store_rows` before `read_parts`, which does not take part."""
    layer = Layer(torch.bfloat16, False)
    qk, v = layer.random(2, 2, HEADS, WIDTH), layer.random(2, HEADS, WIDTH)
    position = torch.tensor([5, 199], dtype=torch.int32)

    def decode() -> list[str]:
        device = Device(90, bundles=1)
        with overlapping(), device.runs(decode_attention, "_store", "_read", "_merge"):
            decode_attention.store_rows(layer.data, qk, v, layer.cos, layer.sin, position, layer.slot)
            tables = layer.cos, layer.sin, layer.parts, layer.first, layer.count
            decode_attention.read_parts(layer.data, qk, *tables)
        return device.findings

    assert not decode()
    with monkeypatch.context() as patch:
        patch.setattr(decode_attention, "launch_options", lambda possible=True: launch_options())
        assert any("loads, without waiting for its end" in finding for finding in decode())


def test_only_what_is_asked_to_overlaps() -> None:
    assert launch_options() == {"OVERLAP": False}
    with overlapping():
        assert launch_options() == {"OVERLAP": True, "launch_pdl": True}
        assert launch_options(possible=False) == {"OVERLAP": False}
        with overlapping(False):
            assert launch_options() == {"OVERLAP": False}
    assert launch_options() == {"OVERLAP": False}


@pytest.mark.parametrize("rows", [4, 8])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_overlaps_if_it_is_to_from_the_embedding_on(
    overlap: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_plain_kernels(monkeypatch)
    monkeypatch.setattr(graphs, "can_overlap", lambda device: True)
    seen: dict[str, set[bool]] = {}

    def watch(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*args: Any, **options: Any) -> Any:
            seen.setdefault(name, set()).add(launch_options()["OVERLAP"])
            return real(*args, **options)

        monkeypatch.setattr(module, name, call)

    watch(forward.few_rows, "product")
    for name in ("lay_out", "store_and_read", "sample_on_device", "advance"):
        watch(graphs, name)
    store = DocumentStore(KVArena(2, 2, 16, 64))
    decoder = Decoder(small_model(), store, 8, part=4, capture=False, few_rows=4, overlap=overlap)
    decoder.graphs.compute(Bucket(rows, 4, False))
    after = ["store_and_read", "sample_on_device", "advance", *(["product"] if rows == 4 else [])]
    assert seen == {"lay_out": {False}, **{name: {overlap} for name in after}}


def test_where_launches_cannot_overlap_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"compute capability 9\.0 or later, got cpu"):
        Graphs(small_model(), KVArena(2, 2, 16, 64), None, 4, capture=False, overlap=True)  # type: ignore[arg-type]


def test_whole_steps_of_requests_that_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel, but for sampling's, beside the one before it: nothing is amiss, and no bit differs."""
    monkeypatch.setattr(graphs, "can_overlap", lambda device: True)
    monkeypatch.setattr(graphs, "sample_on_device", sample_on_device)

    def serve(overlap: bool) -> tuple[list[Any], Device]:
        runtime = Runtime(copy.deepcopy(small_model()).bfloat16(), TOKENIZER, "null", arena_tokens=2048, max_running=2)
        engine, corpus = runtime.engine, Texts({"B": "about B"})
        engine.decoder = Decoder(runtime.model, engine.store, 2, part=32, capture=False, overlap=overlap)
        running = [start(runtime, "see [b](B) ", corpus, max_new_tokens=2, temperature=1.0, top_p=0.9)]
        running.append(start(runtime, "p", corpus, max_new_tokens=3, temperature=0.0))
        device = Device(90, seed=overlap, bundles=1)
        with ExitStack() as stack:
            for module, names in ALL.items():
                stack.enter_context(device.runs(module, *names))
            finish(runtime, *running)
        assert is_clean(runtime)
        return [one.result().root_document for one in running], device

    (beside, watched), (apart, _) = serve(True), serve(False)
    assert not watched.findings
    assert sum(name in KERNELS for name, _ in watched.results) >= 3 * 2 * len(KERNELS)
    for one, other in zip(beside, apart, strict=True):
        assert list(one.tokens) == list(other.tokens)
        np.testing.assert_array_equal(one.token_logprobs, other.token_logprobs)
