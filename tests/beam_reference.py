"""Beam search as its definition says it, over any function that gives the next tokens' log-probabilities.

No cache, no coroutines, no documents: a hypothesis is a tuple of tokens. It shares no code with the runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ds2ds.model.ds2ds_model import DS2DSModel


@dataclass(frozen=True)
class Found:
    tokens: tuple[int, ...]
    score: float


def search(
    next_logprobs: Callable[[tuple[int, ...]], Sequence[float]],
    ends: Callable[[tuple[int, ...]], bool],
    *,
    num_beams: int,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    most_tokens: float = math.inf,
) -> list[Found]:
    """The finished hypotheses, best first.

    Args:
        next_logprobs: of the token after these, by token id.
        ends: whether these tokens are all there will be.
        most_tokens: that any hypothesis may have.
    """

    def score(total: float, length: float) -> float:
        return total / length**length_penalty

    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[Found] = []
    length = 0
    while live:
        length += 1
        options = [
            (total + logprob, (*tokens, token))
            for total, tokens in live
            for token, logprob in enumerate(next_logprobs(tokens))
            if logprob > -math.inf
        ]
        options = sorted(options, key=lambda option: -option[0])[: 2 * num_beams]
        over = [(total, tokens) for total, tokens in options[:num_beams] if ends(tokens)]
        live = [option for option in options if not ends(option[1])][:num_beams]
        finished += [Found(tokens, score(total, length)) for total, tokens in over]
        finished = sorted(finished, key=lambda found: -found.score)[:num_beams]
        if len(finished) == num_beams and live:
            if early_stopping is True:
                break
            best_length = most_tokens if early_stopping == "never" and length_penalty > 0 else length
            if score(live[0][0], best_length) <= finished[-1].score:
                break
    return finished


def full_pass(model: DS2DSModel, prompt: Sequence[int]) -> Callable[[tuple[int, ...]], list[float]]:
    """The next tokens' log-probabilities after the prompt and some tokens, from a pass over all of them."""

    def next_logprobs(tokens: tuple[int, ...]) -> list[float]:
        logits = model.forward_inference(torch.tensor([[*prompt, *tokens]]))[0, -1]
        values: list[float] = logits.float().log_softmax(-1).tolist()
        return values

    return next_logprobs
