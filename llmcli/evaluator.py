"""Text -> bits per byte: how well a model predicts, in a measure that needs no tokenizer to compare.

Windows of the model's context slide over the text by half a context, and only what has at least half a context
before it is counted (but for the text's beginning, which has what there is). Who computes the losses is not this
room's business: torch and numpy both serve.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# ids [B, T + 1] -> for each of ids[:, 1:], [B, T] both: its nats, and whether it was the likeliest
Score = Callable[[NDArray[np.int64]], tuple[NDArray[np.floating], NDArray[np.bool_]]]


@dataclass(frozen=True)
class Figures:
    """What a model makes of a text."""

    nats: float  # summed over the tokens counted
    tokens: int
    bytes: int  # of text in these tokens
    right: int = 0  # tokens that the model held for the likeliest

    def __add__(self, other: "Figures") -> "Figures":
        """Of two texts together."""
        return Figures(
            self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes, self.right + other.right
        )

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(min(self.nats / self.tokens, 700.0)) if self.tokens else math.nan

    @property
    def accuracy(self) -> float:
        """The share of the tokens that the model held for the likeliest."""
        return self.right / self.tokens if self.tokens else math.nan


def evaluate(
    ids: NDArray[np.integer],
    byte_lengths: NDArray[np.integer],
    context: int,
    score: Score,
    *,
    most_tokens: int | None = None,
    batch_tokens: int = 4096,
) -> Figures:
    """Score ids[1:], each given what stands before it; ids[0] is what the text starts from (the end-of-text id).

    `byte_lengths[i]` is the length of token i in bytes. With `most_tokens` about so many tokens are scored, in
    windows spread evenly over the text.
    """
    nats, tokens, size, right = 0.0, 0, 0, 0
    windows = list(_windows(len(ids), context))
    if most_tokens is not None and len(windows) * max(1, context // 2) > most_tokens:
        keep = max(1, most_tokens // max(1, context // 2))
        windows = [windows[round(i)] for i in np.linspace(0, len(windows) - 1, keep)]
    rows = max(1, batch_tokens // context)
    for first in range(0, len(windows), rows):
        batch = windows[first : first + rows]
        width = max(end - start for start, _, end in batch)
        block = np.zeros((len(batch), width), np.int64)  # short windows are filled up on the right, never scored
        for row, (start, _, end) in enumerate(batch):
            block[row, : end - start] = ids[start:end]
        losses, hits = score(block)
        for row, (start, counted_from, end) in enumerate(batch):
            counted = slice(counted_from - start - 1, end - start - 1)
            nats += float(losses[row, counted].sum(dtype=np.float64))
            right += int(hits[row, counted].sum())
            size += int(byte_lengths[ids[counted_from:end]].sum())
            tokens += end - counted_from
    return Figures(nats, tokens, size, right)


def _windows(count: int, context: int) -> Iterator[tuple[int, int, int]]:
    """(start, first position counted, end) of each window; every position from 1 on is counted exactly once.

    >>> list(_windows(8, 4))
    [(0, 1, 5), (2, 5, 7), (3, 7, 8)]
    """
    counted = 1
    while counted < count:
        end = min(count, counted + (context if counted == 1 else max(1, context // 2)))
        yield max(0, end - context - 1), counted, end
        counted = end
