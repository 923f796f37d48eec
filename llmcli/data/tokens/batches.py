"""Training batches of tokens. A batch is a pure function of (tokens, seed, step): no state is kept between
steps.

B, T, W, V = batch size, context, window, vocabulary size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]
AnyIds: TypeAlias = NDArray[np.integer]


class TokensWithoutSpans:
    """Tokens without some spans of equal width, indexed by arrays of positions. Nothing is copied."""

    def __init__(self, tokens: AnyIds, starts: AnyIds, width: int) -> None:
        """`starts` are the ascending starts of the spans in `tokens`; spans do not overlap."""
        self._tokens = tokens
        self._width = width
        # positions of the spans among the remaining tokens
        self._gaps = starts - width * np.arange(len(starts))

    def __len__(self) -> int:
        return len(self._tokens) - self._width * len(self._gaps)

    def __getitem__(self, positions: AnyIds) -> AnyIds:
        return self._tokens[positions + self._width * np.searchsorted(self._gaps, positions, side="right")]


class PrefixedTokens:
    """Tokens preceded by one more token. Supports slices, which are copied."""

    def __init__(self, first: int, tokens: AnyIds) -> None:
        self._first = np.array([first], tokens.dtype)
        self._tokens = tokens

    def __len__(self) -> int:
        return 1 + len(self._tokens)

    def __getitem__(self, span: slice) -> AnyIds:
        start, stop, _ = span.indices(len(self))
        rest = self._tokens[max(0, start - 1) : max(0, stop - 1)]
        return np.concatenate([self._first, rest]) if start == 0 < stop else rest


@dataclass(frozen=True)
class Batches:
    """Training batches of a token array as a pure function of (seed, step).

    An epoch visits every block of `context` tokens once, in an order and from an offset drawn from (seed,
    epoch); the tokens are circular. A step takes `batch_size` blocks, which may be cut into shorter windows.
    """

    tokens: AnyIds | TokensWithoutSpans
    context: int  # T
    batch_size: int  # B
    seed: int

    @property
    def blocks(self) -> int:
        return len(self.tokens) // self.context

    def batch(self, step: int, window: int | None = None) -> Ids:
        """Return the ids [B * T / W, W + 1] of a step, in windows of W tokens (default: T; must divide T).
        Targets are the inputs one column later."""
        window = window or self.context
        if self.context % window:
            raise ValueError(f"windows of {window} tokens do not fill blocks of {self.context}")
        visits = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        blocks = self._visited_blocks(visits)
        starts = (blocks[:, None] + np.arange(0, self.context, window)).ravel()
        return self.tokens[(starts[:, None] + np.arange(window + 1)) % len(self.tokens)].astype(np.int64)

    def _visited_blocks(self, visits: Ids) -> Ids:
        """Return the start positions of the blocks of ascending visits, which are numbered from the beginning
        of the run."""
        starts = []
        for epoch in range(visits[0] // self.blocks, visits[-1] // self.blocks + 1):
            indices = visits[visits // self.blocks == epoch] % self.blocks
            starts.append(_block_starts(len(self.tokens), self.context, self.seed, epoch)[indices])
        return np.concatenate(starts)


def split_merges(
    ids: Ids, merge_pairs: Ids, share: float, seed: Sequence[int], *, keeps_repetitions: bool
) -> Ids:
    """Split a share of the merged tokens in windows [B, W] again (BPE-dropout, after arXiv:1910.13267), drawn
    with `seed`; windows that become longer are truncated. `merge_pairs` [V, 2] are the two tokens that a
    token was merged from; -1 for none. With `keeps_repetitions`, a window splits all occurrences of a token
    or none, so that a repeated word is repeated in the same tokens and can be copied."""
    rng = np.random.default_rng(seed)
    if keeps_repetitions:
        draws = np.take_along_axis(rng.random((len(ids), len(merge_pairs))), ids, axis=1)
    else:
        draws = rng.random(ids.shape)
    B, W = ids.shape
    pairs = merge_pairs[ids]  # [B, W, 2]
    split = (draws < share) & (pairs[..., 0] >= 0)
    # in `out`: the column of each token, or of the first token of its pair
    column = np.arange(W) + np.cumsum(split, axis=1) - split
    row = np.broadcast_to(np.arange(B)[:, None], (B, W))
    out = np.empty((B, 2 * W), np.int64)
    out[row, column] = np.where(split, pairs[..., 0], ids)
    out[row[split], column[split] + 1] = pairs[split, 1]
    return out[:, :W]


@lru_cache(maxsize=2)
def _block_starts(tokens: int, context: int, seed: int, epoch: int) -> Ids:
    """Return the start position of each block of an epoch, in the order of the visits."""
    rng = np.random.default_rng([seed, epoch])
    offset = int(rng.integers(tokens))
    starts = rng.permutation(tokens // context)
    starts *= context
    starts += offset
    starts %= tokens
    return starts
