"""transformers at its best on a GPU: GPT-2 with a static cache, its decoding step compiled into CUDA graphs."""

from __future__ import annotations

import time
from typing import Any

import torch


class Clock:
    """What `generate` takes for a streamer: it is told of the prompt first, then of each step's tokens, on the CPU."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    @property
    def arrivals(self) -> list[float]:
        """When the tokens of each step were there, in seconds of time.perf_counter."""
        return self.times[1:]


def static_cache(model: Any, prompts: list[list[int]], tokens: int) -> list[float]:
    """Let GPT-2 (`baselines.gpt2_like`) write so many greedy tokens after each prompt, all prompts of one length.

    On a GPU transformers compiles the step by itself where the cache is static; the first calls take minutes.

    Returns:
        When the tokens of each step were there; see Clock.

    Raises:
        RuntimeError: it wrote another number of tokens.
    """
    from transformers import GenerationConfig

    clock = Clock()
    ids = torch.tensor(prompts, device=model.device)
    settings = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        cache_implementation="static",
        # No token ends a row.
        eos_token_id=None,
        pad_token_id=0,
    )
    model.generation_config.eos_token_id = None
    model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=clock)
    if len(clock.arrivals) != tokens:
        raise RuntimeError(f"transformers took {len(clock.arrivals)} steps for {tokens} tokens")
    return clock.arrivals
