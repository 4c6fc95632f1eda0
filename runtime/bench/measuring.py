"""Serving a workload with a clock beside it, and what the times come to."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from ds2ds.bench.floor import read_bandwidth, token_bytes, tokens_in_view, weight_bytes
from ds2ds.bench.workloads import Workload
from ds2ds.documents.document import Document
from ds2ds.generation.linked_doc_generator import LinkedDocumentGenerator
from ds2ds.generation.running import Running
from ds2ds.runtime import Runtime

WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Served:
    """A request that was served.

    Attributes:
        arrivals: when each token it wrote was there, in seconds of time.perf_counter; those of one step are equal.
    """

    running: Running
    arrivals: list[float] = field(default_factory=list)

    @property
    def root(self) -> Document:
        return self.running.request.context.root

    @property
    def first_token(self) -> float:
        """Seconds from when it was handed over, prefill and all."""
        return self.arrivals[0] - self.running.started

    @property
    def intervals(self) -> list[float]:
        """Seconds that each token took which came after another."""
        return [after - before for before, after in pairwise(self.arrivals)]

    def note(self, now: float) -> None:
        """Say that a step has ended."""
        written = len(self.root.tokens) - self.root.given
        self.arrivals.extend([now] * (written - len(self.arrivals)))


@dataclass(frozen=True)
class Round:
    """A workload, served once.

    Attributes:
        seconds: from when the first request was handed over to when the last one was done.
        at_once: most requests that the engine had under way at a time.
    """

    served: list[Served]
    seconds: float
    at_once: int

    @property
    def tokens(self) -> int:
        return sum(len(one.arrivals) for one in self.served)

    @property
    def intervals(self) -> list[float]:
        return [interval for one in self.served for interval in one.intervals]

    def steps(self) -> Iterator[tuple[float, int]]:
        """(seconds, tokens in view) of each step that drew tokens other than a request's first."""
        drawn: dict[float, list[tuple[Document, int]]] = {}
        seconds: dict[float, float] = {}
        for one in self.served:
            for number, (before, now) in enumerate(pairwise(one.arrivals), start=1):
                drawn.setdefault(now, []).append((one.root, one.root.given + number))
                # A request that waited for a document to be computed let other steps pass.
                seconds[now] = min(seconds.get(now, math.inf), now - before)
        for now, tokens in drawn.items():
            yield seconds[now], tokens_in_view(tokens)


def measure(
    runtime: Runtime,
    workload: Workload,
    rounds: int,
    buffer: torch.Tensor,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Serve a workload so many times, each time from an empty document store; see `figures`.

    A round before is not counted, see `warm_up`. The memory's speed is measured before each round.

    Args:
        runtime: without a layout.
        buffer: what is read to measure the memory's speed.
        progress: called after each round.
    """
    warm_up(runtime, workload)
    done, bandwidth = [], []
    for _ in range(rounds):
        bandwidth.append(read_bandwidth(buffer))
        done.append(serve(runtime, workload))
        progress()
    return figures(runtime, workload, done, statistics.median(bandwidth))


def warm_up(runtime: Runtime, workload: Workload) -> None:
    """Serve a workload once: on a GPU all of it, since each batch size may be compiled; on a CPU a few tokens do."""
    few = workload.tokens if runtime.model.device.type == "cuda" else min(WARM_UP_TOKENS, workload.tokens)
    serve(runtime, replace(workload, tokens=few))


def serve(runtime: Runtime, workload: Workload) -> Round:
    """Serve every request of a workload, from an empty document store.

    Steps the engine as `Runtime.generate_batch` does, and looks at the clock after each step.

    Raises:
        RuntimeError: a request did not write what it was to; Ds2dsError: what a request failed with.
    """
    engine = runtime.engine
    generator = LinkedDocumentGenerator(
        runtime.model, tokenizer=runtime.tokenizer, layout_policy="null", engine=runtime.engine
    )
    config = generator.default_config().with_overrides(max_new_tokens=workload.tokens, **workload.settings)
    engine.store.clear()
    waiting, active, served = deque(workload.prompts), list[Served](), list[Served]()
    at_once = 0
    started = time.perf_counter()
    try:
        while waiting or active:
            while waiting and len(active) < workload.at_once:
                active.append(Served(generator.start(None, waiting.popleft(), workload.corpus, config)))
                served.append(active[-1])
            engine.step()
            now = time.perf_counter()
            for one in active:
                one.note(now)
            ended = [one for one in active if one.running.job.done]
            at_once = max(at_once, len(engine.running) + len(ended))
            active = [one for one in active if not one.running.job.done]
        seconds = now - started
    finally:
        for one in active:
            engine.cancel(one.running.job)
    for one in served:
        if one.running.job.error is not None:
            raise one.running.job.error
        if len(one.arrivals) != workload.tokens:
            ended_by = one.root.finish_reason
            raise RuntimeError(f"a request wrote {len(one.arrivals)} of {workload.tokens} tokens: {ended_by}")
    return Round(served, seconds, at_once)


def figures(runtime: Runtime, workload: Workload, rounds: Sequence[Round], read: float) -> dict[str, Any]:
    """What rounds of a workload came to, plain JSON types; where a figure has `rounds`, `median` is the median of them.

    `time_per_token_ms.p99` is of all tokens of all rounds together. `tokens_per_second` counts all time, prefill too;
    `per_request` is what one request sees after its first token. `floor.share` is floor_ms / step_ms, the medians.

    Args:
        read: the memory's speed, bytes per second.
    """
    weights, per_token = weight_bytes(runtime.model), token_bytes(runtime.engine)
    steps = [step for one in rounds for step in one.steps()]
    moved = weights + per_token * statistics.median(tokens for _, tokens in steps)
    step = statistics.median(seconds for seconds, _ in steps)
    intervals = [interval for one in rounds for interval in one.intervals]
    per_request = [statistics.median(s.arrivals[-1] - s.arrivals[0] for s in one.served) for one in rounds]
    traces = [one.running.request.trace for one in rounds[-1].served]
    prefilled, reused = (sum(getattr(t, name) for t in traces) for name in ("tokens_prefilled", "tokens_reused"))
    return {
        "workload": workload.name,
        "requests": len(workload.prompts),
        "at_once": max(one.at_once for one in rounds),
        "prompt_tokens": round(statistics.mean(map(len, workload.prompts)), 1),
        "tokens": workload.tokens,
        "time_to_first_token_ms": _summary(
            [1e3 * statistics.median(s.first_token for s in one.served) for one in rounds]
        ),
        "time_per_token_ms": {
            **_summary([1e3 * statistics.median(one.intervals) for one in rounds]),
            "p99": round(1e3 * percentile(intervals, 99), 4),
        },
        "tokens_per_second": _summary([one.tokens / one.seconds for one in rounds]),
        "tokens_per_second_per_request": _summary([(workload.tokens - 1) / seconds for seconds in per_request]),
        "floor": {
            "weight_bytes": weights,
            "bytes_per_step": round(moved),
            "read_gb_per_second": round(read / 1e9, 3),
            "floor_ms": round(1e3 * moved / read, 4),
            "step_ms": round(1e3 * step, 4),
            "share": round(moved / read / step, 4),
        },
        "cache": {
            "tokens_prefilled": prefilled,
            "tokens_reused": reused,
            "hit_rate": round(reused / (reused + prefilled), 4),
            "documents": sum(trace.links_from_corpus for trace in traces),
            "documents_reused": sum(trace.documents_reused for trace in traces),
        },
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that so many percent of them do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {"median": round(statistics.median(values), 4), "rounds": [round(value, 4) for value in values]}
