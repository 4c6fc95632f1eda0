"""Sampling in compiled code draws what NumPy draws, token for token, whatever instructions the processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processors import PROCESSORS, compiled_for
from test_sampling_kernel import columns

from ds2ds.kernels import SampleOutput, sample_rows
from ds2ds.kernels.sampling.philox import gumbel_noise
from ds2ds.native import operations as native
from ds2ds.native import sampling as compiled

pytestmark = pytest.mark.skipif(not native.available(), reason="there is no C compiler")

INF = float("inf")
KINDS = ("random", "coarse", "equal", "holes", "peaked", "tiny", "huge", "nan", "inf", "nothing")

row_settings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1.0, 0.7, 3.0, 1e-3, 1e-40, 1e30]),
        "top_k": st.sampled_from([0, 1, 2, 7, 50, 1000, 10**6]),
        "top_p": st.sampled_from([1.0, 0.999999, 0.9, 0.5, 1e-3, 1e-30]),
        "min_p": st.sampled_from([0.0, 1e-30, 1e-3, 0.3, 1.0]),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "position": st.integers(0, 2**63 - 1),
    },
    optional={
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.5, 1e-38]),
        "listed": st.lists(st.integers(-1, 0), max_size=3),
    },
)


def a_row(kind: str, vocab: int, generator: np.random.Generator) -> np.ndarray:
    x = generator.standard_normal(vocab).astype(np.float32) * 2
    if kind == "coarse":
        x = np.round(x)
    elif kind == "equal":
        x[:] = x[0]
    elif kind == "holes":
        x[generator.random(vocab) < 0.7] = -INF
    elif kind == "peaked":
        x *= 30
    elif kind in ("tiny", "huge"):
        x *= np.float32(1e-42 if kind == "tiny" else 1e37)
    elif kind == "nothing":
        x[:] = -INF
    elif kind in ("nan", "inf"):
        x[generator.integers(vocab)] = float(kind)
    return x


def assert_same(ours: SampleOutput, plain: SampleOutput) -> None:
    assert ours.tokens.tolist() == plain.tokens.tolist() and ours.status.tolist() == plain.status.tolist()
    assert [column.dtype for column in ours] == [column.dtype for column in plain]
    torch.testing.assert_close(ours.logprobs, plain.logprobs, atol=2e-6, rtol=1e-6, equal_nan=True)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), row_settings), min_size=1, max_size=6),
    st.one_of(st.integers(1, 300), st.sampled_from([1000, 4097, 70_000])),
    st.integers(0, 2**32),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(1, 3),
)
def test_rows_of_all_kinds(
    rows: list[tuple[str, dict[str, Any]]], vocab: int, seed: int, dtype: torch.dtype, threads: int
) -> None:
    generator, before = np.random.default_rng(seed), torch.get_num_threads()
    logits = torch.from_numpy(np.stack([a_row(kind, vocab, generator) for kind, _ in rows])).to(dtype)
    given = columns([row for _, row in rows])
    kept = logits.clone()
    torch.set_num_threads(threads)
    try:
        ours = compiled.sample_rows(logits, **given)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(logits.view(torch.uint8), kept.view(torch.uint8))
    assert_same(ours, sample_rows(logits, **given))


@pytest.mark.parametrize("way", ["transposed", "sliced", "repeated"])
def test_any_strides(way: str) -> None:
    x = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    logits = {"transposed": x.t(), "sliced": x[::3, 5:205], "repeated": x[:1].expand(40, -1)}[way]
    rows = columns([{"position": at, "top_k": at % 3, "temperature": at % 2} for at in range(len(logits))])
    assert_same(compiled.sample_rows(logits, **rows), sample_rows(logits, **rows))


def test_the_token_is_that_of_the_largest_score() -> None:
    """Of equal logits the noise alone decides: of each it is the reference's, to the last bit, or another would win."""
    positions, vocab = 3000, 1003
    rows = columns([{"seed": -5, "position": at * 2**40 + at} for at in range(positions)])
    noise = gumbel_noise(rows["seed"].numpy(), rows["position"].numpy(), vocab)
    drawn = compiled.sample_rows(torch.zeros(positions, vocab), **rows)
    assert drawn.tokens.tolist() == noise.argmax(axis=1).tolist()
    # Logits that level all noise out but for its rounding.
    level = torch.from_numpy(noise.max() - noise)
    scores = (level - level.max(dim=1, keepdim=True).values).numpy() + noise
    assert compiled.sample_rows(level, **rows).tokens.tolist() == scores.argmax(axis=1).tolist()


def test_of_equal_scores_the_lower_id_wins_whatever_its_rank() -> None:
    rows = columns([{"position": at, "top_k": 2} for at in range(400)])
    noise = torch.from_numpy(gumbel_noise(rows["seed"].numpy(), rows["position"].numpy(), 40))
    logits = torch.full((400, 40), -INF)
    logits[:, 30], logits[:, 3] = 0, noise[:, 30] - noise[:, 3]
    ties = (logits[:, 3] < 0) & (logits[:, 3] + noise[:, 3] == noise[:, 30])
    assert ties.sum() > 20
    ours = compiled.sample_rows(logits, **rows)
    assert (ours.tokens[ties] == 3).all()
    assert_same(ours, sample_rows(logits, **rows))


def test_a_token_with_the_largest_noise_there_is_is_not_passed_over() -> None:
    """ln(2^33): found by a search of many positions. Of later tokens only those are looked at that may still win."""
    rows = columns([{"seed": 7, "position": 33_303_201}])
    noise = gumbel_noise(rows["seed"].numpy(), rows["position"].numpy(), 128)[0]
    assert noise[110] > 22.87
    for more, token in ((0.01, 110), (-0.01, 0)):
        logits = torch.full((1, 128), -INF)
        logits[0, 0], logits[0, 110] = 0, float(noise[0] - noise[110]) + more
        assert compiled.sample_rows(logits, **rows).tokens.tolist() == [token]


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_same_on_other_processors(processor: str) -> None:
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(np.stack([a_row(kind, 1003, generator) for kind in KINDS * 30]))
    changes = ({}, {"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 300, "top_p": 0.9}, {"temperature": 0.0})
    rows = columns([{"position": at, **changes[at % 6]} for at in range(len(logits))])
    with compiled_for(processor):
        ours = compiled.sample_rows(logits, **rows)
    assert_same(ours, sample_rows(logits, **rows))


def test_without_memory_that_is_said() -> None:
    code = """
import resource, torch
from ds2ds.native.sampling import sample_rows
one = lambda value, dtype: torch.tensor([value], dtype=dtype)
settings = dict(temperature=one(1, torch.float32), top_k=one(5, torch.int32), top_p=one(1, torch.float32),
                min_p=one(0, torch.float32), seed=one(0, torch.int64), position=one(0, torch.int64))
logits = torch.zeros(1, 2**18)
sample_rows(logits, **settings)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, used + 2**20))
try:
    sample_rows(logits, **settings)
except MemoryError as error:
    print(error)
"""
    if sys.platform != "linux":
        pytest.skip("limits memory as Linux does")
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert "no memory to rank the 262144 tokens of 1 rows" in made.stdout, made.stderr
