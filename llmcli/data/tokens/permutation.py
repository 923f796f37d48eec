"""A pseudorandom permutation of 0 to n - 1 that is computed for single positions, in memory that n does not change.

A Feistel network permutes all numbers of an even number of bits; a result that is too large is permuted again until it
is small enough (cycle walking: Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
_MULTIPLIERS = np.array([0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53], np.uint64)  # those of MurmurHash3's finalizer


def permuted(positions: NDArray[np.integer], size: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """The numbers at `positions` of the permutation of 0 to `size` - 1 that belongs to a seed."""
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    keys = np.random.default_rng(seed).integers(1 << 63, size=ROUNDS, dtype=np.uint64)
    numbers = positions.astype(np.uint64)
    too_large = np.ones(numbers.shape, bool)
    while too_large.any():
        numbers[too_large] = _feistel(numbers[too_large], keys, half_bits)
        too_large = numbers >= size
    return numbers.astype(np.int64)


def _feistel(numbers: NDArray[np.uint64], keys: NDArray[np.uint64], half_bits: int) -> NDArray[np.uint64]:
    """A permutation of the numbers of 2 * `half_bits` bits."""
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = numbers >> shift, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    result: NDArray[np.uint64] = left << shift | right
    return result


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Numbers in which each bit depends on each bit of the argument."""
    for multiplier in _MULTIPLIERS:
        numbers = (numbers ^ (numbers >> np.uint64(33))) * multiplier
    mixed: NDArray[np.uint64] = numbers ^ (numbers >> np.uint64(33))
    return mixed
