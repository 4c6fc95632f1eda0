"""Philox4x32-10 and the Gumbel noise made from it: random numbers as a pure function of what they are for.

Philox (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a 128-bit
counter and a 64-bit key to four random 32-bit words. The noise of a token is keyed by (seed, position, token id)
and by nothing else, so that a row draws the same token alone, in any batch, and from any subset of its tokens::

    key     = (seed low, seed high)                                    32-bit halves; a negative seed wraps
    counter = (token id // 4, position low, position high, 0)
    word    = philox4x32(counter, key)[token id % 4]                   r, one of 2**32 equally likely integers
    u       = (r + 0.5) / 2**32                                        never 0 or 1
    gumbel  = -log(-log1p(-u))                                         float32, see _gumbel

The midpoint rule keeps a token of probability p at p to within 2**-33, and the noise in (-3.14, 22.88). Both ends
matter: the tokens of the far tail win by noise near its upper end alone, where u is so small that 1 - u is 1 in
float32. So the rounding error of 1 - u is carried on, and u beyond a half is taken from the other end. All of it is
float32 operations with one possible result each (``elementary``): a kernel gets the same bits.

NumPy rather than PyTorch, in both files of the reference: its integer and elementwise loops cost a half to a third
of PyTorch's for one row of a vocabulary (and far less for 50 survivors), and each element's value does not depend
on where in the array it stands.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .elementary import Floats, log

U64 = NDArray[np.uint64]
Logarithm = Callable[[Floats], Floats]

ESTIMATE_ERROR = 1e-4

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85

_MULTIPLIER_0, _MULTIPLIER_1 = map(np.uint64, MULTIPLIERS)
_WEYL = np.array(WEYL, dtype=np.uint64)[:, None]
_ROUNDS = np.arange(10, dtype=np.uint64)[:, None, None]
_PIECE = 2**14  # tokens worked on at once: temporaries stay in the cache, and below what malloc returns to the system
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: tuple[U64, U64, U64, U64], key: tuple[U64, U64]) -> tuple[U64, U64, U64, U64]:
    """Ten rounds of Philox4x32.

    Every word is a uint64 array that holds 32-bit values. Counter words are [B, N], or broadcast to it (which
    spares the work on what a whole row shares); key words are [B]. Returns the four output words, each [B, N].
    """
    c0, c1, c2, c3 = counter
    # [10, 2, B]: the key of every round, bumped by the Weyl constants between rounds.
    round_keys = (np.stack(key) + _ROUNDS * _WEYL) & _LOW
    for key_0, key_1 in round_keys[..., None]:
        product_0 = c0 * _MULTIPLIER_0
        product_1 = c2 * _MULTIPLIER_1
        c0, c1 = (product_1 >> _HALF) ^ c1 ^ key_0, product_1 & _LOW
        c2, c3 = (product_0 >> _HALF) ^ c3 ^ key_1, product_0 & _LOW
    return c0, c1, c2, c3


def gumbel_noise(seed: NDArray[np.int64], position: NDArray[np.int64], vocab_size: int) -> Floats:
    """The noise of every token: seed and position int64 [B] -> float32 [B, vocab_size]."""
    return _all_noise(seed, position, vocab_size, log)


def gumbel_estimate(seed: NDArray[np.int64], position: NDArray[np.int64], vocab_size: int) -> Floats:
    """``gumbel_noise`` to within ESTIMATE_ERROR, in half its time: by NumPy's own logarithm."""
    return _all_noise(seed, position, vocab_size, np.log)


def gumbel_noise_at(seed: NDArray[np.int64], position: NDArray[np.int64], token_ids: NDArray[np.int64]) -> Floats:
    """The noise of some tokens: seed and position int64 [B], token_ids int64 [B, N] >= 0 -> float32 [B, N].

    Equal to ``gumbel_noise(...)[row, token_ids[row]]`` bit for bit, at a fraction of its speed per token.
    """
    words = _words(seed, position, (token_ids >> 2).astype(np.uint64))
    return _gumbel(np.choose(token_ids & 3, words).astype(np.uint32))


def _all_noise(seed: NDArray[np.int64], position: NDArray[np.int64], vocab_size: int, log: Logarithm) -> Floats:
    blocks = np.arange(-(-vocab_size // 4), dtype=np.uint64)[None]
    lanes = np.empty((seed.shape[0], blocks.shape[1], 4), dtype=np.uint32)
    for lane, word in enumerate(_words(seed, position, blocks)):
        lanes[:, :, lane] = word
    words = lanes.reshape(seed.shape[0], -1)
    noise = np.empty((seed.shape[0], vocab_size), dtype=np.float32)
    for at in range(0, vocab_size, _PIECE):
        noise[:, at : at + _PIECE] = _gumbel(words[:, at : min(at + _PIECE, vocab_size)], log)
    return noise


def _words(seed: NDArray[np.int64], position: NDArray[np.int64], blocks: U64) -> tuple[U64, U64, U64, U64]:
    key = seed.astype(np.uint64)
    place = position.astype(np.uint64)[:, None]
    counter = (blocks, place & _LOW, place >> _HALF, np.zeros((1, 1), dtype=np.uint64))
    return philox4x32(counter, (key & _LOW, key >> _HALF))


def _gumbel(words: NDArray[np.uint32], log: Logarithm = log) -> Floats:
    above_half = words.view(np.int32) >> np.int32(31)  # 0 or -1
    # u where that is at most a half, else 1 - u: (n + 0.5) / 2**32 with n below 2**31, rounded once.
    n = words ^ above_half.view(np.uint32)
    n <<= np.uint32(1)
    n |= np.uint32(1)
    near = n.astype(np.float32)
    near *= np.float32(2.0**-33)
    rounded = np.float32(1) - near
    lost = np.float32(1) - rounded
    lost -= near  # exact: what 1 - u has beyond `rounded`
    lost /= rounded
    large = above_half < 0
    exponential = log(np.where(large, near, rounded))
    exponential += np.where(large, np.float32(0), lost)
    noise = log(np.negative(exponential, out=exponential))
    return np.subtract(np.float32(0), noise, out=noise)  # not its negative: 0 is then 0 everywhere, and not -0
