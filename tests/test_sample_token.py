"""The calls that front ends make: one row in, one token id out."""

from __future__ import annotations

import pytest
import torch

from ds2ds.errors import Ds2dsError
from ds2ds.generation.sampling import greedy_sample, sample_token

LOGITS = torch.tensor([0.5, 2.0, 2.0, -1.0, float("-inf"), 1.0])


def test_one_dimension_or_a_batch_of_one() -> None:
    torch.manual_seed(3)
    flat = [sample_token(LOGITS) for _ in range(50)]
    torch.manual_seed(3)
    assert [sample_token(LOGITS[None]) for _ in range(50)] == flat
    assert all(type(token) is int for token in flat)


def test_manual_seed_reproduces_and_successive_calls_differ() -> None:
    torch.manual_seed(0)
    first = [sample_token(LOGITS, 1.5) for _ in range(40)]
    torch.manual_seed(0)
    assert [sample_token(LOGITS, 1.5) for _ in range(40)] == first
    torch.manual_seed(1)
    assert [sample_token(LOGITS, 1.5) for _ in range(40)] != first
    assert set(first) > {1, 2}


def test_temperature_zero_is_greedy_and_draws_no_seed() -> None:
    state = torch.get_rng_state()
    assert sample_token(LOGITS, temperature=0.0) == greedy_sample(LOGITS) == greedy_sample(LOGITS[None]) == 1
    assert sample_token(LOGITS, temperature=0, top_k=3, top_p=0.5) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_off_settings_change_nothing() -> None:
    for off in ({"top_k": None}, {"top_k": 0}, {"top_k": 6}, {"top_k": 10**12}, {"top_p": 1.0}, {"top_p": 1}):
        torch.manual_seed(7)
        plain = [sample_token(LOGITS) for _ in range(30)]
        torch.manual_seed(7)
        assert [sample_token(LOGITS, **off) for _ in range(30)] == plain


@pytest.mark.parametrize(
    ("settings", "reached"),
    [
        ({}, {0, 1, 2, 3, 5}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 2, 5}),
        ({"top_p": 0.3}, {1}),
        ({"top_p": 0.6}, {1, 2}),
        ({"temperature": 0.02}, {1, 2}),
        ({"top_k": 3, "top_p": 0.6}, {1, 2}),
    ],
)
def test_the_tokens_that_are_reached(settings: dict, reached: set[int]) -> None:
    torch.manual_seed(5)
    assert {sample_token(LOGITS, **settings) for _ in range(400)} == reached


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_floating_dtype(dtype: torch.dtype) -> None:
    assert greedy_sample(LOGITS.to(dtype)) == 1
    assert sample_token(LOGITS.to(dtype).requires_grad_(), top_k=2) in (1, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, r"temperature must be >= 0, got -1.0"),
        ({"temperature": float("nan")}, r"temperature must be >= 0 and finite in float32, got nan"),
        ({"temperature": float("inf")}, r"temperature must be >= 0 and finite in float32, got inf"),
        ({"temperature": 1e39}, r"temperature must be >= 0 and finite in float32, got 1e\+39"),
        ({"top_k": -2}, r"top_k must be >= 0, got -2"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": float("nan")}, r"top_p must be in \(0, 1\], got nan"),
        ({"temperature": 0.0, "top_p": 2}, r"top_p must be in \(0, 1\], got 2"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        sample_token(LOGITS, **settings)
    assert isinstance(error.value, Ds2dsError)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(2, 5), r"logits must be \[V\] or \[1, V\] .* got shape \(2, 5\)"),
        (torch.zeros(1, 1, 5), r"got shape \(1, 1, 5\)"),
        (torch.tensor(1.0), r"got shape \(\)"),
        (torch.zeros(0), r"got shape \(0,\)"),
        (torch.zeros(5, dtype=torch.int64), r"logits must be floating point, got torch.int64"),
        (torch.full((5,), float("-inf")), r"nothing but -inf"),
        (torch.tensor([1.0, float("nan"), 2.0]), r"NaN or \+inf"),
        (torch.tensor([1.0, float("inf"), 2.0]), r"NaN or \+inf"),
    ],
)
@pytest.mark.parametrize("call", [sample_token, greedy_sample])
def test_bad_logits(call: object, logits: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(logits)
