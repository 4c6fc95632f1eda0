"""int8 weights: what they stand for, what is computed with them, which model they are, and what they cost in loss."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2ds import DS2DSModel, Runtime
from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.errors import CheckpointError, ConfigError
from ds2ds.model.checkpoint import load_checkpoint, save_checkpoint
from ds2ds.model.int8_weight import Int8Weight
from ds2ds.model.linear import linear
from ds2ds.model.quantised import KINDS, is_quantised, quantise_weights
from ds2ds.model.weights_identity import digest, fingerprint
from ds2ds.native import operations as native
from ds2ds.native.invariance import batch_invariant

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "foldoc"))

from data import load_documents, make_pack, split
from evaluate import document_losses

SOME = settings(max_examples=40, deadline=None, derandomize=True)


def model(seed: int = 0, **changes: Any) -> DS2DSModel:
    torch.manual_seed(seed)
    shape = {"vocab_size": 61, "num_layers": 3, "model_dim": 48, "num_heads": 4, "max_seq_len": 64}
    return DS2DSModel.from_config(**{**shape, **changes})


def weights(outputs: int, inputs: int, seed: int) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def dequantised(int8: Int8Weight, dtype: torch.dtype) -> torch.Tensor:
    """The weight that this stands for, [outputs, inputs]."""
    return (int8.values.to(torch.float32) * int8.scales[:, None]).to(dtype)


# The weights


@SOME
@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 9))
def test_each_weight_is_within_half_a_step_and_each_output_has_its_own(outputs: int, inputs: int, seed: int) -> None:
    weight = weights(outputs, inputs, seed) * torch.logspace(-3, 3, outputs)[:, None]
    int8 = Int8Weight(weight)
    assert int8.values.dtype == torch.int8 and int8.shape == weight.shape
    torch.testing.assert_close(int8.scales, weight.abs().amax(1) / 127)
    assert ((dequantised(int8, torch.float32) - weight).abs() <= int8.scales[:, None] * 0.5001).all()
    assert (int8.values.abs().amax(1) == 127).all()


def test_zeros_stay_zeros_and_the_smallest_numbers_do_no_harm() -> None:
    assert torch.equal(dequantised(Int8Weight(torch.zeros(2, 3)), torch.float32), torch.zeros(2, 3))
    assert dequantised(Int8Weight(torch.full((2, 3), 1e-45)), torch.float32).isfinite().all()


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        Int8Weight(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(ValueError, match=r"at most 65536 bytes add up in 32 bits, got 65537 inputs"):
        Int8Weight(torch.zeros(1, 65537), dynamic=True)


def test_leading_dimensions_are_flattened() -> None:
    weight = weights(12, 8, 0)
    assert torch.equal(Int8Weight(weight.view(3, 4, 8)).values, Int8Weight(weight).values)


@SOME
@given(st.integers(1, 70), st.integers(1, 90))
def test_packing_loses_nothing(outputs: int, inputs: int) -> None:
    if not native.available():
        pytest.skip("there is no C compiler")
    int8 = Int8Weight(weights(outputs, inputs, 0))
    assert int8.packed is not None and int8.stored.numel() == -(-outputs // 16) * 16 * -(-inputs // 4) * 4
    values = int8.values
    assert values.shape == (outputs, inputs) and torch.equal(native.pack_int8(values, int8.scales).blocks, int8.stored)
    assert torch.equal(int8.packed.sums.view(-1)[:outputs], values.sum(1, dtype=torch.int32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "available", lambda: False)
        plain = Int8Weight(weights(outputs, inputs, 0))
    assert plain.packed is None and torch.equal(plain.stored, values)


def test_what_is_packed_stays_whole_when_it_is_copied_or_moved() -> None:
    int8, x = Int8Weight(weights(20, 30, 0)), weights(3, 30, 1)
    with torch.inference_mode():
        product = linear(x, int8)
    for made in (copy.deepcopy(int8), copy.deepcopy(int8).to(torch.bfloat16), copy.deepcopy(int8).double()):
        assert made.scales.dtype == torch.float32 and torch.equal(made.values, int8.values)
        if made.packed is not None:
            assert made.packed.blocks is made.stored and made.packed.scales is made.scales
        with torch.inference_mode():
            assert torch.equal(linear(x, made), product)
    away = copy.deepcopy(int8).to("meta")
    assert away.packed is None and away.stored.shape == (20, 30)


def test_what_was_saved_is_loaded_and_nothing_else() -> None:
    one, other, x = Int8Weight(weights(20, 30, 0)), Int8Weight(weights(20, 30, 1)), weights(3, 30, 1)
    with torch.inference_mode():
        product = linear(x, one)
    state = one.state_dict()
    assert list(state) == ["values", "scales"] and state["values"].shape == (20, 30)
    other.load_state_dict(state)
    state["values"].zero_()
    with torch.inference_mode():
        assert torch.equal(linear(x, other), product)
    with pytest.raises(
        RuntimeError, match=r"values must be int8 \[20, 30\] with a scale for each output, got .*\[5, 30\]"
    ):
        other.load_state_dict(Int8Weight(weights(5, 30, 1)).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({"values": state["values"]})
    with torch.inference_mode():
        assert torch.equal(linear(x, other), product)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**state, "sums": state["scales"]})


# Products with them


@SOME
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 150), st.booleans(), st.booleans())
def test_weight_only_products_are_those_of_the_dequantised_weight(
    rows: int, outputs: int, inputs: int, apart: bool, fall_back: bool
) -> None:
    int8, x = Int8Weight(weights(outputs, inputs, 1)), weights(rows, inputs, 2)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(), batch_invariant(apart):
        if fall_back:
            patch.setattr(native, "available", lambda: False)
        ours = linear(x, int8)
    exact = x.double() @ dequantised(int8, torch.float64).T
    torch.testing.assert_close(ours.double(), exact, atol=1e-4, rtol=1e-5)


@SOME
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 400), st.integers(-20, 20), st.booleans())
def test_weight_only_products_round_rows_to_what_a_float_has(
    rows: int, outputs: int, inputs: int, power: int, outlier: bool
) -> None:
    """Each number by at most two steps of 2^-23 of its row's largest; what floats would lose in adding up besides."""
    if not native.available():
        pytest.skip("there is no C compiler")
    int8, x = Int8Weight(weights(outputs, inputs, 1)), weights(rows, inputs, 2) * 10.0**power
    if outlier:
        x[:, inputs // 2] *= 1e4
    with torch.inference_mode():
        ours = linear(x, int8)
    weight = dequantised(int8, torch.float64)
    exact = x.double() @ weight.T
    step = x.double().abs().amax(1, keepdim=True) * 2.0**-23
    bound = step * weight.abs().sum(1) + 3 * torch.finfo(torch.float32).eps * exact.abs()
    assert ((ours.double() - exact).abs() <= bound).all()


def test_the_smallest_and_the_largest_rows() -> None:
    int8 = Int8Weight(torch.ones(3, 8))
    with torch.inference_mode():
        for dynamic in (False, True):
            int8.dynamic = dynamic
            for size in (0.0, 1e-45, 1e-38, 1e-31):
                assert linear(torch.full((2, 8), size), int8).abs().max() <= 8.1e-30
            torch.testing.assert_close(linear(torch.full((1, 8), 4e37), int8), torch.full((1, 3), 3.2e38))


@SOME
@given(st.integers(1, 20), st.integers(1, 70), st.integers(1, 150), st.booleans())
def test_dynamic_products_round_each_row_by_its_own_scale(
    rows: int, outputs: int, inputs: int, fall_back: bool
) -> None:
    int8 = Int8Weight(weights(outputs, inputs, 1), dynamic=True)
    x = weights(rows, inputs, 2) * torch.logspace(-4, 4, rows)[:, None]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        if fall_back:
            patch.setattr(native, "available", lambda: False)
        ours = linear(x, int8)
    scale = x.double().abs().amax(1, keepdim=True) / 127
    exact = (x.double() / scale).round() * scale @ dequantised(int8, torch.float64).T
    # A number halfway between two steps may go either way: one step of one input at most, in few of them.
    error = (ours.double() - exact).abs() / scale
    assert (error <= 1.001 * dequantised(int8, torch.float64).abs().amax(1) + 1e-3).all()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("at", [0, 37, 69])
def test_what_is_not_finite_shows_in_its_row_alone(dynamic: bool, wrong: float, at: int) -> None:
    x = weights(5, 70, 0)
    x[2, at] = wrong
    with torch.inference_mode():
        out = linear(x, Int8Weight(weights(9, 70, 1), dynamic))
    assert not out[2].isfinite().any()
    assert out[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_compute_the_same(dtype: torch.dtype) -> None:
    made = quantise_weights(model()).to(dtype)
    tokens = torch.arange(12)[None]
    assert made.loss_fn.weight.scales.dtype == torch.float32
    ours = made.forward_inference(tokens)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), quantise_weights(model()).forward_inference(tokens), atol=0.15, rtol=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_computes_the_same(kind: str, dtype: torch.dtype) -> None:
    made = quantise_weights(model(model_dim=64), kind)
    tokens = torch.arange(12)[None]
    on_cpu = made.forward_inference(tokens)
    ours = made.to(device="cuda", dtype=dtype).forward_inference(tokens).cpu().float()
    # Inputs that are rounded to a step, from bfloat16, often go to the next one.
    tolerance = 2e-2 if dtype == torch.float32 else {"int8": 0.15, "int8_dynamic": 0.25}[kind]
    torch.testing.assert_close(ours, on_cpu, atol=tolerance, rtol=tolerance)


# The model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_tying", [True, False])
def test_a_quantised_model_is_close_to_the_float_one(kind: str, weight_tying: bool) -> None:
    made = model(weight_tying=weight_tying)
    tokens = torch.arange(20)[None]
    before, embedding = made.forward_inference(tokens), made.embedding.weight.clone()
    assert quantise_weights(made, kind) is made and is_quantised(made)
    after = made.forward_inference(tokens)
    assert 1e-5 < (after - before).norm() / before.norm() < 0.05
    assert torch.equal(made.embedding.weight, embedding) and made.dtype == torch.float32
    assert sorted(name for name, _ in made.named_parameters()) == ["backbone.skip_weights", "embedding.weight"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_runtime_writes_what_the_full_pass_would(kind: str) -> None:
    made = quantise_weights(model(weight_tying=False), kind)
    prompt = [3, 1, 4, 1, 5]
    result = Runtime(made).generate(prompt_tokens=prompt, max_new_tokens=12, temperature=0.0, max_link_depth=0)
    tokens = list(result.root_document.tokens)
    logits = made.forward_inference(torch.tensor([tokens]))[0]
    for at in range(len(prompt), len(tokens)):
        assert logits[at - 1].max() - logits[at - 1, tokens[at]] < 1e-2


def test_kinds_and_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"weights must be one of \('int8', 'int8_dynamic'\).*got 'int3'"):
        quantise_weights(model(), "int3")
    made = quantise_weights(model())
    with pytest.raises(ConfigError, match="int8 already"):
        quantise_weights(made)


def test_an_error_leaves_the_model_as_it_was() -> None:
    made = model()
    with torch.no_grad():
        made.backbone.layers[2].mlp.Wdown.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        quantise_weights(made)
    assert not is_quantised(made) and set(made.state_dict()) == set(model().state_dict())


def test_quantised_weights_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="save the model before it is quantised"):
        save_checkpoint(quantise_weights(model()), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_the_identity_tells_kinds_apart_and_sees_changes() -> None:
    made = model()
    seen = {(fingerprint(made), digest(made))}
    for kind in KINDS:
        seen.add((fingerprint(quantised := quantise_weights(copy.deepcopy(made), kind)), digest(quantised)))
        assert digest(quantised) == digest(quantise_weights(copy.deepcopy(made), kind))
    assert len({one for one, _ in seen}) == len({one for _, one in seen}) == 3
    for name in ("stored", "scales"):
        before = fingerprint(quantised), digest(quantised)
        getattr(quantised.backbone.layers[1].attn.Wqkv, name)[3] += 1
        after = fingerprint(quantised), digest(quantised)
        assert before[0] != after[0] and before[1] != after[1]


def test_quantising_a_models_weights_forgets_what_the_float_ones_computed() -> None:
    made = model()
    runtime = Runtime(made)

    def write() -> int:
        return runtime.generate(prompt_tokens=list(range(20)), max_new_tokens=2, seed=0).trace.tokens_reused

    write()
    assert write() > 0
    quantise_weights(made)
    assert write() == 0


# The loss


@pytest.mark.parametrize("kind", KINDS)
def test_the_demo_models_perplexity_stays_within_half_a_percent(kind: str) -> None:
    """On a few held-out documents; bench/quantised.py takes more of them."""
    floats = load_checkpoint("demo", dtype=torch.float32)
    int8 = quantise_weights(copy.deepcopy(floats), kind)
    with DocumentCorpus("demo") as corpus:
        documents = load_documents(corpus)
    train, held_out = split(documents)
    known = {title: documents[title] for title in train}
    packs = [make_pack(documents[title], known, 256) for title in held_out[:4]]
    a, b = (torch.cat([document_losses(one, pack, True) for pack in packs]).mean() for one in (floats, int8))
    assert abs(math.expm1(float(b - a))) < 0.005
