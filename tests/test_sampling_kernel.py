"""``sample_rows``, in NumPy and compiled, against a naive version of its rule, on random and adversarial rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds2ds.kernels import SampleOutput, SampleStatus, sample_rows
from ds2ds.kernels.sampling.philox import gumbel_noise
from ds2ds.native import sampling as compiled
from ds2ds.native.operations import available

QUICK = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
INF = float("inf")
NAN = float("nan")
DTYPES = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "seed": torch.int64,
    "position": torch.int64,
    "repetition_penalty": torch.float32,
}
DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0, "position": 0}


def columns(rows: list[dict]) -> dict[str, torch.Tensor]:
    """The per-row settings as the tensors that ``sample_rows`` takes."""
    rows = [DEFAULTS | row for row in rows]
    penalised = any("listed" in row for row in rows)
    if penalised:
        rows = [{"repetition_penalty": 1.0} | row for row in rows]
    out = {
        name: torch.tensor([row[name] for row in rows], dtype=dtype)
        for name, dtype in DTYPES.items()
        if penalised or name in DEFAULTS
    }
    if penalised:
        lists = [row.get("listed", []) for row in rows]
        width = max(map(len, lists))
        out["penalty_tokens"] = torch.tensor([[*ids, *[-1] * (width - len(ids))] for ids in lists]).long()
    return out


draw: Callable[..., SampleOutput] = sample_rows


@pytest.fixture(autouse=True, scope="module", params=["NumPy", "compiled"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything is drawn in both ways."""
    if request.param == "compiled" and not available():
        pytest.skip("there is no C compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "draw", compiled.sample_rows if request.param == "compiled" else sample_rows)
        yield


def sample(logits: torch.Tensor, rows: list[dict]) -> SampleOutput:
    return draw(logits, **columns(rows))


def draws(logits: list[float], count: int, **row: float) -> list[int]:
    """The tokens of one row at positions 0 ... count - 1."""
    rows = [{**row, "position": i} for i in range(count)]
    return sample(torch.tensor([logits] * count), rows).tokens.tolist()


def naive_kept(logits: np.ndarray, row: dict) -> tuple[list[int], dict[int, np.float32]]:
    """The tokens that may be drawn, in rank order, and the tempered logit of each: sorts, loops, big integers."""
    row = DEFAULTS | row
    x = {}
    for token, logit in enumerate(logits):
        if token in row.get("listed", []):
            penalty = np.float32(row["repetition_penalty"])
            logit = logit / penalty if logit > 0 else logit * penalty
        if logit > -np.inf:
            x[token] = logit
    kept = sorted(x, key=lambda token: (-x[token], token))
    if row["temperature"] == 0:
        return kept[:1], x
    y = {token: (x[token] - x[kept[0]]) / np.float32(row["temperature"]) for token in kept}
    if row["top_k"] > 0:
        kept = kept[: row["top_k"]]
    weight = {token: np.exp(y[token]) for token in kept}
    top_p = np.float32(row["top_p"])
    if top_p < 1:
        mass = {token: int(float(weight[token]) * 2**44) for token in kept}
        target = math.ceil(float(top_p) * sum(mass.values()))
        before, nucleus = 0, []
        for token in kept:
            if before < target:
                nucleus.append(token)
            before += mass[token]
        kept = nucleus
    return [token for token in kept if weight[token] >= np.float32(row["min_p"])], y


def naive_token(logits: np.ndarray, row: dict) -> int:
    kept, y = naive_kept(logits, row)
    if not kept:
        return -1
    seed, position = np.array([row.get("seed", 0)]), np.array([row.get("position", 0)])
    noise = gumbel_noise(seed, position, len(logits))[0]
    return max(kept, key=lambda token: (y[token] + noise[token], -token))


# A grid with few values makes ties, at the k-th value too; the rest are the values that break arithmetic.
logit = st.one_of(
    st.integers(-6, 6).map(lambda n: n / 2),
    st.floats(-30, 30, width=32),
    st.sampled_from([-INF, -INF, 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38]),
)
setting = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.1, 0.7, 1.0, 1.0, 3.0, 1e-30, 1e30]),
        "top_k": st.sampled_from([0, 0, 1, 2, 3, 5, 8, 2**31 - 1]),
        "top_p": st.sampled_from([1.0, 1.0, 0.999999, 0.9, 0.5, 0.25, 1e-6, 1e-40]),
        "min_p": st.sampled_from([0.0, 0.0, 1e-9, 0.05, 0.5, 1.0]),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "position": st.integers(0, 2**63 - 1),
    }
)


@st.composite
def batches(draw: st.DrawFn, penalised: bool = False) -> tuple[np.ndarray, list[dict]]:
    count, vocab = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    logits = draw(st.lists(logit, min_size=count * vocab, max_size=count * vocab))
    rows = draw(st.lists(setting, min_size=count, max_size=count))
    if penalised:
        for row in rows:
            row["repetition_penalty"] = draw(st.sampled_from([1.0, 1.3, 0.5, 2.0, 1e30]))
            row["listed"] = draw(st.lists(st.integers(0, vocab - 1), max_size=8))
    return np.array(logits, dtype=np.float32).reshape(count, vocab), rows


@QUICK
@given(batches(), st.booleans())
def test_the_token_is_that_of_the_naive_rule(batch: tuple[np.ndarray, list[dict]], same_seed: bool) -> None:
    logits, rows = batch
    if same_seed:
        for row in rows:
            row |= {"seed": 1, "position": 2}
    with np.errstate(all="ignore"):
        expected = [naive_token(x, row) for x, row in zip(logits, rows, strict=True)]
    out = sample(torch.from_numpy(logits), rows)
    assert out.tokens.tolist() == expected
    empty = [bool((x == -np.inf).all()) for x in logits]
    assert [s == SampleStatus.EMPTY for s in out.status] == empty


@QUICK
@given(batches(penalised=True))
def test_repetition_penalty_comes_first_and_counts_a_token_once(batch: tuple[np.ndarray, list[dict]]) -> None:
    logits, rows = batch
    tensor = torch.from_numpy(logits.copy())
    out = sample(tensor, rows)
    assert np.array_equal(tensor.numpy(), logits), "the logits were modified"
    with np.errstate(all="ignore"):
        for row, x, token, status in zip(rows, logits, out.tokens.tolist(), out.status.tolist(), strict=True):
            if status == SampleStatus.NOT_FINITE:  # a large logit divided by 0.5
                assert row["repetition_penalty"] == 0.5 and x.max() > 2e38
            else:
                assert token == naive_token(x, row)


@QUICK
@given(batches(penalised=True))
def test_the_log_probability_is_of_the_raw_logits(batch: tuple[np.ndarray, list[dict]]) -> None:
    logits, rows = batch
    logits = np.clip(logits, -np.inf, 1000.0)
    out = sample(torch.from_numpy(logits), rows)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=-1)
    for row, (token, logprob) in enumerate(zip(out.tokens.tolist(), out.logprobs.tolist(), strict=True)):
        if token < 0:
            assert math.isnan(logprob)
        else:
            assert logprob == pytest.approx(expected[row, token].item(), rel=1e-6, abs=1e-7)
    assert (out.tokens.dtype, out.logprobs.dtype, out.status.dtype) == (torch.int64, torch.float32, torch.int32)


def same(a: SampleOutput, b: SampleOutput) -> bool:
    """Equal bit for bit, NaN included."""
    return all(x.numpy().tobytes() == y.numpy().tobytes() for x, y in zip(a, b, strict=True))


@QUICK
@given(batches(), st.randoms(use_true_random=False), st.booleans())
def test_a_row_draws_the_same_whatever_the_batch(
    batch: tuple[np.ndarray, list[dict]], random: Random, spoilt: bool
) -> None:
    logits, rows = torch.from_numpy(batch[0]), batch[1]
    if spoilt:
        logits[0, 0] = NAN
    together = sample(logits, rows)
    order = [random.randrange(len(rows)) for _ in range(2 * len(rows))]
    shuffled = sample(logits[order], [rows[i] for i in order])
    assert same(shuffled, SampleOutput(*(column[order] for column in together)))
    for i, row in enumerate(rows):
        assert same(sample(logits[i : i + 1], [row]), SampleOutput(*(column[i : i + 1] for column in together)))


MIXED = [
    {"temperature": 0.0},
    {"top_k": 50},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.01},
    {"top_p": 0.9},
    {"top_p": 0.99, "temperature": 0.7},
    {"min_p": 0.05},
    {},
    {"top_k": 6000},
]


@pytest.mark.parametrize("scale", [4.0, 0.1, 0.0])
def test_a_large_vocabulary_follows_the_naive_rule_too(scale: float) -> None:
    rng = np.random.default_rng(3)
    # Rounded, so that there are ties at every threshold; some rows in one chunk, some not.
    logits = (np.round(rng.standard_normal((len(MIXED), 9001)) * 8) / 8 * scale).astype(np.float32)
    logits[:, rng.integers(0, 9001, 500)] = -np.inf
    for position in range(3):
        rows = [row | {"seed": 11, "position": position} for row in MIXED]
        out = sample(torch.from_numpy(logits), rows)
        assert out.tokens.tolist() == [naive_token(x, row) for x, row in zip(logits, rows, strict=True)]


def test_a_real_vocabulary_alone_and_in_a_batch() -> None:
    logits = torch.randn(len(MIXED), 50257, generator=torch.Generator().manual_seed(1)) * 3
    rows = [row | {"seed": i, "position": 9} for i, row in enumerate(MIXED)]
    together = sample(logits, rows)
    for i, row in enumerate(rows):
        assert same(sample(logits[i : i + 1], [row]), SampleOutput(*(column[i : i + 1] for column in together)))
    assert same(together, sample(logits, rows))


def test_exactly_k_survive_with_ties_to_the_lower_id() -> None:
    # 3 above, then 100 tied at the k-th value, of which 7 may stay; block maxima give a bound (V / 16 > k).
    logits = [0.0] * 400
    for token in (390, 17, 200):
        logits[token] = 1.0
    tied = list(range(3, 300, 3))[:99]
    for token in tied:
        logits[token] = 0.5
    seen = set(draws(logits, 2000, top_k=10))
    assert seen == {390, 17, 200, *tied[:7]}


def test_top_p_keeps_the_token_that_crosses_it() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125])).tolist()
    assert set(draws(logits, 300, top_p=0.49)) == {0}
    assert set(draws(logits, 300, top_p=0.51)) == {0, 1}
    assert set(draws(logits, 300, top_p=0.76)) == {0, 1, 2}
    # Exactly reached is enough: two equal halves of four.
    assert set(draws([2.0] * 4, 300, top_p=0.5)) == {0, 1}
    assert set(draws([2.0] * 4, 300, top_p=1e-30)) == {0}
    assert set(draws([2.0] * 4, 300, top_p=0.9999999)) == {0, 1, 2, 3}


def test_top_p_is_of_the_mass_that_top_k_left() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1])).tolist()
    assert set(draws(logits, 400, top_p=0.55)) == {0, 1}
    # Among the first two the likeliest has 4/7 of the mass.
    assert set(draws(logits, 400, top_p=0.55, top_k=2)) == {0}


def test_a_row_with_fewer_tokens_than_its_neighbour_is_not_padded_with_mass() -> None:
    # Both rows are ranked together, ten wide. 0.73 and 0.27 are left of the second, so the first of them crosses 0.5.
    logits = torch.stack([torch.zeros(10), torch.full((10,), -INF)])
    logits[1, 0], logits[1, 5] = 1.0, 0.0
    rows = [{"top_k": 9, "top_p": 0.5, "position": i // 2} for i in range(200)]
    assert set(sample(logits.repeat(100, 1), rows).tokens[1::2].tolist()) == {0}


@pytest.mark.parametrize("row", [{}, {"top_k": 4}, {"top_p": 0.999}, {"min_p": 1e-3}])
def test_equal_scores_go_to_the_lower_id(row: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    # Noise that undoes the logits, whichever tokens it is asked for.
    noise = np.array([[9.0, 2.0, 0.0, 1.0, 2.0]], dtype=np.float32)
    monkeypatch.setattr("ds2ds.kernels.sampling.host.gumbel_estimate", lambda seed, position, vocab: noise)
    monkeypatch.setattr("ds2ds.kernels.sampling.host.gumbel_noise_at", lambda seed, position, ids: noise[0, ids])
    logits = torch.tensor([[-INF, 1.0, 3.0, 2.0, 1.0]])
    assert sample_rows(logits, **columns([row])).tokens.item() == 1


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05])).tolist()
    assert set(draws(logits, 400, min_p=0.25)) == {0, 1, 2}
    assert set(draws(logits, 400, min_p=0.35)) == {0, 1}
    assert set(draws([1.0, 3.0, 3.0, 2.9], 400, min_p=1.0)) == {1, 2}


def test_minus_infinity_is_left_out_of_every_statistic() -> None:
    logits = [-INF, 1.0, -INF, 1.0, -INF, -INF, 1.0, -INF]
    assert set(draws(logits, 300)) == {1, 3, 6}
    assert set(draws(logits, 300, top_k=5)) == {1, 3, 6}
    assert set(draws(logits, 300, top_k=2)) == {1, 3}
    assert set(draws(logits, 300, top_p=0.5)) == {1, 3}
    assert set(draws(logits, 300, temperature=100.0, min_p=0.9)) == {1, 3, 6}
    one = [-INF] * 20 + [-7.0] + [-INF] * 20
    for row in ({}, {"top_k": 3}, {"top_p": 0.1}, {"min_p": 1.0}, {"temperature": 0.0}):
        out = sample(torch.tensor([one]), [row])
        assert (out.tokens.item(), out.logprobs.item(), out.status.item()) == (20, 0.0, SampleStatus.OK)


def test_greedy_takes_the_lowest_id_after_the_penalty() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 3.0], [1.0, 5.0, 5.0, 3.0], [-1.0, -2.0, -3.0, -INF]])
    rows = [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 2.0, "listed": [1, 1, 2, 1]},
        {"temperature": 0.0, "repetition_penalty": 4.0, "listed": [0, 3]},
    ]
    # 5 / 2 = 2.5 < 3, once however often it is listed; -1 * 4 < -2.
    assert sample(logits, rows).tokens.tolist() == [1, 3, 1]


@pytest.mark.parametrize("row", MIXED)
def test_bad_rows_are_reported_alone(row: dict) -> None:
    logits = torch.randn(6, 33, generator=torch.Generator().manual_seed(0))
    good = sample(logits, [row] * 6)
    logits[1, 30], logits[2], logits[4, 0], logits[5, 3] = NAN, -INF, INF, -INF
    logits[4, 7] = NAN
    out = sample(logits, [row] * 6)
    assert out.status.tolist() == [0, 1, 2, 0, 1, 0]
    assert out.tokens[[1, 2, 4]].tolist() == [-1, -1, -1]
    assert out.logprobs.isnan().tolist() == [False, True, True, False, True, False]
    assert out.tokens[[0, 3]].tolist() == good.tokens[[0, 3]].tolist()


@pytest.mark.parametrize("row", MIXED)
def test_infinity_and_a_penalty_that_overflows_have_no_softmax(row: dict) -> None:
    infinite = torch.zeros(1, 20)
    infinite[0, 4] = INF
    assert sample(infinite, [row]).status.item() == SampleStatus.NOT_FINITE
    huge = torch.full((1, 20), 3e38)
    overflow = row | {"repetition_penalty": 0.1, "listed": [2]}
    assert sample(huge, [overflow]).status.item() == SampleStatus.NOT_FINITE
    vanish = row | {"repetition_penalty": 10.0, "listed": list(range(20))}
    assert sample(-huge, [vanish]).status.item() == SampleStatus.EMPTY


def test_the_largest_vocabulary_does_not_overflow_the_masses() -> None:
    logits = torch.zeros(4, 2**18)
    rows = [{"top_p": 0.5, "position": i} for i in range(3)] + [{"top_k": 2**18 - 1, "top_p": 0.25}]
    out = sample(logits, rows)
    assert out.tokens[:3].max() < 2**17 and out.tokens[3] < 2**16
    assert out.logprobs.tolist() == pytest.approx([-18 * math.log(2)] * 4, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_converted_exactly(dtype: torch.dtype) -> None:
    logits = (torch.randn(len(MIXED), 300, generator=torch.Generator().manual_seed(5)) * 4).to(dtype)
    assert same(sample(logits, MIXED), sample(logits.float(), MIXED))


def test_any_strides() -> None:
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(5)) * 4
    wide = torch.empty(8, 3, 300)
    wide[:, 1] = logits
    expected = sample(logits, MIXED)
    assert same(sample(wide[:, 1], MIXED), expected)
    assert same(sample(logits.t().contiguous().t(), MIXED), expected)
    assert same(sample(logits[:1].expand(8, 300), [{}] * 8), sample(logits[:1].repeat(8, 1), [{}] * 8))


def test_no_rows() -> None:
    out = sample(torch.empty(0, 5), [])
    assert [column.shape for column in out] == [(0,)] * 3


# Probabilities from 0.6 down to 1e-5, out of order so that no path sees them sorted.
PROBABILITIES = np.array([1e-5, 0.3, 3e-5, 1e-4, 0.05, 1e-3, 0.6, 3e-4, 0.02, 5e-3, 0.02, 2e-3])
PROBABILITIES /= PROBABILITIES.sum()
OF_PROBABILITIES_KEPT: list[tuple[dict, int]] = [
    ({}, 12),
    ({"top_k": 9}, 9),
    ({"top_p": 0.99}, 5),
    ({"min_p": 1e-3}, 8),
    ({"top_k": 11, "top_p": 0.9999, "min_p": 1e-6}, 10),
    ({"temperature": 0.5}, 12),
    ({"temperature": 3.0, "top_k": 11}, 11),
]
"""Settings of a row, and how many of these tokens they keep."""
DRAWS = 200_000


def goodness_of_fit(counts: np.ndarray, p: np.ndarray) -> float:
    """Pearson's statistic in standard deviations above its mean.

    Mean k - 1; variance 2 (k - 1) + (sum 1/p - k^2 - 2k + 2) / n, exact for any expected counts (Haldane,
    1937), so that cells with an expectation of two draws need no pooling.
    """
    k, n = len(p), counts.sum()
    statistic = ((counts - n * p) ** 2 / (n * p)).sum()
    variance = 2 * (k - 1) + ((1 / p).sum() - k * k - 2 * k + 2) / n
    return (statistic - (k - 1)) / math.sqrt(variance)


def test_goodness_of_fit_can_tell() -> None:
    counts = np.random.default_rng(0).multinomial(DRAWS, PROBABILITIES)
    assert goodness_of_fit(counts, PROBABILITIES) < 6
    tilted = PROBABILITIES * np.where(PROBABILITIES < 1e-4, 4.0, 1.0)
    assert goodness_of_fit(np.random.default_rng(0).multinomial(DRAWS, tilted / tilted.sum()), PROBABILITIES) > 6


@pytest.mark.parametrize("by", ["position", "seed"])
@pytest.mark.parametrize(("row", "kept"), OF_PROBABILITIES_KEPT)
def test_draws_follow_the_distribution(row: dict, kept: int, by: str) -> None:
    one = columns([row])
    rows = {name: column.expand(DRAWS).contiguous() for name, column in one.items()} | {by: torch.arange(DRAWS)}
    logits = torch.from_numpy(np.log(PROBABILITIES) + 3.0).float()
    tokens = draw(logits.expand(DRAWS, -1), **rows).tokens.numpy()

    p = PROBABILITIES ** (1 / row.get("temperature", 1.0))
    rank = np.lexsort((np.arange(len(p)), -p))
    survivors = np.sort(rank[:kept])
    counts = np.bincount(tokens, minlength=len(p))
    assert counts.sum() == counts[survivors].sum()
    assert naive_kept(logits.numpy(), row)[0] == rank[:kept].tolist()
    p = p[survivors] / p[survivors].sum()
    assert goodness_of_fit(counts[survivors], p) < 6


GOOD = columns([{}, {}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": torch.tensor([1.0, -1.0])}, r"temperature must be >= 0 and finite, got -1.0 in row 1"),
        ({"temperature": torch.tensor([NAN, 1.0])}, r"temperature must be >= 0 and finite, got nan in row 0"),
        ({"temperature": torch.tensor([INF, 1.0])}, r"temperature must be .* got inf"),
        ({"top_k": torch.tensor([0, -2], dtype=torch.int32)}, r"top_k must be >= 0, got -2 in row 1"),
        ({"top_p": torch.tensor([1.5, 1.0])}, r"top_p must be in \(0, 1\], got 1.5 in row 0"),
        ({"top_p": torch.tensor([1.0, 0.0])}, r"top_p must be in \(0, 1\], got 0.0 in row 1"),
        ({"min_p": torch.tensor([1.0, 1.25])}, r"min_p must be in \[0, 1\], got 1.25 in row 1"),
        ({"position": torch.tensor([-1, 0])}, r"position must be >= 0, got -1 in row 0"),
        ({"seed": torch.tensor([1])}, r"seed must have shape \[2\], got \[1\]"),
        ({"top_k": torch.tensor([1, 2])}, r"top_k must be torch.int32, got torch.int64"),
        ({"top_p": torch.ones(2, dtype=torch.float64)}, r"top_p must be torch.float32, got torch.float64"),
        ({"logits": torch.zeros(5)}, r"logits must be \[B, V\] .* got shape \(5,\)"),
        ({"logits": torch.zeros(2, 0)}, r"logits must be \[B, V\] .* got shape \(2, 0\)"),
        ({"logits": torch.zeros(2, 2**18 + 1)}, r"V <= 262144, got shape \(2, 262145\)"),
        ({"logits": torch.zeros(2, 5, dtype=torch.int64)}, r"logits must be float32.* got torch.int64"),
        ({"repetition_penalty": torch.ones(2)}, r"penalty_tokens is missing"),
        ({"penalty_tokens": torch.zeros(2, 1).long()}, r"repetition_penalty is missing"),
        ({"backend": "cuda"}, r"backend must be .* got 'cuda'"),
    ],
)
def test_bad_arguments(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_rows(**({"logits": torch.zeros(2, 5)} | GOOD | change))


@pytest.mark.parametrize(
    ("penalty", "listed", "message"),
    [
        ([0.0, 1.0], [[0], [0]], r"repetition_penalty must be > 0 and finite, got 0.0 in row 0"),
        ([1.0, INF], [[0], [0]], r"repetition_penalty must be > 0 and finite, got inf in row 1"),
        ([1.0, 1.0], [[0, -1], [0, 5]], r"penalty_tokens must be in \[0, 5\), or -1 for padding, got 5 in row 1"),
        ([1.0, 1.0], [[0, -2], [0, 4]], r"penalty_tokens must be in \[0, 5\), .* got -2 in row 0"),
        ([1.0, 1.0], [[0, 1]], r"penalty_tokens must be torch.int64 \[2, N\].* got torch.int64 \[1, 2\]"),
    ],
)
def test_bad_penalties(penalty: list[float], listed: list[list[int]], message: str) -> None:
    extra = {"repetition_penalty": torch.tensor(penalty), "penalty_tokens": torch.tensor(listed)}
    with pytest.raises(ValueError, match=message):
        sample_rows(torch.zeros(2, 5), **GOOD, **extra)


def test_triton_needs_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        ValueError, match="backend 'triton' needs tensors on a CUDA device, got cpu; use backend='torch'"
    ):
        sample_rows(torch.zeros(2, 5), **GOOD, backend="triton")


def test_the_far_tail_is_drawn_as_often_as_it_should() -> None:
    """2,000 tokens of 1e-6 each: 400 of 200,000 draws. Noise that is cut off above would give none."""
    logits = torch.full((1, 2001), math.log(1e-6))
    logits[0, 0] = math.log(1 - 2e-3)
    rows = {name: column.expand(DRAWS).contiguous() for name, column in columns([{}]).items()}
    rows["position"] = torch.arange(DRAWS)
    tokens = sample_rows(logits.expand(DRAWS, -1), **rows).tokens
    drawn = int((tokens > 0).sum())
    assert abs(drawn - 400) < 5 * math.sqrt(400)
    assert len(set(tokens[tokens > 0].tolist())) > 300
