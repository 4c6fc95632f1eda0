"""Rotary positions against 2x2 rotations, computed one pair at a time in double precision."""

from __future__ import annotations

import cmath
import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ds2ds.attention.rotary import Rotary, rotate

QUICK = settings(max_examples=40, deadline=None, derandomize=True)
HEAD_DIMS = [4, 8, 12, 64]


def frequencies(head_dim: int) -> list[float]:
    """Radians per position of each of the head_dim / 2 pairs; the second half of them do not turn."""
    quarter = head_dim // 4
    turning = [(1 / 1024) ** (i / (quarter - 1) if quarter > 1 else 0) for i in range(quarter)]
    return turning + [0.0] * quarter


def naive(x: Tensor, position: int) -> Tensor:
    """One vector [head_dim]: the pair (x1, x2) is the number x1 + i x2, turned by -position * frequency."""
    half = len(x) // 2
    turned = [
        complex(x[i], x[i + half]) * cmath.exp(-1j * position * frequency)
        for i, frequency in enumerate(frequencies(len(x)))
    ]
    return torch.tensor([z.real for z in turned] + [z.imag for z in turned], dtype=torch.float64)


def random_rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@cache
def table(head_dim: int) -> Rotary:
    return Rotary(head_dim, 32768)


@QUICK
@given(st.sampled_from(HEAD_DIMS), st.lists(st.integers(0, 32767), min_size=1, max_size=5), st.integers(0, 99))
def test_any_position_equals_the_rotation_of_each_pair(head_dim: int, positions: list[int], seed: int) -> None:
    x = random_rows(len(positions), 3, head_dim, seed=seed)
    ours = rotate(x, *table(head_dim).at(torch.tensor(positions)))
    theirs = torch.stack([torch.stack([naive(head, at) for head in row]) for row, at in zip(x, positions, strict=True)])
    torch.testing.assert_close(ours.double(), theirs, atol=5e-6, rtol=0)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_small_positions_are_exact_to_float32(head_dim: int) -> None:
    x = random_rows(8, 2, head_dim)
    ours = rotate(x, *Rotary(head_dim, 8).at(slice(0, 8)))
    theirs = torch.stack([torch.stack([naive(head, at) for head in row]) for at, row in enumerate(x)])
    torch.testing.assert_close(ours.double(), theirs, atol=5e-6, rtol=0)


def test_a_turn_by_hand() -> None:
    """One radian on the first pair of four dimensions, nothing on the second."""
    x = torch.tensor([[[1.0, 5.0, 2.0, 6.0]]])
    c, s = math.cos(1), math.sin(1)
    expected = torch.tensor([[[c + 2 * s, 5.0, 2 * c - s, 6.0]]])
    torch.testing.assert_close(rotate(x, *Rotary(4, 2).at(slice(1, 2))), expected)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_position_zero_changes_nothing(head_dim: int) -> None:
    x = random_rows(1, 2, head_dim)
    assert torch.equal(rotate(x, *Rotary(head_dim, 1).at(slice(0, 1))), x)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_half_of_the_pairs_carry_no_position(head_dim: int) -> None:
    x = random_rows(1, 1, head_dim)[0, 0]
    turned = rotate(x.expand(1000, 1, head_dim), *Rotary(head_dim, 1000).at(slice(0, 1000)))[:, 0]
    quarter = head_dim // 4
    still = torch.arange(head_dim) % (2 * quarter) >= quarter
    assert torch.equal(turned[:, still], x[still].expand(1000, -1))
    assert (turned[1:, ~still] != x[~still]).all()


@QUICK
@given(
    st.integers(0, 400),
    st.integers(0, 400),
    st.integers(0, 400),
    st.integers(0, 99),
)
def test_only_the_distance_matters(query: int, key: int, shift: int, seed: int) -> None:
    q, k = random_rows(2, 1, 1, 16, seed=seed)
    rotary = Rotary(16, 1000)

    def score(query_at: int, key_at: int) -> float:
        here, there = (slice(at, at + 1) for at in (query_at, key_at))
        return float((rotate(q, *rotary.at(here)) * rotate(k, *rotary.at(there))).sum())

    assert score(query + shift, key + shift) == pytest.approx(score(query, key), abs=2e-3)
    if query != key:
        assert score(query, key) != pytest.approx(score(key, query), abs=1e-9)  # and its sign does


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_lengths_do_not_change(head_dim: int) -> None:
    x = random_rows(500, 2, head_dim)
    turned = rotate(x, *Rotary(head_dim, 500).at(slice(0, 500)))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5, rtol=1e-5)


def test_slices_and_indices_give_the_same_rows_in_float32() -> None:
    rotary = Rotary(8, 32)
    for by_slice, by_index in zip(rotary.at(slice(5, 9)), rotary.at(torch.arange(5, 9)), strict=True):
        assert by_slice.dtype == torch.float32
        assert by_slice.shape[:2] == (4, 1)
        assert torch.equal(by_slice, by_index)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rotated_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    x = random_rows(40, 2, 16).to(dtype)
    tables = Rotary(16, 40).at(slice(0, 40))
    turned = rotate(x, *tables)
    assert turned.dtype == dtype
    assert torch.equal(turned, rotate(x.float(), *tables).to(dtype))


def test_tables_follow_a_device() -> None:
    rotary = Rotary(8, 4)
    assert rotary.to("meta") is rotary
    assert rotary.cos.device.type == rotary.sin.device.type == "meta"


@pytest.mark.parametrize("positions", [slice(30, 34), slice(31, 33), slice(32, 33), torch.tensor([32])], ids=str)
def test_positions_beyond_the_table_are_an_error(positions: slice | Tensor) -> None:
    """A slice that ends beyond it must not come back short: one row would be broadcast to all."""
    with pytest.raises((ValueError, IndexError), match="32"):
        Rotary(8, 32).at(positions)


@pytest.mark.parametrize("head_dim", [2, 6, 10])
def test_a_head_of_half_pairs_is_refused(head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"divisible by 4, got {head_dim}"):
        Rotary(head_dim, 4)
