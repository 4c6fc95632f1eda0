"""The model: its configuration, its state dict, and the full pass against a computation with nothing but loops."""

from __future__ import annotations

import cmath
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ds2ds.attention.masks import MASKS
from ds2ds.documents.spans import DocSpan, SpanGrant
from ds2ds.errors import ConfigError, Ds2dsError
from ds2ds.model.backbone import rms_norm
from ds2ds.model.config import ModelConfig
from ds2ds.model.ds2ds_model import DS2DSModel

SMALL: dict[str, Any] = {"vocab_size": 11, "num_layers": 2, "model_dim": 16, "num_heads": 2, "max_seq_len": 32}
SPANS = [DocSpan("t", 0, 3), DocSpan("d", 3, 8, (SpanGrant(2, 0),))]


def model(seed: int = 0, **settings: Any) -> DS2DSModel:
    """Random weights that no two layers share; the skip weights too."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made = DS2DSModel.from_config(**{**SMALL, **settings})
        made.backbone.skip_weights.uniform_(0.5, 1.5)
    return made


def tokens(batch: int = 1, length: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(0, SMALL["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


# Configuration.


@pytest.mark.parametrize(
    ("model_dim", "mlp_dim"), [(4, 128), (48, 128), (64, 256), (128, 384), (256, 768), (384, 1024), (768, 2048)]
)
def test_the_glu_is_as_wide_as_the_training_codes(model_dim: int, mlp_dim: int) -> None:
    config = ModelConfig(vocab_size=5, num_layers=1, model_dim=model_dim, num_heads=1)
    assert config.mlp_dim == mlp_dim
    assert mlp_dim % 128 == 0
    assert mlp_dim - 128 < int(8 / 3 * model_dim) <= mlp_dim


def test_a_config_survives_its_dictionary() -> None:
    config = ModelConfig(**SMALL, mask_type="causal", weight_tying=False, layout_policy="bos_eos", tokenizer="mine")
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.head_dim == 8


def test_defaults() -> None:
    config = ModelConfig(vocab_size=5, num_layers=1, model_dim=4, num_heads=1)
    assert (config.max_seq_len, config.mask_type, config.weight_tying) == (2048, "cross_doc_link", True)
    assert (config.layout_policy, config.tokenizer) == ("null", "gpt2")


@pytest.mark.parametrize("field", ["vocab_size", "num_layers", "model_dim", "num_heads", "max_seq_len"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", None, True], ids=repr)
def test_a_size_that_is_no_positive_integer_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} must be a positive integer, got {value!r}$"):
        ModelConfig(**{**SMALL, field: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_dim": 18}, r"model_dim must be num_heads times a multiple of 4, got 18 and 2 heads"),
        ({"model_dim": 20}, r"got 20 and 2 heads"),
        ({"num_heads": 3}, r"got 16 and 3 heads"),
        ({"mask_type": "diagonal"}, r"mask_type must be one of \[.*'doc_causal'.*\], got 'diagonal'"),
        ({"layout_policy": "title"}, r"layout_policy must be one of .*'identifier_prefix'.*, got 'title'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        ModelConfig(**{**SMALL, **settings})
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, Ds2dsError)


def test_unknown_and_missing_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown model settings \['depth', 'heads'\]; known are"):
        ModelConfig.from_dict({**SMALL, "heads": 1, "depth": 2})
    with pytest.raises(ConfigError, match=r"missing model settings \['num_layers', 'num_heads'\]"):
        ModelConfig.from_dict({"vocab_size": 5, "model_dim": 8})


def test_a_model_takes_a_config_or_its_fields_but_not_both() -> None:
    config = ModelConfig(**SMALL)
    assert DS2DSModel.from_config(config).config == DS2DSModel.from_config(**SMALL).config == config
    with pytest.raises(ValueError, match=r"not both \(got \['num_layers'\] too\)"):
        DS2DSModel.from_config(config, num_layers=3)
    with pytest.raises(ConfigError, match="missing model settings"):
        DS2DSModel.from_config()


# State dict.


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The keys that checkpoints of the training code have (DESIGN 5), with their shapes."""
    dim = config.model_dim
    hidden = math.ceil(int(8 / 3 * dim) / 128) * 128
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.weight": (config.vocab_size, dim),
        "backbone.skip_weights": (config.num_layers // 2,),
        "loss_fn.weight": (config.vocab_size, dim),
    }
    for i in range(config.num_layers):
        shapes[f"backbone.layers.{i}.attn.Wqkv"] = (3, dim, dim)
        shapes[f"backbone.layers.{i}.attn.Wout.weight"] = (dim, dim)
        shapes[f"backbone.layers.{i}.mlp.Wup_gate.weight"] = (2 * hidden, dim)
        shapes[f"backbone.layers.{i}.mlp.Wdown.weight"] = (dim, hidden)
    return shapes


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
@pytest.mark.parametrize("weight_tying", [True, False])
def test_state_dict_keys_and_shapes(num_layers: int, weight_tying: bool) -> None:
    made = model(num_layers=num_layers, weight_tying=weight_tying)
    assert {name: tuple(t.shape) for name, t in made.state_dict().items()} == expected_shapes(made.config)
    assert all(t.dtype == torch.float32 for t in made.state_dict().values())


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not() -> None:
    tied, untied = model(), model(weight_tying=False)
    assert tied.loss_fn.weight is tied.embedding.weight
    assert untied.loss_fn.weight is not untied.embedding.weight
    assert not torch.equal(untied.loss_fn.weight, untied.embedding.weight)
    count = sum(p.numel() for p in tied.parameters())
    assert sum(p.numel() for p in untied.parameters()) == count + 11 * 16


def test_random_weights_are_finite_scaled_and_follow_the_seed() -> None:
    made = model(5, model_dim=64)
    assert torch.equal(made.embedding.weight, model(5, model_dim=64).embedding.weight)
    assert not torch.equal(made.embedding.weight, model(6, model_dim=64).embedding.weight)
    for name, weight in made.state_dict().items():
        if weight.dim() > 1:
            assert weight.std() * weight.shape[-1] ** 0.5 == pytest.approx(1, abs=0.1), name
    assert DS2DSModel.from_config(**SMALL).backbone.skip_weights.tolist() == [1.0]
    assert not made.training


# The full pass, from DESIGN 5's paragraph, in Python numbers.

Vector = list[float]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def times(matrix: list[Vector], x: Vector) -> Vector:
    return [dot(row, x) for row in matrix]


def plus(a: Vector, b: Vector, weight: float = 1.0) -> Vector:
    return [x + weight * y for x, y in zip(a, b, strict=True)]


def normed(x: Vector) -> Vector:
    root = math.sqrt(dot(x, x) / len(x))
    return [value / root for value in x]


def turned(x: Vector, position: int) -> Vector:
    """Half-split pairs; (1/1024)^linspace(0, 1, hd/4), then hd/4 zeros."""
    half, quarter = len(x) // 2, len(x) // 4
    pairs = []
    for i in range(half):
        step = i / (quarter - 1) if quarter > 1 else 0.0
        frequency = (1 / 1024) ** step if i < quarter else 0.0
        c, s = math.cos(position * frequency), math.sin(position * frequency)
        pairs.append((x[i] * c + x[i + half] * s, -x[i] * s + x[i + half] * c))
    return [first for first, _ in pairs] + [second for _, second in pairs]


def naive_logits(made: DS2DSModel, ids: list[int], mask: list[list[bool]]) -> list[Vector]:
    weights: dict[str, Any] = {name: t.detach().double().tolist() for name, t in made.state_dict().items()}
    layers, heads = made.config.num_layers, made.config.num_heads
    head_dim = made.config.model_dim // heads
    stream = [weights["embedding.weight"][token] for token in ids]
    pushed: list[list[Vector]] = []
    for layer in range(layers):
        name = f"backbone.layers.{layer}."
        if layer >= layers // 2 and pushed:
            skip = weights["backbone.skip_weights"][layer - layers // 2]
            stream = [plus(x, other, skip) for x, other in zip(stream, pushed.pop(), strict=True)]
        queries, keys, values = ([times(matrix, normed(x)) for x in stream] for matrix in weights[name + "attn.Wqkv"])
        read: list[Vector] = [[] for _ in ids]
        for head in range(heads):
            own = slice(head * head_dim, (head + 1) * head_dim)
            q = [turned(normed(x[own]), position) for position, x in enumerate(queries)]
            k = [turned(normed(x[own]), position) for position, x in enumerate(keys)]
            for t in range(len(ids)):
                visible = [s for s in range(len(ids)) if mask[t][s]]
                exps = [math.exp(dot(q[t], k[s]) / math.sqrt(head_dim)) for s in visible]
                read[t] += [
                    sum(e * values[s][i] for e, s in zip(exps, visible, strict=True)) / sum(exps)
                    for i in range(own.start, own.stop)
                ]
        stream = [plus(x, times(weights[name + "attn.Wout.weight"], y)) for x, y in zip(stream, read, strict=True)]
        for t, x in enumerate(stream):
            both = times(weights[name + "mlp.Wup_gate.weight"], normed(x))
            up, gate = both[: len(both) // 2], both[len(both) // 2 :]
            inner = [u * g / (1 + math.exp(-g)) for u, g in zip(up, gate, strict=True)]
            stream[t] = plus(x, times(weights[name + "mlp.Wdown.weight"], inner))
        if layer < layers // 2:
            pushed.append(list(stream))
    return [times(weights["loss_fn.weight"], normed(x)) for x in stream]


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("weight_tying", [True, False])
def test_the_full_pass_equals_the_naive_one(num_layers: int, weight_tying: bool) -> None:
    made = model(num_layers, num_layers=num_layers, weight_tying=weight_tying, max_seq_len=8)
    ids = tokens(seed=num_layers)
    expected = naive_logits(made, ids[0].tolist(), MASKS["cross_doc_link"](8, SPANS).tolist())
    logits = made.double().forward_inference(ids, SPANS)
    assert logits.shape == (1, 8, 11)
    # The rotary tables are float32.
    torch.testing.assert_close(logits[0], torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask_type", sorted(MASKS))
def test_every_mask_type_in_float32(mask_type: str) -> None:
    made = model(3, mask_type=mask_type)
    ids = tokens()
    expected = naive_logits(made, ids[0].tolist(), MASKS[mask_type](8, SPANS).tolist())
    torch.testing.assert_close(made.forward_inference(ids, SPANS)[0], torch.tensor(expected), atol=1e-4, rtol=0)


def test_rms_norm_by_hand() -> None:
    torch.testing.assert_close(rms_norm(torch.tensor([3.0, 4.0])), torch.tensor([3.0, 4.0]) / math.sqrt(12.5))
    assert rms_norm(torch.zeros(4)).tolist() == [0.0] * 4


# Spans and batches.


def test_without_spans_each_row_is_one_document() -> None:
    made, ids = model(), tokens(2)
    logits = made.forward_inference(ids)
    assert torch.equal(logits, made.forward_inference(ids, [DocSpan("", 0, 8)]))
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    after = made.forward_inference(changed)
    assert torch.equal(after[:, :5], logits[:, :5])
    assert not torch.equal(after[:, 5:], logits[:, 5:])


def test_rows_of_a_batch_are_computed_apart() -> None:
    made, ids = model(), tokens(3)
    other = [DocSpan("a", 0, 6), DocSpan("b", 6, 8)]
    batched = made.forward_inference(ids, [SPANS, other, SPANS])
    for row, spans in enumerate([SPANS, other, SPANS]):
        alone = made.forward_inference(ids[row : row + 1], spans)
        torch.testing.assert_close(batched[row], alone[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(made.forward_inference(ids[row : row + 1], [spans]), alone)
    assert not torch.allclose(batched[1], made.forward_inference(ids[1:2], SPANS)[0], atol=1e-3)


def test_one_list_of_spans_serves_every_row() -> None:
    made, ids = model(), tokens(3)
    torch.testing.assert_close(made.forward_inference(ids, SPANS), made.forward_inference(ids, [SPANS] * 3))


def test_a_grant_lets_later_tokens_read_the_target() -> None:
    made, ids = model(), tokens()
    apart = [dataclasses.replace(span, grants=()) for span in SPANS]
    linked, unlinked = made.forward_inference(ids, SPANS)[0], made.forward_inference(ids, apart)[0]
    # The grant's position is 2, in a document that starts at 3.
    assert torch.equal(linked[:5], unlinked[:5])
    assert (linked[5:] != unlinked[5:]).any(-1).all()


def test_no_gradients_and_any_integer_type() -> None:
    made, ids = model(), tokens()
    logits = made.forward_inference(ids)
    assert not logits.requires_grad
    for dtype in (torch.int32, torch.uint16):  # the latter is a corpus'
        assert torch.equal(made.forward_inference(ids.to(dtype)), logits)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 8), "must be a tensor of integers, got torch.float32"),
        ([[1, 2]], "must be a tensor of integers, got list"),
        (torch.zeros(8, dtype=torch.int64), r"must have shape \[B, T\], neither 0, got \[8\]"),
        (torch.zeros(1, 1, 8, dtype=torch.int64), r"got \[1, 1, 8\]"),
        (torch.zeros(1, 0, dtype=torch.int64), r"got \[1, 0\]"),
        (torch.zeros(0, 3, dtype=torch.int64), r"got \[0, 3\]"),
        (torch.tensor([[1, 11, 2]]), r"token ids must be in \[0, 11\), got 11"),
        (torch.tensor([[1, -2, 99]]), r"token ids must be in \[0, 11\), got -2"),
        (torch.zeros(1, 33, dtype=torch.int64), r"33 tokens exceed the model's max_seq_len 32"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().forward_inference(bad)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([DocSpan("a", 0, 7)], r"end at 7, but there are 8 tokens"),
        ([DocSpan("a", 1, 8)], r"expected it to start at 0"),
        ([SPANS] * 3, r"doc_spans has 3 rows, but tokens has 2"),
        ([], r"doc_spans has 0 rows, but tokens has 2"),
        ([SPANS, []], r"doc_spans\[1\] end at 0, but there are 8 tokens"),
        ([SPANS, 8], r"must be DocSpans, or a list of them for each row, got 8"),
        ([SPANS, [None]], r"doc_spans\[1\]\[0\] must be a DocSpan with a tuple of grants, got None"),
        ([SPANS, [DocSpan("a", 0, 8, (SpanGrant(1, 0),))]], r"doc_spans\[1\]\[0\] \('a'\) has a grant that cannot be"),
    ],
)
@pytest.mark.parametrize("mask_type", sorted(MASKS))
def test_spans_that_do_not_fit_are_refused(mask_type: str, spans: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(mask_type=mask_type).forward_inference(tokens(2), spans)


def test_the_longest_sequence_fits() -> None:
    assert model().forward_inference(tokens(length=32)).isfinite().all()


# Dtypes.


@pytest.mark.parametrize("weight_tying", [True, False])
def test_bfloat16_weights_keep_float32_rotary_tables(weight_tying: bool) -> None:
    made = model(weight_tying=weight_tying)
    before = made.rotary.cos.clone(), made.rotary.sin.clone()
    exact = made.forward_inference(tokens(), SPANS)
    assert made.to(torch.bfloat16) is made
    assert made.dtype == torch.bfloat16
    assert all(p.dtype == torch.bfloat16 for p in made.parameters())
    assert made.rotary.cos.dtype == made.rotary.sin.dtype == torch.float32
    assert torch.equal(made.rotary.cos, before[0])
    assert torch.equal(made.rotary.sin, before[1])
    assert (made.loss_fn.weight is made.embedding.weight) is weight_tying
    logits = made.forward_inference(tokens(), SPANS)
    assert logits.dtype == torch.bfloat16
    assert (logits - exact).abs().max() < 0.15 * exact.abs().max()


def test_rotary_tables_follow_the_device() -> None:
    made = model().to("meta")
    assert made.device.type == made.rotary.cos.device.type == made.rotary.sin.device.type == "meta"


def test_rotary_tables_reach_the_models_length() -> None:
    made = model()
    assert len(made.rotary.cos) == len(made.rotary.sin) == 32
    cos, sin = made.rotary.at(slice(31, 32))
    angle = cmath.exp(31j)
    assert float(cos.flatten()[0]) == pytest.approx(angle.real, abs=1e-5)
    assert float(sin.flatten()[0]) == pytest.approx(angle.imag, abs=1e-5)
