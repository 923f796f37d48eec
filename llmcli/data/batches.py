"""Tokens to training batches. A batch is a pure function of (tokens, seed, step): nothing is kept between steps."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Tokens(Protocol):
    """What batches need of an array of tokens."""

    def __len__(self) -> int: ...
    def __getitem__(self, positions: NDArray[np.integer], /) -> NDArray[np.integer]: ...


class Without:
    """Tokens without some runs of the same width, as an array to be read at positions. Nothing is copied: the tokens
    may be a mapped file."""

    def __init__(self, tokens: Tokens, starts: NDArray[np.integer], width: int) -> None:
        """`starts` of the runs in `tokens` ascend, and no two runs overlap."""
        self._tokens, self._width = tokens, width
        self._gaps = starts - width * np.arange(len(starts))  # where they are, among the tokens that are left

    def __len__(self) -> int:
        return len(self._tokens) - self._width * len(self._gaps)

    def __getitem__(self, positions: NDArray[np.integer]) -> NDArray[np.integer]:
        return self._tokens[positions + self._width * np.searchsorted(self._gaps, positions, side="right")]


class Preceded:
    """Tokens with one more before them, as an array to take slices of. Nothing is copied but the slices."""

    def __init__(self, first: int, tokens: NDArray[np.integer]) -> None:
        self._first, self._tokens = np.array([first], tokens.dtype), tokens

    def __len__(self) -> int:
        return 1 + len(self._tokens)

    def __getitem__(self, span: slice) -> NDArray[np.integer]:
        start, stop, _ = span.indices(len(self))
        rest = self._tokens[max(0, start - 1) : max(0, stop - 1)]
        return np.concatenate([self._first, rest]) if start == 0 < stop else rest


@dataclass(frozen=True)
class Batches:
    """Training batches of a token array as a pure function of (seed, step).

    An epoch visits every block of `context` tokens once, in an order of its own, and the blocks begin at an offset of
    its own; both are drawn from (seed, epoch). The text counts as a ring, so that with any offset each token is a
    target once in an epoch, but for the fewer than `context` that are left over: a block that reaches the end of the
    text goes on at its beginning. A step takes `batch_size` blocks, whole or cut into shorter windows, so what an epoch
    has seen does not depend on how long the windows of each step were.
    """

    tokens: Tokens
    context: int  # T
    batch_size: int  # B
    seed: int
    parts: NDArray[np.int64] | None = None  # of each token, [V, 2]; -1 where it was not merged

    @property
    def blocks(self) -> int:
        """Blocks in an epoch."""
        return len(self.tokens) // self.context

    def batch(self, step: int, window: int | None = None, split: float = 0.0) -> NDArray[np.int64]:
        """Step 0, 1, ... -> ids [B * T / W, W + 1] in windows of W tokens, a divisor of T, or of T; columns 0..W-1 are
        inputs, 1..W the targets.

        With `split`, that share of the tokens that were merged from two is taken apart into these two, others each time
        (after BPE-dropout, arXiv:1910.13267): text that is seen often does not look the same each time. What then no
        longer fits into its window falls off.
        """
        window = window or self.context
        if self.context % window:
            raise ValueError(f"windows of {window} tokens do not fill blocks of {self.context}")
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        shape = (len(self.tokens), self.context, self.blocks)
        blocks = [_block_starts(*shape, self.seed, place // self.blocks)[place % self.blocks] for place in places]
        starts = (np.array(blocks)[:, None] + np.arange(0, self.context, window)).ravel()
        ids = self.tokens[(starts[:, None] + np.arange(window + 1)) % len(self.tokens)].astype(np.int64)
        if split and self.parts is not None:
            ids = _taken_apart(ids, self.parts, split, np.random.default_rng([self.seed, step, window]))
        return ids


def _taken_apart(
    ids: NDArray[np.int64], parts: NDArray[np.int64], share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of tokens [B, W], of which a share stands as its two parts; what no longer fits into W falls off the end."""
    B, W = ids.shape
    halves = parts[ids]  # [B, W, 2]
    apart = (rng.random((B, W)) < share) & (halves[..., 0] >= 0)
    place = np.arange(W) + np.cumsum(apart, axis=1) - apart  # of each token's first or only part
    row = np.broadcast_to(np.arange(B)[:, None], (B, W))
    out = np.empty((B, 2 * W), np.int64)
    out[row, place] = np.where(apart, halves[..., 0], ids)
    out[row[apart], place[apart] + 1] = halves[apart, 1]
    return out[:, :W]


@lru_cache(maxsize=2)
def _block_starts(tokens: int, context: int, blocks: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where each block of an epoch starts, in the order of their visit."""
    rng = np.random.default_rng([seed, epoch])
    offset = int(rng.integers(tokens))
    return (rng.permutation(blocks) * context + offset) % tokens
