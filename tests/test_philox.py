"""Philox against its published vectors, and the noise made from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds2ds.kernels.sampling.philox import (
    ESTIMATE_ERROR,
    _gumbel,
    gumbel_estimate,
    gumbel_noise,
    gumbel_noise_at,
    philox4x32,
)

# Random123's kat_vectors, the lines "philox4x32 10": counter, key, output.
KNOWN_ANSWERS = [
    "00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1",
]
QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
int64s = st.integers(-(2**63), 2**63 - 1)


def philox_in_plain_integers(counter: list[int], key: list[int]) -> list[int]:
    """The published round, one Python integer at a time."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        hi0, lo0 = divmod(0xD2511F53 * c[0], 2**32)
        hi1, lo1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [hi1 ^ c[1] ^ k0, lo1, hi0 ^ c[3] ^ k1, lo0]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def close(noise: np.ndarray, exact: np.ndarray) -> bool:
    """Within 4 ulp, or of 2**-24 where the noise is near 0: two float32 logarithms, one after the other."""
    return bool((abs(noise - exact) <= 4 * np.maximum(np.spacing(abs(exact)), np.float32(2.0**-24))).all())


def noise_in_plain_floats(seed: int, position: int, token: int) -> np.float32:
    seed, position = seed % 2**64, position % 2**64
    counter = [token // 4, position % 2**32, position // 2**32, 0]
    word = philox_in_plain_integers(counter, [seed % 2**32, seed // 2**32])[token % 4]
    return np.float32(-math.log(-math.log1p(-(word + 0.5) / 2**32)))


@pytest.mark.parametrize("line", KNOWN_ANSWERS)
def test_published_vectors(line: str) -> None:
    words = [int(word, 16) for word in line.split()]
    counter = tuple(np.array([[word]], dtype=np.uint64) for word in words[:4])
    key = tuple(np.array([word], dtype=np.uint64) for word in words[4:6])
    assert [int(word[0, 0]) for word in philox4x32(counter, key)] == words[6:]
    assert philox_in_plain_integers(words[:4], words[4:6]) == words[6:]


@QUICK
@given(seed=int64s, position=st.integers(0, 2**63 - 1), tokens=st.lists(st.integers(0, 2**18 - 1), min_size=1))
def test_the_key_and_the_counter_are_as_documented(seed: int, position: int, tokens: list[int]) -> None:
    noise = gumbel_noise_at(np.array([seed]), np.array([position]), np.array([tokens]))
    expected = [noise_in_plain_floats(seed, position, token) for token in tokens]
    assert close(noise[0], np.array(expected))


@QUICK
@given(seeds=st.lists(int64s, min_size=1, max_size=4), position=st.integers(0, 2**63 - 5), vocab=st.integers(1, 70))
def test_some_tokens_have_the_noise_they_have_among_all(seeds: list[int], position: int, vocab: int) -> None:
    seed = np.array(seeds)
    places = position + np.arange(len(seeds))
    every = gumbel_noise(seed, places, vocab)
    assert every.shape == (len(seeds), vocab) and every.dtype == np.float32
    ids = np.random.default_rng(vocab).integers(0, vocab, (len(seeds), 9))
    np.testing.assert_array_equal(gumbel_noise_at(seed, places, ids), np.take_along_axis(every, ids, axis=1))
    for row in range(len(seeds)):
        np.testing.assert_array_equal(gumbel_noise(seed[row : row + 1], places[row : row + 1], vocab)[0], every[row])


def test_seeds_and_positions_do_not_share_noise() -> None:
    seed = np.array([0, 1, 2**32, -1, 0, 0])
    position = np.array([0, 0, 0, 0, 1, 2**32])
    assert len({row.tobytes() for row in gumbel_noise(seed, position, 64)}) == 6


def test_the_ends_of_the_range_are_finite_and_accurate() -> None:
    first, second, last = _gumbel(np.array([0, 1, 2**32 - 1], dtype=np.uint32))
    # u = 2**-33: -log1p(-u) is u to 1e-10, so the largest noise is 33 log 2.
    assert first == pytest.approx(33 * math.log(2), rel=1e-7)
    assert first - second == pytest.approx(math.log(3), abs=4e-6)  # ulp of 22.9: 1.9e-6
    assert last == pytest.approx(-math.log(33 * math.log(2)), rel=1e-7)


@pytest.mark.parametrize("around", [0, 2**23, 2**24, 2**31, 2**32 - 2**24, 2**32 - 1])
def test_the_noise_is_that_of_float64_logarithms(around: int) -> None:
    words = np.clip(np.arange(around - 50_000, around + 50_000), 0, 2**32 - 1).astype(np.uint32)
    exact = -np.log(-np.log1p(-(words.astype(np.float64) + 0.5) * 2.0**-32))
    assert close(_gumbel(words), exact.astype(np.float32))


def test_the_estimate_is_as_near_as_it_says() -> None:
    seed, position = np.arange(64), np.arange(64)
    difference = gumbel_estimate(seed, position, 20_001) - gumbel_noise(seed, position, 20_001)
    assert 0 < abs(difference).max() < ESTIMATE_ERROR / 10


def test_the_noise_falls_and_is_finite_over_the_whole_range_of_words() -> None:
    words = np.linspace(0, 2**32 - 1, 100_001).astype(np.uint32)
    noise = _gumbel(words)
    assert np.isfinite(noise).all() and (np.diff(noise) < 0).all()


def test_the_tail_has_the_mass_of_a_gumbel() -> None:
    draws = gumbel_noise(np.arange(16), np.full(16, 7), 2**16).ravel()
    for x in (-2.0, -1.0, 0.0, 2.0, 5.0, 8.0, 11.0):
        p = -math.expm1(-math.exp(-x))
        expected, sigma = draws.size * p, math.sqrt(draws.size * p * (1 - p))
        # 11.0 expects 17.5 of a million; 5 sigma over 7 thresholds fails by chance once in 200,000 (the seed is fixed).
        assert abs((draws > x).sum() - expected) < 5 * sigma
    # Mean: Euler's constant; variance pi^2 / 6.
    assert abs(draws.mean() - 0.5772156649) < 5 * math.pi / math.sqrt(6 * draws.size)
