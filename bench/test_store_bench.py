"""bench/reuse.py, link_event.py and compaction.py under pytest-benchmark, on the packaged model.

    python -m pytest bench/test_store_bench.py --benchmark-only

In the scripts cold and warm, or compaction and copy, take turns instead; their figures are the ones to quote.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import compaction
import link_event
import pytest
import torch
from reuse import COUNTS, SHAPES, Request, library_for, make_request
from reuse_models import DEMO, make_runtime

CPU = torch.device("cpu")
LINKS = 8


@lru_cache(maxsize=1)
def runtime() -> Any:
    return make_runtime(DEMO, CPU, torch.float32)


@lru_cache
def request_of(shape: str, links: int) -> Request:
    return make_request(runtime(), library_for(DEMO, max(COUNTS), 512), shape, links)


@pytest.mark.parametrize("store", ["cold", "warm"])
@pytest.mark.parametrize("links", COUNTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_time_to_the_first_token(benchmark: Any, shape: str, links: int, store: str) -> None:
    benchmark.group = f"{shape}, {links} links"
    request = request_of(shape, links)
    request.run()
    setup = request.clear if store == "cold" else None
    _, trace = benchmark.pedantic(request.run, setup=setup, rounds=3)
    assert (trace.tokens_reused == 0) == (store == "cold")
    benchmark.extra_info.update(tokens_prefilled=trace.tokens_prefilled, tokens_reused=trace.tokens_reused)


def test_a_stream_with_links(benchmark: Any) -> None:
    library = library_for(DEMO, LINKS, 512)
    extra = benchmark.pedantic(link_event.stream, args=(runtime(), library), rounds=3, warmup_rounds=1)
    benchmark.extra_info["links"] = sum(map(len, extra.values()))


@pytest.mark.parametrize("work", ["compact", "copy"])
def test_compaction(benchmark: Any, work: str) -> None:
    bench = compaction.Bench(compaction.SIZE, 8192, CPU, torch.float32, compaction.foldoc_lengths())
    benchmark.pedantic(getattr(bench, work), rounds=5, warmup_rounds=1)
    benchmark.extra_info["gb_per_second"] = round(2 * bench.moved_bytes / benchmark.stats.stats.median / 1e9, 2)
