"""What ds2ds is measured against. Each is an endless iterator of greedy tokens after a prompt, for one sequence.

`no_cache_flex` and `no_cache_sdpa` run the same weights as ds2ds and write the same tokens; `transformers` is GPT-2 of
the same layers, width and heads, with its cache.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
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


@torch.inference_mode()
def transformers_gpt2(model: Any, prompt: list[int], attention: str) -> Iterator[int]:
    """GPT-2's forward with a DynamicCache and argmax, nothing else.

    Args:
        attention: "sdpa" or "eager", transformers' implementations of attention on any device.
    """
    from transformers import DynamicCache

    model.set_attn_implementation(attention)
    cache = DynamicCache(config=model.config)
    tokens = torch.tensor([prompt], device=model.device)
    while True:
        logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        tokens = logits[:, -1].argmax(-1, keepdim=True)
        yield int(tokens)
