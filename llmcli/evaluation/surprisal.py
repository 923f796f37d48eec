"""The passages of a text with the highest surprisal: -log2 p of each token, summed over a passage."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PASSAGE_TOKENS = 16
MAX_PASSAGES = 5


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of a text."""

    start: int  # index of the first token
    end: int  # one past the last
    bits: float  # total surprisal


def most_surprising(
    bits: NDArray[np.floating],
    length: int = PASSAGE_TOKENS,
    max_passages: int = MAX_PASSAGES,
    breaks: Iterable[int] = (),
) -> list[Span]:
    """The passages of `length` tokens with the highest total surprisal, the highest first.

    `bits` [N] is the surprisal of each token. Passages neither overlap nor cross a break (the index of the first token
    of another document). A shorter document is one passage.

    >>> most_surprising(np.array([1, 5, 5, 0, 0, 4, 4]), length=2, max_passages=2)
    [Span(start=1, end=3, bits=10.0), Span(start=5, end=7, bits=8.0)]
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
    spans: list[Span] = []
    while len(spans) < max_passages and free.any():
        best = int(np.where(free, sums, -np.inf).argmax())
        spans.append(Span(int(start[best]), int(end[best]), float(sums[best])))
        free &= (end <= start[best]) | (start >= end[best])
    return spans
