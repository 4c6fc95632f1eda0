"""`ds2ds bench` under pytest-benchmark, and other ways to decode beside it: one model size, one after the other.

    python -m pytest bench/test_throughput_bench.py --benchmark-only -k 12x768
    python -m pytest bench/test_throughput_bench.py --benchmark-only -m gpu -k 12x768

A round is a workload from the first request to the last token. ds2ds' figures in the extra info are those of
`ds2ds bench`; all others have `time_to_first_token_ms`, `time_per_token_ms` and `tokens_per_second`, too. Random
weights, float32 on a CPU, bfloat16 on a GPU. In bench/decode.py the contestants take turns instead.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import baselines
import pytest
import torch
from transformers_static import static_cache

from ds2ds.bench.floor import make_buffer, read_bandwidth
from ds2ds.bench.measuring import Round, figures, serve, warm_up
from ds2ds.bench.suite import BATCHES, Settings, load_model, make_runtime, make_workloads
from ds2ds.bench.workloads import Workload
from ds2ds.corpus.document_corpus import DocumentCorpus
from ds2ds.model.quantised import KINDS
from ds2ds.runtime import Runtime

SIZES = ("12x768", "24x1024", "36x1280")
NO_CACHE = ("no_cache_flex", "no_cache_sdpa")
TOKENS = 32
ROUNDS = 3
THREADS = 2
CASES = ["single", *(f"batch-{size}" for size in BATCHES), "links", "long"]
GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)
DEVICES = ["cpu", GPU]


@lru_cache(maxsize=1)
def bench(size: str, device: str) -> tuple[Runtime, dict[str, Workload], float]:
    """The runtime of a model, the workloads by the names in CASES, and the memory's speed in bytes per second."""
    torch.set_num_threads(THREADS)
    settings = Settings(model=size, device=device, tokens=TOKENS)
    model = load_model(settings)
    made = make_workloads(settings, model, DocumentCorpus("demo"))
    named = {f"batch-{len(one.prompts)}" if one.name == "batch" else one.name: one for one in made}
    buffer = make_buffer(torch.device(device))
    read = statistics.median(read_bandwidth(buffer) for _ in range(5))
    return make_runtime(model, made), named, read


@lru_cache(maxsize=1)
def rounded(size: str, device: str, weights: str) -> Runtime:
    """The same, with weights of 8 bits."""
    runtime, named, _ = bench(size, device)
    return make_runtime(copy.deepcopy(runtime.model), list(named.values()), weights)


@lru_cache(maxsize=1)
def gpt2(size: str, device: str) -> Any:
    pytest.importorskip("transformers")
    runtime, _, _ = bench(size, device)
    return baselines.gpt2_like(runtime.model.config, runtime.model.device, runtime.model.dtype)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
def test_ds2ds(benchmark: Any, size: str, device: str, case: str) -> None:
    benchmark.group = f"{size}, {device}, {case}"
    runtime, workloads, read = bench(size, device)
    if case not in workloads:
        pytest.skip(f"no memory for {case}")
    _serve(benchmark, runtime, workloads[case], read)


@pytest.mark.parametrize("case", ["single", "batch-8"])
@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
def test_ds2ds_rounded(benchmark: Any, size: str, device: str, weights: str, case: str) -> None:
    benchmark.group = f"{size}, {device}, {case}"
    _, workloads, read = bench(size, device)
    _serve(benchmark, rounded(size, device, weights), workloads[case], read)


@pytest.mark.parametrize("name", [*NO_CACHE, "transformers_sdpa", "transformers_eager"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
def test_one_request(benchmark: Any, size: str, device: str, name: str) -> None:
    """No cache; and transformers, with a cache that grows, under two of its implementations of attention."""
    benchmark.group = f"{size}, {device}, single"
    runtime, workloads, _ = bench(size, device)
    (prompt,) = workloads["single"].prompts
    if name in NO_CACHE:
        start = partial(getattr(baselines, name), runtime.model, prompt)
        # Each token computes all there is: there is nothing to warm, and one round takes long.
        _measure(benchmark, partial(_decode, start), rounds=1)
    else:
        start = partial(baselines.transformers_gpt2, gpt2(size, device), prompt, name.split("_")[1])
        _measure(benchmark, partial(_decode, start), rounds=ROUNDS, warm=True)


@pytest.mark.parametrize("compute_type", ["float32", "int8"])
@pytest.mark.parametrize("size", SIZES)
def test_ctranslate2(benchmark: Any, size: str, compute_type: str, tmp_path: Path) -> None:
    benchmark.group = f"{size}, cpu, single"
    pytest.importorskip("ctranslate2")
    (prompt,) = bench(size, "cpu")[1]["single"].prompts
    baselines.convert_for_ctranslate2(gpt2(size, "cpu"), tmp_path)
    generator = baselines.ctranslate2_generator(tmp_path, compute_type, THREADS)
    named = [str(token) for token in prompt]
    start = partial(generator.generate_tokens, named, max_length=TOKENS, min_length=TOKENS, sampling_topk=1)
    _measure(benchmark, partial(_decode, start), rounds=ROUNDS, warm=True)


@pytest.mark.parametrize("case", [case for case in CASES if case != "links"])
@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("size", SIZES)
def test_transformers_with_a_static_cache(benchmark: Any, size: str, device: str, case: str) -> None:
    benchmark.group = f"{size}, {device}, {case}"
    workloads = bench(size, device)[1]
    if case not in workloads:
        pytest.skip(f"no memory for {case}")
    prompts = workloads[case].prompts
    _measure(benchmark, lambda: static_cache(gpt2(size, device), prompts, TOKENS), ROUNDS, len(prompts), warm=True)


def _serve(benchmark: Any, runtime: Runtime, workload: Workload, read: float) -> None:
    done: list[Round] = []
    warm_up(runtime, workload)
    benchmark.pedantic(lambda: done.append(serve(runtime, workload)), rounds=ROUNDS)
    benchmark.extra_info.update(figures(runtime, workload, done, read))
    runtime.engine.check_integrity()


def _decode(start: Callable[[], Iterator[Any]]) -> list[float]:
    """When each of TOKENS tokens was there."""
    at = [time.perf_counter() for _ in islice(start(), TOKENS)]
    if len(at) != TOKENS:
        raise RuntimeError(f"{len(at)} tokens came where {TOKENS} were asked for")
    return at


def _measure(
    benchmark: Any, decode: Callable[[], list[float]], rounds: int, requests: int = 1, *, warm: bool = False
) -> None:
    """Time `decode`, which gives when each step's tokens were there."""
    done: list[tuple[float, list[float]]] = []

    def once() -> None:
        started = time.perf_counter()
        done.append((started, decode()))

    benchmark.pedantic(once, rounds=rounds, warmup_rounds=int(warm))
    counted = done[-rounds:]
    benchmark.extra_info.update(
        requests=requests,
        tokens=TOKENS,
        time_to_first_token_ms=round(1e3 * statistics.median(at[0] - started for started, at in counted), 3),
        time_per_token_ms=round(1e3 * statistics.median(b - a for _, at in counted for a, b in pairwise(at)), 3),
        tokens_per_second=round(
            statistics.median(requests * TOKENS / (at[-1] - started) for started, at in counted), 3
        ),
    )
