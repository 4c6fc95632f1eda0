"""Sampling where mutation testing found no test: docs/mutation.md."""

from __future__ import annotations

import warnings
import zlib

import numpy as np
import pytest
import torch
from test_sampling_kernel import GOOD, INF, NAN, columns, draws, sample

from ds2ds.errors import ConfigError
from ds2ds.generation.sampling import greedy_sample, sample_token
from ds2ds.kernels import SampleStatus, sample_rows
from ds2ds.kernels.sampling import host, philox
from ds2ds.kernels.sampling.elementary import exp, log
from ds2ds.kernels.sampling.philox import _gumbel, gumbel_estimate, gumbel_noise, gumbel_noise_at
from ds2ds.kernels.sampling.rows import MAX_VOCAB, Rows, check_shapes

# Errors, whole: what they name is what the caller has to go by.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": torch.tensor([1.0, -1.0])}, "temperature must be >= 0 and finite, got -1.0 in row 1"),
        ({"temperature": torch.tensor([INF, 1.0])}, "temperature must be >= 0 and finite, got inf in row 0"),
        ({"top_k": torch.tensor([0, -1], dtype=torch.int32)}, "top_k must be >= 0, got -1 in row 1"),
        ({"top_p": torch.tensor([1.5, 1.0])}, "top_p must be in (0, 1], got 1.5 in row 0"),
        ({"top_p": torch.tensor([NAN, 1.0])}, "top_p must be in (0, 1], got nan in row 0"),
        ({"top_p": torch.tensor([1.0, 0.0])}, "top_p must be in (0, 1], got 0.0 in row 1"),
        ({"min_p": torch.tensor([0.0, 1.5])}, "min_p must be in [0, 1], got 1.5 in row 1"),
        ({"min_p": torch.tensor([-0.5, 1.0])}, "min_p must be in [0, 1], got -0.5 in row 0"),
        ({"min_p": torch.tensor([0.5, NAN])}, "min_p must be in [0, 1], got nan in row 1"),
        ({"position": torch.tensor([0, -1])}, "position must be >= 0, got -1 in row 1"),
        ({"seed": torch.tensor([1])}, "seed must have shape [2], got [1]"),
        ({"seed": torch.zeros(2, 1, dtype=torch.int64)}, "seed must have shape [2], got [2, 1]"),
        ({"top_k": torch.tensor([1, 2])}, "top_k must be torch.int32, got torch.int64"),
        ({"logits": torch.zeros(5)}, "logits must be [B, V] with 1 <= V <= 262144, got shape (5,)"),
        ({"logits": torch.zeros(2, 0)}, "logits must be [B, V] with 1 <= V <= 262144, got shape (2, 0)"),
        ({"logits": torch.zeros(2, 1, 5)}, "logits must be [B, V] with 1 <= V <= 262144, got shape (2, 1, 5)"),
        (
            {"logits": torch.zeros(2, 5, dtype=torch.float64)},
            "logits must be float32, bfloat16 or float16, got torch.float64",
        ),
        (
            {"repetition_penalty": torch.ones(2)},
            "repetition_penalty and penalty_tokens go together: penalty_tokens is missing",
        ),
        (
            {"penalty_tokens": torch.zeros(2, 1).long()},
            "repetition_penalty and penalty_tokens go together: repetition_penalty is missing",
        ),
    ],
)
def test_what_is_wrong_with_the_arguments(change: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        sample_rows(**({"logits": torch.zeros(2, 5)} | GOOD | change))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("penalty", "listed", "message"),
    [
        (torch.tensor([1.0, -1.0]), [[0], [0]], "repetition_penalty must be > 0 and finite, got -1.0 in row 1"),
        (torch.tensor([0.0, 1.0]), [[0], [0]], "repetition_penalty must be > 0 and finite, got 0.0 in row 0"),
        (torch.tensor([1.0, INF]), [[0], [0]], "repetition_penalty must be > 0 and finite, got inf in row 1"),
        (torch.tensor([NAN, 1.0]), [[0], [0]], "repetition_penalty must be > 0 and finite, got nan in row 0"),
        (torch.ones(2, dtype=torch.float64), [[0], [0]], "repetition_penalty must be torch.float32, got torch.float64"),
        (torch.ones(3), [[0], [0]], "repetition_penalty must have shape [2], got [3]"),
        (
            torch.ones(2),
            [[4, -1], [0, 5]],
            "penalty_tokens must be in [0, 5), or -1 for padding, got 5 in row 1",
        ),
        (torch.ones(2), [[0, -2], [0, 4]], "penalty_tokens must be in [0, 5), or -1 for padding, got -2 in row 0"),
        (
            torch.ones(2),
            [[-1, -2, 9], [0, 4, 9]],
            "penalty_tokens must be in [0, 5), or -1 for padding, got -2 in row 0",
        ),
        (
            torch.ones(2),
            [[0, 1]],
            "penalty_tokens must be torch.int64 [2, N], padded with -1, got torch.int64 [1, 2]",
        ),
        (torch.ones(2), [0, 1], "penalty_tokens must be torch.int64 [2, N], padded with -1, got torch.int64 [2]"),
        (
            torch.ones(2),
            [[0.0], [1.0]],
            "penalty_tokens must be torch.int64 [2, N], padded with -1, got torch.float32 [2, 1]",
        ),
    ],
)
def test_what_is_wrong_with_the_penalties(penalty: torch.Tensor, listed: list, message: str) -> None:
    with pytest.raises(ValueError) as error:
        sample_rows(torch.zeros(2, 5), **GOOD, repetition_penalty=penalty, penalty_tokens=torch.tensor(listed))
    assert str(error.value) == message


def test_settings_at_the_ends_of_their_ranges_are_taken() -> None:
    ends = [
        {"temperature": 0.0, "min_p": 1.0, "top_p": 1.0},
        {"temperature": 3.4e38, "min_p": 0.0, "top_p": 1e-45, "top_k": 2**31 - 1},
        {"seed": -(2**63), "position": 2**63 - 1, "repetition_penalty": 1e-45, "listed": [0, -1]},
        {"seed": 2**63 - 1, "position": 0, "repetition_penalty": 3e38, "listed": [0, 4]},
    ]
    assert sample(torch.zeros(4, 5), ends).status.tolist() == [0, 0, 0, 0]
    check_shapes(torch.empty(1, MAX_VOCAB, device="meta"))
    check_shapes(torch.empty(1, 1, device="meta", dtype=torch.float16))
    assert sample(torch.tensor([[-7.0]]), [{}]).tokens.tolist() == [0]


def test_no_tokens_listed_is_no_penalty() -> None:
    logits = torch.tensor([[1.0, 2.0]])
    settings = columns([{"temperature": 0.0}])
    none = sample_rows(
        logits, **settings, repetition_penalty=torch.tensor([9.0]), penalty_tokens=torch.empty(1, 0, dtype=torch.int64)
    )
    assert none.tokens.tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.5}, "temperature must be >= 0, got -0.5"),
        ({"temperature": INF}, "temperature must be >= 0 and finite in float32, got inf"),
        ({"top_k": -1}, "top_k must be >= 0, got -1"),
        ({"top_p": 0.0}, "top_p must be in (0, 1], got 0.0"),
    ],
)
def test_what_is_wrong_with_the_settings_of_one_token(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        sample_token(torch.zeros(5), **settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(2, 5), "logits must be [V] or [1, V] with V >= 1, got shape (2, 5)"),
        (torch.zeros(1, 0), "logits must be [V] or [1, V] with V >= 1, got shape (1, 0)"),
        (torch.zeros(5, dtype=torch.bool), "logits must be floating point, got torch.bool"),
        ([0.0, 1.0], "logits must be a tensor, got list"),
        (torch.full((5,), -INF), "logits must leave a token to sample, got a row that holds nothing but -inf"),
        (torch.tensor([0.0, NAN]), "logits must leave a token to sample, got a row that holds NaN or +inf"),
    ],
)
def test_what_is_wrong_with_the_logits_of_one_token(logits: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        greedy_sample(logits)
    assert str(error.value) == message


def test_one_logit_is_a_row() -> None:
    assert greedy_sample(torch.zeros(1)) == greedy_sample(torch.zeros(1, 1)) == sample_token(torch.zeros(1)) == 0


def test_a_token_is_that_of_the_row_with_the_seed_drawn() -> None:
    """Which settings are off, and at which position: the same as spelled out in a row."""
    logits = torch.linspace(-1, 1, 50)
    for number in range(20):
        torch.manual_seed(number)
        token = sample_token(logits)
        torch.manual_seed(number)
        seed = int(torch.randint(2**63 - 1, (1,)))
        assert sample(logits[None], [{"seed": seed}]).tokens.tolist() == [token]


def test_the_codes_of_a_status_are_fixed() -> None:
    assert [(status.name, int(status)) for status in SampleStatus] == [
        ("OK", 0),
        ("NOT_FINITE", 1),
        ("EMPTY", 2),
        ("INVALID", 3),
    ]
    assert Rows._fields == ("temperature", "top_k", "top_p", "min_p", "seed", "position")


# The noise and the functions it is made of, to the bit.


def test_a_vocabulary_of_any_size_has_the_beginning_of_a_larger_ones_noise() -> None:
    seed, position = np.array([5, -1]), np.array([2**40, 0])
    whole = gumbel_noise(seed, position, 2**14 + 9)
    for size in (1, 2, 3, 4, 5, 2**14 - 1, 2**14, 2**14 + 1):
        some = gumbel_noise(seed, position, size)
        assert some.shape == (2, size) and some.dtype == np.float32
        assert np.array_equal(some, whole[:, :size])
    ids = np.array([[0, 3, 4, 2**14 + 8], [1, 2, 5, 2**14]])
    assert np.array_equal(gumbel_noise_at(seed, position, ids), np.take_along_axis(whole, ids, axis=1))
    assert np.abs(gumbel_estimate(seed, position, 2**14 + 9) - whole).max() < 1e-4


def test_the_size_of_the_pieces_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    seed, position = np.array([5, -1]), np.array([2**40, 0])
    whole = gumbel_noise(seed, position, 23)
    for size in (1, 4, 6, 23):
        monkeypatch.setattr(philox, "_PIECE", size)
        assert np.array_equal(gumbel_noise(seed, position, 23), whole)


def test_the_bits_are_what_they_were() -> None:
    """A seed means the same tokens for good, here and on a GPU: within the promised ulp is not enough."""
    every_exponent = np.arange(0x00800000, 0x7F800000, 6_007, dtype=np.uint32)
    around_sqrt_two = np.arange(0x3FB504F3 - 500, 0x3FB504F3 + 500, dtype=np.uint32)
    words = np.arange(0, 2**32, 15_013, dtype=np.uint32)
    for values, expected in (
        (exp(np.linspace(-90, 0, 300_001).astype(np.float32)), 0x78C4874C),
        (log(every_exponent.view(np.float32)), 0xB00B5D2B),
        (log(around_sqrt_two.view(np.float32)), 0xEEC553D3),
        (_gumbel(words), 0xD1910F64),
    ):
        assert zlib.crc32(values.tobytes()) == expected


def test_exp_and_log_keep_their_arguments() -> None:
    y, x = np.linspace(-90, 0, 99, dtype=np.float32), np.linspace(0.1, 9, 99, dtype=np.float32)
    before = y.copy(), x.copy()
    exp(y), log(x)
    assert np.array_equal(y, before[0]) and np.array_equal(x, before[1])


def test_top_p_is_of_all_the_mass_that_min_p_will_cut() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.1, 0.1])).tolist()
    # 0.6 of all reaches into the second; 0.6 of the 0.8 that min-p keeps would not.
    assert set(draws(logits, 300, top_p=0.6, min_p=0.5)) == {0, 1}


def test_rows_are_the_same_whatever_the_size_of_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = torch.rand(50, 64, generator=torch.Generator().manual_seed(0))
    for size in (1, 3 * 64, 64 * 64):
        monkeypatch.setattr(host, "_CHUNK", size)
        assert sample(ranks, [{"temperature": 0.0}] * 50).tokens.tolist() == ranks.argmax(dim=1).tolist()


def test_of_scores_too_close_for_the_estimate_the_larger_is_drawn() -> None:
    count, vocab = 20_000, 64
    rows = {name: column.expand(count).contiguous() for name, column in columns([{"seed": 3}]).items()}
    rows["position"] = torch.arange(count)
    tokens = sample_rows(torch.zeros(count, vocab), **rows).tokens.numpy()
    noise = gumbel_noise(rows["seed"].numpy(), rows["position"].numpy(), vocab)
    second, first = np.sort(noise, axis=1)[:, -2:].T
    assert (first - second < 1e-3).sum() > 10  # where the estimate leaves it open
    assert np.array_equal(tokens, noise.argmax(axis=1))


def test_infinities_and_tiny_temperatures_are_no_cause_for_warnings() -> None:
    logits = torch.tensor([[1.0, -INF, 2.0], [NAN, 0.0, 1.0], [-INF, -INF, -INF], [1.0, 2.0, 3.0]])
    rows = [{"temperature": 1e-38}, {}, {"top_k": 2}, {"temperature": 1e-38, "top_p": 0.5}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sample(logits, rows).status.tolist() == [0, 1, 2, 0]
