"""The sampling kernels, interpreted, against the host's reference: the same token and status for every row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_sampling_kernel import INF, MIXED, NAN, batches, columns

from ds2ds.kernels import SampleOutput, SampleStatus, sample_rows
from ds2ds.kernels.sampling import choose as choose_module
from ds2ds.kernels.sampling import elementary, host, launch, philox
from ds2ds.kernels.sampling import finish as finish_module
from ds2ds.kernels.sampling.arithmetic import (
    arrival,
    exact_exp,
    exact_log,
    exact_mass,
    from_key,
    gumbel,
    gumbel_at,
    ordered_key,
    score_bound,
    words_from,
)
from ds2ds.kernels.sampling.launch import SIZES, Sizes, sample_on_device

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU here: test_sampling_gpu.py"),
    # NumPy remarks on NaN and infinity, which a GPU does not.
    pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning"),
]

QUICK = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
# So small that a short row has several tiles, groups and chunks, and more candidates than its buffer holds.
SMALL = [
    Sizes(tile=16, group=4, capacity=16, chunk=16, pool=8, sample=16, pairs=8),
    Sizes(tile=32, group=8, capacity=16, chunk=64, pool=32, sample=64, pairs=8),
    Sizes(tile=64, group=4, capacity=64, chunk=32, pool=32, sample=32, pairs=16),
]


def on_device(logits: torch.Tensor, rows: dict[str, torch.Tensor], sizes: Sizes = SIZES) -> SampleOutput:
    settings = tuple(rows[name] for name in ("temperature", "top_k", "top_p", "min_p", "seed", "position"))
    penalty = (rows["repetition_penalty"], rows["penalty_tokens"]) if "penalty_tokens" in rows else None
    return sample_on_device(logits, settings, penalty, sizes)


def assert_same(logits: torch.Tensor, rows: dict[str, torch.Tensor], sizes: Sizes = SIZES) -> SampleOutput:
    expected = sample_rows(logits, **rows, backend="torch")
    out = on_device(logits, rows, sizes)
    assert out.status.tolist() == expected.status.tolist()
    assert out.tokens.tolist() == expected.tokens.tolist()
    assert [column.dtype for column in out] == [column.dtype for column in expected]
    torch.testing.assert_close(out.logprobs, expected.logprobs, rtol=1e-6, atol=1e-6, equal_nan=True)
    return out


@QUICK
@given(batches(), st.sampled_from(SMALL))
def test_random_rows(batch: tuple[np.ndarray, list[dict]], sizes: Sizes) -> None:
    assert_same(torch.from_numpy(batch[0]), columns(batch[1]), sizes)


@QUICK
@given(batches(penalised=True), st.sampled_from(SMALL))
def test_random_rows_with_a_penalty(batch: tuple[np.ndarray, list[dict]], sizes: Sizes) -> None:
    assert_same(torch.from_numpy(batch[0]), columns(batch[1]), sizes)


@st.composite
def long_rows(draw: st.DrawFn) -> tuple[torch.Tensor, dict[str, torch.Tensor], Sizes]:
    """Of up to 250 tokens: on a grid, so that there are ties at every threshold, or not; flat or steep."""
    seed, vocab = draw(st.integers(0, 2**31)), draw(st.integers(30, 250))
    scale, grid = draw(st.sampled_from([0.0, 0.2, 1.0, 4.0, 20.0])), draw(st.sampled_from([0, 1, 4, 16]))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, vocab, generator=generator) * scale + draw(st.sampled_from([0.0, -50.0, 1000.0]))
    if grid:
        logits = (logits * grid).round() / grid
    logits[torch.rand(2, vocab, generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.98]))] = -INF
    row = {
        "temperature": draw(st.sampled_from([0.3, 1.0, 1.0, 2.5])),
        "top_k": draw(st.sampled_from([0, 0, 0, 1, 7, 50, 300])),
        "top_p": draw(st.sampled_from([1.0, 0.999, 0.9, 0.9, 0.5, 0.05])),
        "min_p": draw(st.sampled_from([0.0, 0.0, 0.02, 0.3])),
        "seed": seed,
    }
    return logits, columns([row | {"position": 0}, row | {"position": 1}]), draw(st.sampled_from(SMALL))


@settings(QUICK, max_examples=20)
@given(long_rows())
def test_long_rows(case: tuple[torch.Tensor, dict[str, torch.Tensor], Sizes]) -> None:
    assert_same(*case)


DENORMAL = 1e-41
ADVERSARIAL = {
    "all equal": [2.0] * 200,
    "all zeros of both signs": [0.0, -0.0] * 100,
    "one finite": [-INF] * 150 + [-7.0] + [-INF] * 49,
    "none": [-INF] * 200,
    "NaN": [1.0] * 150 + [NAN] + [0.5] * 49,
    "infinite": [1.0] * 150 + [INF] + [0.5] * 49,
    "denormal": [DENORMAL * (i % 3) - DENORMAL for i in range(200)],
    "huge": [3e38 if i % 7 else -3e38 for i in range(200)],
    "ties at every k": [float(i // 20) for i in range(200)],
    "falling": [-0.05 * i for i in range(200)],
    "rising": [0.05 * i for i in range(200)],
    "runs of nothing": [-INF if (i // 16) % 2 else 0.01 * i for i in range(200)],
    "one far above": [50.0] + [0.0] * 199,
    "a step where levels end": [0.0] + [-12.0] * 100 + [-12.5] * 99,
    "the heaviest side by side": [-9.0 - 0.01 * i for i in range(64)]
    + [0.05 * (i % 7) for i in range(16)]
    + [-9.0] * 120,
    "sums at which top-p stops": [-30.0] * 95 + [0.0] * 10 + [-30.0] * 95,
}
HARD = [
    *MIXED,
    {"top_k": 1},
    {"top_k": 199},
    {"top_k": 2**31 - 1},
    {"top_k": 20, "top_p": 0.5},
    {"top_p": 1e-40},
    {"top_p": 1e-6},
    {"top_p": 1 - 2**-24},
    {"top_p": 0.9, "temperature": 1e-30},
    {"top_p": 0.9, "temperature": 1e30},
    {"top_p": 0.9, "temperature": 1e-7},
    {"temperature": 1e-38},
    {"min_p": 1.0},
    {"min_p": 1e-38},
    {"top_p": 0.97, "min_p": 0.01},
]


def against_reference(name: str, hard: list[dict], sizes: Sizes) -> None:
    logits = torch.tensor([ADVERSARIAL[name]] * len(hard))
    assert_same(logits, columns([row | {"seed": 5, "position": i} for i, row in enumerate(hard)]), sizes)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_rows(name: str) -> None:
    """Half of the settings each, as a row takes a fifth of a second."""
    against_reference(name, HARD[::2], SMALL[1])
    against_reference(name, HARD[1::2], SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [*SMALL, SIZES], ids=["tiny", "small", "middling", "real"])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_rows_under_all_settings(name: str, sizes: Sizes) -> None:
    against_reference(name, HARD, sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_real_sizes_dtypes_and_strides(dtype: torch.dtype) -> None:
    """Several tiles, a vocabulary that is no multiple of anything, rows of a wider tensor, buffers that overflow."""
    wide = torch.randn(len(MIXED), 2, 5003, generator=torch.Generator().manual_seed(2)) * 3
    logits = wide.to(dtype)[:, 1]
    rows = columns([row | {"seed": i, "position": 7} for i, row in enumerate(MIXED)])
    out = assert_same(logits, rows)
    transposed = logits.t().contiguous().t()
    assert transposed.stride(1) != 1
    assert on_device(transposed, rows).tokens.tolist() == out.tokens.tolist()


def test_more_tokens_in_question_than_the_buffer_holds() -> None:
    logits = torch.zeros(1, 40_000)
    logits[0, 12_345] = 1.0
    assert SIZES.capacity < logits.shape[1]
    assert_same(logits, columns([{"top_p": 0.4, "seed": 1}]), replace(SIZES, pool=4096))


class Spy:
    """Notes what a kernel is launched with, and launches it."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.seen: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch_it(*arguments: Any, **named: Any) -> None:
            given = dict(zip(self.kernel.arg_names, arguments, strict=False))
            self.seen.append({name: x.clone() for name, x in given.items() if isinstance(x, torch.Tensor)})
            self.kernel[grid](*arguments, **named)

        return launch_it


NARROW = Sizes(tile=512, capacity=2048, chunk=512, sample=1024)


@pytest.mark.parametrize(("top_p", "temperature"), [(0.9, 1.0), (0.5, 0.8), (0.99, 1.5)])
def test_top_p_of_flat_logits_leaves_few_tokens_in_question(
    top_p: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies between two levels, a fifth to half of all tokens, is narrowed to what a sample leaves in doubt."""
    finish = Spy(launch.finish)
    monkeypatch.setattr(launch, "finish", finish)
    logits = torch.randn(1, 8000, generator=torch.Generator().manual_seed(7))
    assert_same(logits, columns([{"top_p": top_p, "temperature": temperature, "seed": 2}]), NARROW)
    assert 0 < finish.seen[0]["count"] < 1100


def unseen(vocab: int) -> np.ndarray:
    """The tokens that the sample leaves out."""
    apart = vocab // NARROW.sample
    four = np.arange(NARROW.sample) // 4
    sampled = (four * apart + np.minimum(four & 15, apart - 1)) * 4 + np.arange(NARROW.sample) % 4
    return np.setdiff1d(np.arange(vocab), sampled)


@pytest.mark.parametrize("lower", [True, False])
def test_a_sample_that_misleads_costs_time_alone(lower: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that are looked at are all below the cut, or all above it; the others make up for them."""
    seen: list[object] = []
    words_from = finish_module.words_from
    monkeypatch.setattr(finish_module, "words_from", Counted(words_from, seen))
    vocab = 4096
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(8)) * 0.1
    logits[0, unseen(vocab)] += 2.0 if lower else -1.0
    assert_same(logits, columns([{"top_p": 0.5, "seed": 3}]), NARROW)
    assert len(seen) == vocab // NARROW.tile  # all tiles are scored


def test_a_sample_that_sees_none_of_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """In more groups than are read. The bounds may be anywhere; the token is the right one."""
    finish = Spy(launch.finish)
    monkeypatch.setattr(launch, "finish", finish)
    vocab, near = 4096, 2500
    logits = torch.full((1, vocab), -40.0)
    logits[0, unseen(vocab)[:near]] = torch.linspace(-1.5, 0, near)
    assert_same(logits, columns([{"top_p": 0.5, "seed": 3}]), NARROW)
    assert finish.seen[0]["pending"] == choose_module.BY_TILE


@pytest.mark.parametrize(("head", "doubt"), [(10, True), (9, False)])
def test_few_tokens_are_found_without_the_mass_of_all(head: int, doubt: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes a second read. A rough one is enough, unless the sum at which top-p stops is close to a token's."""
    finish, calls = Spy(launch.finish), list[object]()
    monkeypatch.setattr(launch, "finish", finish)
    monkeypatch.setattr(finish_module, "mass_of_row", Counted(finish_module.mass_of_row, calls))
    logits = torch.randn(1, 4000, generator=torch.Generator().manual_seed(9)) - 31
    logits[0, 1000 + 37 * torch.arange(head)] = 1.0
    assert_same(logits, columns([{"top_p": 0.5, "seed": 3}]), NARROW)
    assert finish.seen[0]["pending"] == choose_module.BY_TOKEN
    assert finish.seen[0]["count"] == head
    assert bool(calls) == doubt


class Counted:
    """A function of a kernel's, whose calls are noted."""

    def __init__(self, function: Any, calls: list[object]) -> None:
        self.function, self.calls = function, calls

    def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return self.function(*arguments)


def test_a_row_is_the_same_whatever_the_batch() -> None:
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(3)) * 2
    logits[3, 77] = NAN
    rows = columns([MIXED[i] | {"seed": i, "position": 4} for i in range(6)])
    together = on_device(logits, rows, SMALL[0])
    for i in (5, 0, 3, 2):
        alone = on_device(logits[i : i + 1], {name: column[i : i + 1] for name, column in rows.items()}, SMALL[0])
        for one, all_of_them in zip(alone, together, strict=True):
            assert one.numpy().tobytes() == all_of_them[i : i + 1].numpy().tobytes()


def test_what_was_in_the_memory_before_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value of the workspace and the output that is read has been written in the same call."""
    logits = torch.randn(len(MIXED), 300, generator=torch.Generator().manual_seed(4)) * 2
    rows = columns([row | {"listed": [i, 5, 299], "repetition_penalty": 1.3} for i, row in enumerate(MIXED)])
    clean = assert_same(logits, rows, SMALL[1])
    empty = torch.empty

    def dirty(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        made = empty(*shape, dtype=dtype, device=device)
        return made.fill_(NAN if dtype.is_floating_point else 0x55555555)

    monkeypatch.setattr(torch, "empty", dirty)
    out = on_device(logits, rows, SMALL[1])
    assert all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(out, clean, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -1.0},
        {"temperature": NAN},
        {"temperature": INF},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": NAN},
        {"min_p": -0.1},
        {"min_p": NAN},
        {"position": -1},
        {"repetition_penalty": 0.0, "listed": [1]},
        {"repetition_penalty": INF, "listed": [1]},
        {"repetition_penalty": 1.5, "listed": [1, 40]},
        {"repetition_penalty": 1.5, "listed": [1, -2]},
    ],
)
def test_a_setting_that_cannot_be_refused_is_reported_in_its_row(change: dict) -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(6))
    rows = columns([{"listed": [2], "top_p": 0.9}, {"listed": [2]} | change, {"listed": [2], "top_k": 3}])
    out = on_device(logits, rows, SMALL[0])
    assert out.status.tolist() == [SampleStatus.OK, SampleStatus.INVALID, SampleStatus.OK]
    assert out.tokens[1] == -1 and out.logprobs[1].isnan()
    rows = {name: column[[0, 2]] for name, column in rows.items()}
    assert out.tokens[[0, 2]].tolist() == sample_rows(logits[[0, 2]], **rows, backend="torch").tokens.tolist()


class Recorder:
    """Stands where a kernel stands: notes what a launch would have compiled it for."""

    def __init__(self) -> None:
        self.constants: list[dict[str, object]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Recorder:
        return self

    def __call__(self, *args: object, **constants: object) -> None:
        self.constants.append(constants)


def test_all_vocabularies_share_their_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each would take seconds to compile."""
    kernels = {name: Recorder() for name in ("scan", "choose", "draw", "finish")}
    for name, kernel in kernels.items():
        monkeypatch.setattr(launch, name, kernel)
    for vocab in (2, 20, 300, 5000, 50257, 2**18):
        on_device(torch.zeros(1, vocab), columns([{}]))
    for kernel in kernels.values():
        assert len(kernel.constants) == 6 and all(one == kernel.constants[0] for one in kernel.constants)


def test_no_rows() -> None:
    assert [column.shape for column in on_device(torch.empty(0, 5), columns([{}] * 0))] == [(0,)] * 3


@triton.jit
def every_function(y, x, words, keys, seed, position, out, size, N: tl.constexpr):
    at = tl.program_id(0) * N + tl.arange(0, N)
    value = tl.load(y + at)
    tl.store(out + at, exact_exp(value))
    tl.store(out + size + at, exact_log(tl.load(x + at)))
    tl.store(out + 2 * size + at, gumbel(tl.load(words + at).to(tl.uint32, bitcast=True)))
    tl.store(out + 3 * size + at, gumbel_at(tl.load(seed), tl.load(position), at))
    tl.store(out + 4 * size + at, gumbel(words_from(tl.load(seed), tl.load(position), tl.program_id(0) * N, N)))
    tl.store(out + 5 * size + at, from_key(ordered_key(value)))
    tl.store(keys + at, ordered_key(value).to(tl.int64))
    tl.store(keys + size + at, exact_mass(value))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**63 - 1))
@example(seed=-1, position=2**32)
def test_arithmetic_is_the_reference_s_bit_for_bit(seed: int, position: int) -> None:
    """On 200,000 values each, the ends of their ranges among them."""
    size, chunk = 204_800, 8192
    rng = np.random.default_rng(position % 1000)
    y = -rng.exponential(15, size).astype(np.float32)
    y[:6] = [0, -0.0, -87, -87.01, -np.inf, -1e-40]
    y[6:1030] = np.linspace(-30, -33, 1024)  # where masses end
    x = np.exp(rng.uniform(-87, 88, size)).astype(np.float32)
    words = rng.integers(0, 2**32, size, dtype=np.uint32)
    words[:6] = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2714937024]  # the last is the noise 0
    out, keys = torch.empty(6, size), torch.empty(2, size, dtype=torch.int64)
    arrays = [torch.from_numpy(a) for a in (y, x, words.view(np.int32))]
    seeds = [torch.tensor([value], dtype=torch.int64) for value in (seed, position)]
    every_function[(size // chunk,)](*arrays, keys, *seeds, out, size, N=chunk)
    noise = philox.gumbel_noise(*(np.array([value], dtype=np.int64) for value in (seed, position)), size)[0]
    expected = [elementary.exp(y), elementary.log(x), philox._gumbel(words), noise, noise, y + np.float32(0)]
    for ours, reference in zip(out.numpy(), expected, strict=True):
        assert ours.tobytes() == reference.tobytes()
    assert (keys[1].numpy() == host._mass(elementary.exp(y))).all()
    order = np.argsort(y + np.float32(0), kind="stable")
    assert (np.diff(keys[0].numpy()[order]) >= 0).all() and math.isfinite(out[2].max())


@triton.jit
def both_scores(words, ys, exact, bound, N: tl.constexpr):
    at = tl.arange(0, N)
    word = tl.load(words + at).to(tl.uint32, bitcast=True)
    y = tl.load(ys + at)
    tl.store(exact + at, y + gumbel(word))
    tl.store(bound + at, score_bound(arrival(word, y)))


def test_the_bound_of_scores_is_above_them_and_near_where_noise_is_large() -> None:
    size = 2**17
    y = np.random.default_rng(4).uniform(-60, 0, size).astype(np.float32)
    words = np.random.default_rng(3).integers(0, 2**32, size, dtype=np.uint32)
    words[: 2**12] = np.arange(2**12)
    words[2**12 : 2**13] = ~np.arange(2**12, dtype=np.uint32)
    words[2**13 : 2**13 + 32] = 2 ** np.arange(32, dtype=np.uint64)
    exact, bound = torch.empty(size), torch.empty(size)
    both_scores[(1,)](torch.from_numpy(words.view(np.int32)), torch.from_numpy(y), exact, bound, N=size)
    above = (bound - exact).numpy()
    assert above.min() > -1e-4 / 2
    large = (words > 2**16) & (words < 2**24)
    assert above[large].max() < 2**-9 + 1e-4
