"""Beam search of a document without links gives what transformers' own search gives on a model of the same weights."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from link_graphs import VOCABULARY, TinyTokenizer, ids, tiny_model
from scripted import is_clean

from ds2ds import DS2DSModel, Runtime

transformers = pytest.importorskip("transformers")

EOS = 0
MODELS = ((0, 0.0), (1, 3.0), (2, 6.0))
PROMPTS = (ids(b"x", b" t", b"[x]("), ids(b"A"), ids(b"B", b"C", b".", b" ", b"x", b"D", b"\n"))


@functools.cache
def model(seed: int, eos_bias: float) -> DS2DSModel:
    """In float64. EOS gets the direction of a bias: the mean hidden state of the prompts."""
    made = copy.deepcopy(tiny_model(seed)).double()
    with torch.no_grad():
        hidden = torch.stack(
            [made(torch.tensor([p]), torch.ones(len(p), len(p)).tril().bool())[0, -1] for p in PROMPTS]
        )
        made.loss_fn.weight[EOS] += eos_bias * hidden.mean(0) / hidden.mean(0).norm()
    return made


class Wrapped(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc]
    """Our full pass as a model that transformers can generate with: every token anew at each step, no cache."""

    config_class = transformers.PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, inner: DS2DSModel) -> None:
        super().__init__(transformers.PretrainedConfig(vocab_size=inner.config.vocab_size, is_encoder_decoder=False))
        self.inner = inner

    def forward(self, input_ids: torch.Tensor, **ignored: Any) -> Any:
        return transformers.modeling_outputs.CausalLMOutput(logits=self.inner.forward_inference(input_ids))

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **ignored: Any) -> dict[str, torch.Tensor]:
        return {"input_ids": input_ids}


def theirs(inner: DS2DSModel, prompt: list[int], max_new_tokens: int, **options: Any) -> list[tuple[list[int], float]]:
    wrapped = Wrapped(inner).eval()
    out = wrapped.generate(
        torch.tensor([prompt]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=False,
        eos_token_id=EOS,
        pad_token_id=len(VOCABULARY),  # an id that no document has
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    sequences = [[token for token in row[len(prompt) :] if token != len(VOCABULARY)] for row in out.sequences.tolist()]
    return list(zip(sequences, out.sequences_scores.tolist(), strict=True))


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-0.7, 0.0, 1.0, 2.0])
@pytest.mark.parametrize(("num_beams", "max_new_tokens"), [(2, 6), (4, 15), (7, 9)])
@pytest.mark.parametrize(("seed", "eos_bias"), MODELS)
def test_the_same_tokens_and_scores(
    seed: int, eos_bias: float, num_beams: int, max_new_tokens: int, length_penalty: float, early_stopping: bool | str
) -> None:
    options: dict[str, Any] = {
        "num_beams": num_beams,
        "num_return_sequences": num_beams,
        "max_new_tokens": max_new_tokens,
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
    }
    inner = model(seed, eos_bias)
    runtime = Runtime(inner, TinyTokenizer(), arena_tokens=4096)
    for prompt in PROMPTS:
        expected = theirs(inner, prompt, **options)
        best = runtime.generate(prompt_tokens=prompt, max_link_depth=0, eos_token_id=EOS, **options)
        found = [best, *best.alternatives]
        tokens = [list(one.root_document.tokens or ())[len(prompt) :] for one in found]
        assert tokens == [tokens for tokens, _ in expected]
        assert [one.score for one in found] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert is_clean(runtime)


def test_eos_is_within_reach() -> None:
    """Or the above would compare searches that all end at the same length."""
    lengths = set()
    for seed, eos_bias in MODELS:
        for prompt in PROMPTS:
            for tokens, _ in theirs(model(seed, eos_bias), prompt, 15, num_beams=4, num_return_sequences=4):
                assert (tokens[-1] == EOS) == (len(tokens) < 15 or EOS in tokens)
                lengths.add(len(tokens))
    assert 15 in lengths and len(lengths) > 5
