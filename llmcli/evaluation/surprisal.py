"""Text -> what each of its tokens cost a model to tell, in bits, and the passages that cost it most.

The losses are those of evaluator.py: every token is told from at least half a context, or from all there is.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PASSAGE = 16  # tokens
PASSAGES = 5


@dataclass(frozen=True)
class Place:
    """Some tokens of a text that stand side by side."""

    start: int  # of the first of them, and of the one after the last, counted in tokens
    end: int
    bits: float  # together


def most_surprising(
    bits: NDArray[np.floating], length: int = PASSAGE, most: int = PASSAGES, breaks: Iterable[int] = ()
) -> list[Place]:
    """The passages of `length` tokens that cost most, the dearest first; they do not overlap, nor reach over a break
    (the first token of another document). A shorter document is one passage.

    >>> most_surprising(np.array([1, 5, 5, 0, 0, 4, 4]), length=2, most=2)
    [Place(start=1, end=3, bits=10.0), Place(start=5, end=7, bits=8.0)]
    """
    edges = [0, *sorted(set(breaks) - {0}), len(bits)]
    total = np.concatenate([[0.0], np.cumsum(bits, dtype=np.float64)])
    starts, ends = [], []
    for first, last in itertools.pairwise(edges):
        places = np.arange(first, max(first, last - length) + 1) if last > first else np.arange(0)
        starts.append(places)
        ends.append(np.minimum(places + length, last))
    start, end = np.concatenate(starts).astype(int), np.concatenate(ends).astype(int)
    sums = total[end] - total[start]
    free = np.ones(len(sums), bool)
    found: list[Place] = []
    while len(found) < most and free.any():
        best = int(np.where(free, sums, -np.inf).argmax())
        found.append(Place(int(start[best]), int(end[best]), float(sums[best])))
        free &= (end <= start[best]) | (start >= end[best])
    return found
