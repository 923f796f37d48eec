"""Hashes of all strings of one length in a text."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

_FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_CHUNK = 1 << 16  # values at a time, so that they stay in the processor's cache


def string_hashes(values: NDArray[np.unsignedinteger], length: int) -> NDArray[np.uint64]:
    """Return the hash of the string of `length` values (bytes or code points) at each position, [N - length +
    1].

    The hash is a polynomial modulo 2**64, computed as the difference of two prefix sums, so its upper bits
    are better mixed than the lower ones. `length` is at most a few thousand.
    """
    count = max(0, len(values) - length + 1)
    hashes = np.empty(count, np.uint64)
    step = _CHUNK - length + 1
    powers = _powers(_FACTOR)
    inverse = _powers(pow(_FACTOR, -1, 1 << 64))
    for first in range(0, count, step):
        chunk = values[first : first + _CHUNK]
        sums = np.zeros(len(chunk) + 1, np.uint64)
        np.cumsum(chunk * powers[: len(chunk)], out=sums[1:])
        differences = sums[length:] - sums[:-length]
        hashes[first : first + step] = differences * inverse[: len(differences)]
    return hashes


@cache
def _powers(base: int) -> NDArray[np.uint64]:
    powers = np.full(_CHUNK, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)
