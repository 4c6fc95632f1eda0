"""A run of `ds2ds bench`: settings in, one JSON object of figures out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ds2ds.bench.floor import make_buffer
from ds2ds.bench.measuring import measure
from ds2ds.bench.models import MAX_SEQ_LEN, make_model, parse_size
from ds2ds.bench.workloads import Workload, batch, links, long, single
from ds2ds.corpus.document_corpus import DEMO, DocumentCorpus
from ds2ds.engine.arena_size import KV_BLOCK, bytes_per_token
from ds2ds.environment import environment
from ds2ds.errors import ConfigError
from ds2ds.generation.generation_config import parse_device
from ds2ds.model.checkpoint import parse_dtype
from ds2ds.model.ds2ds_model import DS2DSModel
from ds2ds.model.quantised import KINDS
from ds2ds.runtime import Runtime
from ds2ds.tokenizer import as_tokenizer

WORKLOADS = ("single", "batch", "links", "long")
BATCHES = (1, 8, 64, 256)
CONTEXT = 64

MEMORY_SHARE = 0.5
"""Of a machine's memory, or of what is free on a GPU, that an arena may be meant to fill."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        workloads: names in WORKLOADS.
        model: "demo", a checkpoint folder, or "LAYERSxWIDTH": random weights.
        dtype: of the weights; None: float32 on a CPU, bfloat16 on a GPU.
        weights: None, or how they are rounded to 8 bits, see `Runtime`.
        batch: requests at once in the workload "batch", one measurement for each; None: those of BATCHES whose keys
            and values fit into MEMORY_SHARE of the memory there is.
        tokens: that each request writes.
        context: tokens of each prompt without links; None: CONTEXT, and for "long" as many as the model takes.
        requests: of the workload "links".
        rounds: times that each workload is served and counted.

    Raises:
        ConfigError: a value is out of range.
    """

    workloads: tuple[str, ...] = WORKLOADS
    model: str = DEMO
    device: str = "cpu"
    dtype: str | None = None
    batch: tuple[int, ...] | None = None
    tokens: int = 32
    context: int | None = None
    requests: int = 16
    rounds: int = 3
    seed: int = 0
    weights: str | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.workloads if name not in WORKLOADS]
        if unknown or not self.workloads:
            raise ConfigError(f"workload must be among {('all', *WORKLOADS)}, got {unknown}")
        if self.tokens < 2:
            raise ConfigError(f"tokens must be at least 2, for a time between two, got {self.tokens}")
        for name in ("requests", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.context is not None and self.context < 1:
            raise ConfigError(f"context must be at least 1, got {self.context}")
        if self.batch is not None and min(self.batch, default=0) < 1:
            raise ConfigError(f"batch must be at least 1, got {list(self.batch)}")
        if self.weights not in (None, *KINDS):
            raise ConfigError(f"weights must be None or one of {KINDS}, got {self.weights!r}")
        parse_size(self.model)


def run(settings: Settings, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Measure.

    Args:
        progress: told (rounds done, of how many).

    Returns:
        {"environment", "settings", "results": [as `measuring.figures` gives them]}, plain JSON types.

    Raises:
        Ds2dsError: a setting does not fit, the model or its corpus is damaged, or memory does not suffice.
    """
    device = parse_device(settings.device)
    model = load_model(settings)
    with contextlib.ExitStack() as opened:
        corpus = opened.enter_context(DocumentCorpus(DEMO)) if "links" in settings.workloads else None
        workloads = make_workloads(settings, model, corpus)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        runtime = make_runtime(model, workloads, settings.weights)
        where = environment(device)  # before the load is of our making
        buffer = make_buffer(device)
        total, done, results = len(workloads) * settings.rounds, 0, []

        def one_more() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        for workload in workloads:
            results.append(measure(runtime, workload, settings.rounds, buffer, one_more))
    sizes = [len(workload.prompts) for workload in workloads if workload.name == "batch"]
    return {"environment": where, "settings": _recorded(settings, model, sizes, parameters), "results": results}


def load_model(settings: Settings) -> DS2DSModel:
    """The model that is asked for; one with random weights has room for the context that is asked for."""
    device = parse_device(settings.device)
    positions = max(MAX_SEQ_LEN, (settings.context or 0) + settings.tokens)
    return make_model(settings.model, device, parse_dtype(settings.dtype, device), positions)


def make_workloads(settings: Settings, model: DS2DSModel, corpus: DocumentCorpus | None = None) -> list[Workload]:
    """The workloads in the order of WORKLOADS; `corpus` is what "links" links to.

    Raises:
        ConfigError, CorpusError: a setting does not fit the model or the corpus.
    """
    config, tokens, seed = model.config, settings.tokens, settings.seed
    context = settings.context or max(1, min(CONTEXT, config.max_seq_len - tokens))
    made = []
    if "single" in settings.workloads:
        made.append(single(config, tokens, context, seed))
    if "batch" in settings.workloads:
        batches = [batch(config, size, tokens, context, seed) for size in sorted(set(settings.batch or BATCHES))]
        made += batches if settings.batch is not None else _fitting(batches, model)
    if "links" in settings.workloads:
        if corpus is None:
            raise ConfigError("the workload 'links' needs a corpus, got None")
        made.append(links(config, as_tokenizer(None), corpus, settings.requests, tokens, seed))
    if "long" in settings.workloads:
        made.append(long(config, tokens, settings.context, seed))
    return made


def make_runtime(model: DS2DSModel, workloads: list[Workload], weights: str | None = None) -> Runtime:
    """A runtime in whose arena each of the workloads has room; it rounds the model's weights if asked to.

    Raises:
        ConfigError: there is no memory for it, or no such way to round.
    """
    slots = max(workload.slots(KV_BLOCK[model.device.type]) for workload in workloads)
    return Runtime(model, weights=weights, arena_tokens=slots)


def _fitting(batches: list[Workload], model: DS2DSModel) -> list[Workload]:
    """Those that there is memory for, the smallest one in any case."""
    if model.device.type == "cuda":
        memory = torch.cuda.mem_get_info(model.device)[0]
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    room = int(MEMORY_SHARE * memory) // bytes_per_token(model)
    return [one for one in batches if one is batches[0] or one.slots(KV_BLOCK[model.device.type]) <= room]


def _recorded(settings: Settings, model: DS2DSModel, batch: list[int], parameters: int) -> dict[str, Any]:
    """The settings as they came to be. Of a checkpoint folder the name: where it lies is its owner's affair."""
    return {
        **asdict(settings),
        "workloads": list(settings.workloads),
        "batch": batch,
        "model": Path(settings.model).name,
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": parameters,
    }
