"""What ds2ds is measured against. Each is an endless iterator of greedy tokens after a prompt, for one sequence.

`no_cache_flex` and `no_cache_sdpa` run the same weights as ds2ds and write the same tokens; `transformers` is GPT-2 of
the same layers, width and heads, with its cache, for one sequence or several of one length. CTranslate2 runs the same
GPT-2, converted, whole texts at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ds2ds.attention.rotary import rotate
from ds2ds.model.config import ModelConfig
from ds2ds.model.ds2ds_model import DS2DSModel

# Eager FlexAttention is what is measured: on a CPU the training code does not compile it either.
warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")


def no_cache_flex(model: DS2DSModel, prompt: list[int]) -> Iterator[int]:
    """As the training code does: for each token the whole packed sequence, with a new block mask and all logits."""
    return _recompute(prompt, model.device, lambda tokens: flex_forward(model, tokens))


def no_cache_sdpa(model: DS2DSModel, prompt: list[int]) -> Iterator[int]:
    """The same with scaled dot-product attention under a dense mask: the fastest full pass at hand."""
    return _recompute(prompt, model.device, lambda tokens: sdpa_forward(model, tokens))


@torch.inference_mode()
def sdpa_forward(model: DS2DSModel, tokens: Tensor) -> Tensor:
    """As `flex_forward`, with a dense mask. (`forward_inference` would take a block mask on a GPU.)"""
    length = tokens.shape[1]
    return model.logits(model(tokens, torch.ones(length, length, dtype=torch.bool, device=model.device).tril()))


@torch.inference_mode()
def flex_forward(model: DS2DSModel, tokens: Tensor) -> Tensor:
    """Tokens int64 [1, T], one document, to logits [1, T, vocab_size], with eager FlexAttention."""
    length = tokens.shape[1]
    documents = torch.zeros(length, dtype=torch.int64, device=model.device)

    def doc_causal(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (documents[row] == documents[column]) & (row >= column)

    mask = create_block_mask(doc_causal, 1, 1, length, length, device=str(model.device))
    cos, sin = (table.unsqueeze(1) for table in model.rotary.at(slice(0, length)))

    def attend(layer: int, qk: Tensor, v: Tensor) -> Tensor:
        q, k = rotate(qk, cos, sin).permute(1, 2, 0, 3)
        out = flex_attention(q[None], k[None], v.transpose(0, 1)[None], block_mask=mask)
        return out[0].transpose(0, 1)

    return model.logits(model.hidden(tokens[0], attend))[None]


def _recompute(prompt: list[int], device: torch.device, forward: Callable[[Tensor], Tensor]) -> Iterator[int]:
    tokens = list(prompt)
    while True:
        logits = forward(torch.tensor([tokens], device=device))
        tokens.append(int(logits[0, -1].argmax()))
        yield tokens[-1]


def gpt2_like(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' GPT2LMHeadModel with random weights, of the config's layers, width, heads and vocabulary."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.max_seq_len,
        n_embd=config.model_dim,
        n_layer=config.num_layers,
        n_head=config.num_heads,
    )
    model: Any = GPT2LMHeadModel(shape)
    return model.to(device=device, dtype=dtype).eval()


TRANSFORMERS_ATTENTION = ("sdpa", "eager")
"""transformers' implementations of attention that any device has."""


def transformers_gpt2(model: Any, prompt: list[int], attention: str) -> Iterator[int]:
    """One sequence of `transformers_gpt2_batch`."""
    for (token,) in transformers_gpt2_batch(model, [prompt], attention):
        yield token


@torch.inference_mode()
def transformers_gpt2_batch(model: Any, prompts: list[list[int]], attention: str) -> Iterator[list[int]]:
    """GPT-2's forward with a DynamicCache and argmax, nothing else: faster than its `generate`, which adds to that.

    Args:
        prompts: all of one length, so that nothing is padded.
        attention: one of TRANSFORMERS_ATTENTION.
    """
    from transformers import DynamicCache

    model.set_attn_implementation(attention)
    # Before that it was called past_key_values.
    named = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    cache = {named: DynamicCache(config=model.config)}
    tokens = torch.tensor(prompts, device=model.device)
    while True:
        logits = model(tokens, **cache, use_cache=True, logits_to_keep=1).logits
        tokens = logits[:, -1].argmax(-1, keepdim=True)
        yield tokens[:, 0].tolist()


def convert_for_ctranslate2(gpt2: Any, folder: Path) -> None:
    """Write a GPT2LMHeadModel as a CTranslate2 model of float32 into an empty folder. Token i is named "i"."""
    import ctranslate2
    from ctranslate2.specs import TransformerDecoderModelSpec
    from ctranslate2.specs.common_spec import Activation

    layers, heads = gpt2.config.n_layer, gpt2.config.n_head
    spec = TransformerDecoderModelSpec.from_config(
        layers, heads, pre_norm=True, activation=Activation.GELUTanh, layernorm_embedding=False
    )
    loader = ctranslate2.converters.transformers.GPT2Loader()
    loader.set_decoder(spec.decoder, gpt2.transformer)
    loader.set_linear(spec.decoder.projection, gpt2.lm_head)
    spec.register_vocabulary([str(token) for token in range(gpt2.config.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = str(gpt2.config.vocab_size - 1)
    spec.validate()
    spec.save(str(folder))


def ctranslate2_generator(folder: Path, compute_type: str, threads: int) -> Any:
    """A CTranslate2 Generator on the CPU; weights are quantised as it loads them ("float32" or "int8")."""
    import ctranslate2

    return ctranslate2.Generator(str(folder), device="cpu", compute_type=compute_type, intra_threads=threads)


def ctranslate2_decode(generator: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    """`count` greedy tokens after each prompt."""
    results = generator.generate_batch(
        [[str(token) for token in prompt] for prompt in prompts],
        max_length=count,
        min_length=count,
        sampling_topk=1,
        beam_size=1,
        include_prompt_in_result=False,
    )
    tokens = [[int(token) for token in result.sequences[0]] for result in results]
    if any(len(one) != count for one in tokens):
        raise RuntimeError(f"CTranslate2 wrote {[len(one) for one in tokens]} tokens where {count} were asked for")
    return tokens


def versions() -> dict[str, str | None]:
    """Of the packages that ds2ds is measured against; None: not installed."""
    found: dict[str, str | None] = {}
    for name in ("transformers", "ctranslate2"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
