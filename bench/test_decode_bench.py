"""The contestants of bench/decode.py under pytest-benchmark, one after the other, a token at a time.

    python -m pytest bench/test_decode_bench.py --benchmark-only

In bench/decode.py they take turns instead; its figures are the ones to quote.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from decode import BASELINES, CONTEXTS, SIZES, Contest, warm_up

TOKENS = 16
THREADS = 2


@lru_cache(maxsize=1)
def contest(size: str) -> Contest:
    return Contest(size, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", ["ds2ds", *BASELINES])
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("size", SIZES)
def test_decode(benchmark: Any, size: str, context: int, name: str) -> None:
    benchmark.group = f"{size}, context {context}, one token"
    torch.set_num_threads(THREADS)
    against = () if name == "ds2ds" else (name,)
    contestant = contest(size).contestants(context, TOKENS, 1, against)[-1]
    contestant.run(warm_up(contestant.per_round))
    benchmark.pedantic(contestant.run, args=(1,), rounds=contestant.per_round)
    benchmark.extra_info["tokens_per_second"] = round(1 / benchmark.stats.stats.median, 3)
    benchmark.extra_info["bytes_per_token"] = contestant.bytes_per_token
