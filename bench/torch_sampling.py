"""What sampling is measured beside: PyTorch as people write it, and FlashInfer where it is installed.

Each sampler here is made for one way to sample and then called with logits alone. Settings are tensors with a value
for each row, as a server has them; what no row uses is left out of the work, as a server does. Both compute in
float32 whatever the logits are, which for bfloat16 costs them a conversion.

Neither promises what ``sample_rows`` does: ties are cut anywhere, sums depend on the order of their terms, a draw
depends on the rest of the batch, and rows without a softmax are not reported.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

Sampler = Callable[[Tensor], Tensor]


class Way(NamedTuple):
    """How all rows are sampled; the settings that stand at their defaults are off."""

    name: str
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def nucleus(logits: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sort whole rows: probabilities in descending order, 0 for what is not kept, and the ids of their tokens.

    Args:
        logits: float32 [B, V].
        top_k: int32 [B], each at least 1, or None if it is off for all.
        top_p: float32 [B], or None if it is off for all.
    """
    ordered, ids = logits.sort(dim=-1, descending=True)
    if top_k is not None:
        rank = torch.arange(logits.shape[-1], device=logits.device)
        ordered.masked_fill_(rank >= top_k[:, None], -torch.inf)
    return _cut(ordered.softmax(dim=-1), top_p), ids


def best_of(logits: Tensor, most: int, top_k: Tensor, top_p: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `nucleus`, from ``torch.topk``: what can be done where the host knows the largest k of the batch."""
    ordered, ids = logits.topk(most, dim=-1)
    rank = torch.arange(most, device=logits.device)
    ordered.masked_fill_(rank >= top_k[:, None], -torch.inf)
    return _cut(ordered.softmax(dim=-1), top_p), ids


def _cut(probabilities: Tensor, top_p: Tensor | None) -> Tensor:
    if top_p is None:
        return probabilities
    before = probabilities.cumsum(dim=-1).sub_(probabilities)
    return probabilities.masked_fill_(before >= top_p[:, None], 0)


def draw(probabilities: Tensor) -> Tensor:
    """A column per row, by an exponential race: as a Gumbel argmax, and nothing is read back, unlike multinomial."""
    return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(dim=-1, keepdim=True)


def by_torch(way: Way, batch: int, device: torch.device, with_topk: bool = False) -> Sampler:
    """Greedy is an argmax, plain sampling needs no order, and the rest sorts, or takes ``torch.topk`` where asked."""
    temperature = torch.full((batch, 1), way.temperature, device=device)
    top_k = torch.full((batch,), way.top_k, dtype=torch.int32, device=device) if way.top_k else None
    top_p = torch.full((batch,), way.top_p, device=device) if way.top_p < 1 else None

    def sample(logits: Tensor) -> Tensor:
        if way.temperature == 0:
            return logits.argmax(dim=-1)
        scaled = logits.float() / temperature
        if top_k is None and top_p is None:
            return draw(scaled.softmax(dim=-1)).squeeze(1)
        if with_topk and top_k is not None:
            probabilities, ids = best_of(scaled, way.top_k, top_k, top_p)
        else:
            probabilities, ids = nucleus(scaled, top_k, top_p)
        return ids.gather(1, draw(probabilities)).squeeze(1)

    return sample


class Missing(Exception):
    """Why a sampler cannot be measured here."""


class FlashInfer:
    """FlashInfer's samplers, with settings for each row. A softmax that one needs done before it counts as its own.

    Raises:
        Missing: it is not installed, or does not load.
    """

    def __init__(self) -> None:
        try:
            self.module: ModuleType = importlib.import_module("flashinfer.sampling")
            self.version: str = getattr(importlib.import_module("flashinfer"), "__version__", "of no version")
        except Exception as error:  # what a third party's module raises as it loads could be anything
            absent = isinstance(error, ModuleNotFoundError) and error.name in ("flashinfer", "flashinfer.sampling")
            raise Missing("not installed" if absent else f"does not load: {error}") from error

    def sampler(self, way: Way, batch: int, device: torch.device) -> tuple[Sampler, bool]:
        """A sampler, and whether a CUDA graph can capture its calls.

        Raises:
            Missing: its version has no function for this way, or none has.
        """
        if way.temperature == 0:
            raise Missing("has no greedy")
        temperature = torch.full((batch, 1), way.temperature, device=device)
        settings: list[Tensor] = []
        if way.top_k:
            settings.append(torch.full((batch,), way.top_k, dtype=torch.int32, device=device))
        if way.top_p < 1:
            settings.append(torch.full((batch,), way.top_p, device=device))
        name = {
            (True, True): "top_k_top_p_sampling_from_logits",
            (True, False): "top_k_sampling_from_probs",
            (False, True): "top_p_sampling_from_probs",
            (False, False): "sampling_from_logits",
        }[bool(way.top_k), way.top_p < 1]
        function = getattr(self.module, name, None)
        if function is None:
            raise Missing(f"{self.version} has no {name}")
        # Seeds in tensors are what lets a graph capture it: otherwise the host moves its generator on.
        keys = {"seed", "offset"}
        graph = keys <= set(inspect.signature(function).parameters)
        seeds = {key: torch.full((1,), 8, dtype=torch.int64, device=device) for key in keys if graph}

        def sample(logits: Tensor) -> Tensor:
            scaled = logits.float() / temperature
            given = scaled if name.endswith("from_logits") else scaled.softmax(dim=-1)
            return function(given, *settings, **seeds)

        return sample, graph
