"""How large the arena is where the user does not say."""

from __future__ import annotations

import torch

from ds2ds.attention.flex_kernel import MOST_NUMBERS
from ds2ds.cache.arena import KVArena
from ds2ds.engine.limits import positive
from ds2ds.errors import ConfigError
from ds2ds.model.ds2ds_model import DS2DSModel

CPU_ARENA_BYTES = 2**30
"""On a CPU, unless the model's max_seq_len needs more. Memory that is never written to is never taken."""

GPU_FREE_SHARE = 0.5
"""Of the memory that is free on a GPU once the weights are there; the rest is for activations and other users."""

WINDOWS = 4
"""At least so many windows of the model's max_seq_len."""

KV_BLOCK = {"cpu": 16, "cuda": 128}
"""Alignment of extents, in slots: on a GPU a block of the block mask, on a CPU a line or more of cache."""


def default_arena_tokens(model: DS2DSModel) -> int:
    """Slots that fill the memory meant for the arena, and room for WINDOWS windows if that is more.

    On a GPU no more than FlexAttention can read: the memory of a large one holds millions of a small model's tokens.
    """
    slots = CPU_ARENA_BYTES // bytes_per_token(model)
    if model.device.type == "cuda":
        memory = int(GPU_FREE_SHARE * torch.cuda.mem_get_info(model.device)[0])
        block = KV_BLOCK["cuda"]
        slots = min(memory // bytes_per_token(model), MOST_NUMBERS // model.config.model_dim // block * block)
    return max(WINDOWS * model.config.max_seq_len, slots)


def bytes_per_token(model: DS2DSModel) -> int:
    """Keys and values of one token in all layers."""
    return model.config.num_layers * 2 * model.config.model_dim * model.dtype.itemsize


def make_arena(model: DS2DSModel, arena_tokens: int | None = None) -> KVArena:
    """An arena for this model, beside its weights.

    Raises:
        ConfigError: arena_tokens is no positive integer, or more than there is memory for.
    """
    config = model.config
    slots = default_arena_tokens(model) if arena_tokens is None else positive("arena_tokens", arena_tokens)
    block, shape = KV_BLOCK[model.device.type], (config.num_layers, config.num_heads, config.head_dim)
    try:
        return KVArena(*shape, slots, block, model.dtype, model.device)
    except (RuntimeError, MemoryError, TypeError) as error:  # torch raises the first, and the last beyond 64 bits
        size = slots * bytes_per_token(model) / 1e9
        raise ConfigError(
            f"an arena of {slots:,} tokens takes {size:,.1f} GB, which are not to be had: pass fewer arena_tokens (the "
            f"model's window is {config.max_seq_len:,})"
        ) from error
