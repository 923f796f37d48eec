"""The interface of all runtimes: numpy, onnxruntime, torch, and ensembles of them.

B, T, V = batch, tokens, vocabulary size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.errors import LLMError

Array = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
# (losses in nats [B, T], whether top-1 was correct [B, T])
Scores = tuple[NDArray[np.floating], NDArray[np.bool_]]
# Scores and the weights [B, T, n] of n models
WeightedScores = tuple[NDArray[np.floating], NDArray[np.bool_], Array]
Check = Callable[[], None]
ALONE = (1.0,)  # weight of a single model
PREFILL_CHUNK = 128  # tokens processed at a time during prefill
ATTENTION_SINKS = 4  # first tokens that stay in a full context
LOGITS_AT_ONCE = 1 << 22  # logits held in memory while scoring: 16 MB


def no_check() -> None:
    """Do nothing."""


class Runtime(ABC):
    """A model ready to run, with a key-value (KV) cache of the tokens processed so far.
    Methods that process tokens raise LLMError if the tokens do not fit the context, and ValueError if there
    are none."""

    draft_tokens = 0  # number of further tokens that take little time when a token is processed
    can_shift = True  # whether tokens in the cache can move; not if their positions are learned (GPT-2)

    def __init__(self, context: int, parameters: int, cache_bytes_per_token: int) -> None:
        self.context = context  # the maximum number of tokens in a sequence
        self.parameters = parameters
        self.cache_bytes_per_token = cache_bytes_per_token  # memory per token in the cache
        # called before each chunk of tokens is processed; may raise an exception, such as when the result is
        # no longer needed
        self.check: Check = no_check

    @property
    @abstractmethod
    def length(self) -> int:
        """Number of tokens in the cache, at most `context`."""

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """Allocated memory of the cache."""

    @abstractmethod
    def fork(self, length: int = 0) -> "Runtime":
        """Return a runtime with the same weights and its own cache, which begins with the first `length`
        tokens of this one."""

    @abstractmethod
    def prefill(self, ids: Sequence[int]) -> Array:
        """Process at least one token; return the logits [V] of the next token."""

    @abstractmethod
    def logits(self, ids: Sequence[int]) -> Array:
        """Process at least one token; return the logits [T, V] after each."""

    @abstractmethod
    def rewind(self, length: int = 0) -> None:
        """Keep only the first `length` tokens in the cache."""

    # ---- an n-gram cache (ngram_runtime.py) distinguishes these from `rewind`

    def begin_prompt(self, cached: int, tokens: int, written: int) -> None:
        """Keep the first `cached` tokens of a prompt of `tokens` tokens, the last `written` of which the
        model generated."""
        self.rewind(cached)

    def undo_step(self, length: int) -> None:
        """Keep only the first `length` tokens after a step that failed or processed a draft."""
        self.rewind(length)

    def logits_of_draft(self, ids: Sequence[int]) -> Array:
        """Like `logits`, for a token that the model generated and a draft of the next ones, which
        `undo_step` removes."""
        return self.logits(ids)

    def shift(self, ids: Sequence[int]) -> range:
        """Make space in a full cache, whose newest tokens are the last of `ids`: a context shift. Returns the
        positions of the removed tokens. If tokens cannot move, the older half is removed and the newer half
        processed again."""
        if self.can_shift:
            removed = removed_by_shift(self.length)
            self.remove(removed)
            return removed
        half = self.length // 2
        removed = range(self.length - half)
        self.rewind()
        if half:
            self.read(ids[-half:])
        return removed

    # ----

    def check_input(self, ids: Sequence[int]) -> None:
        """Raise ValueError if there is no token to process, LLMError if `ids` do not fit the context."""
        self.check()
        if not len(ids):
            raise ValueError("at least one token is needed")
        check_context(self.length + len(ids), self.context)

    def remove(self, positions: range) -> None:
        """Remove the tokens at some positions; those after them move to earlier positions."""
        raise NotImplementedError

    @abstractmethod
    def score(self, ids: Ints, /) -> Scores:
        """Score each of ids[:, 1:] in independent windows ids [B, T + 1]. Returns (losses in nats [B, T],
        whether the target was the most likely token [B, T]). The cache is unchanged. Raises LLMError if T
        exceeds the context."""

    def step(self, token: int) -> Array:
        """Process one token; return the logits [V] of the next token."""
        return self.prefill((token,))

    def read(self, ids: Sequence[int]) -> None:
        """Process at least one token without returning logits."""
        self.prefill(ids)

    @staticmethod
    def step_batch(runtimes: Sequence[Any], tokens: Sequence[int]) -> Array:
        """Call `step` for each of B forks of one runtime; return the logits [B, V]. Each weight is read only
        once for all forks, so several texts take little longer than one. The last bits may differ, because
        the order of additions in a matrix product depends on its shape."""
        return np.stack([runtime.step(token) for runtime, token in zip(runtimes, tokens, strict=True)])

    def continuation_logits(self, texts: Sequence[Sequence[int]]) -> Iterator[Array]:
        """Yield, for each text, the logits [T, V] after each of its tokens. The nonempty texts continue the
        cache independently of each other; after the iterator is exhausted, the cache is unchanged."""
        length = self.length
        for ids in texts:
            yield self.logits(ids)
            self.rewind(length)

    def expert_weights(self) -> Array:
        """Return the weights [layers, experts] of the experts in sparse layers, or of the models in an
        ensemble (one layer), for the last token. Raises LLMError if they are unknown."""
        raise LLMError(
            "expert weights are only available on the CPU; run the model without `quantize` and `device`"
        )

    # ---- an ensemble (ensemble.py) overrides these

    def recent_weights(self, tokens: int) -> Sequence[Sequence[float]] | Array:
        """Return the weights [tokens, n] of the models in the predictions after each of the last tokens."""
        return [ALONE] * tokens

    def score_with_weights(self, ids: Ints) -> Scores | WeightedScores:
        """Like `score`; an ensemble also returns the weights [B, T, n] of its models for each target."""
        return self.score(ids)


def removed_by_shift(length: int) -> range:
    """Return the positions to remove from a cache of `length` tokens: its oldest eighth, except the first
    tokens. A model directs much of its attention to these and predicts badly without them (attention sinks:
    Xiao et al. 2023, arXiv:2309.17453, section 3).

    >>> removed_by_shift(512), removed_by_shift(8), removed_by_shift(1)
    (range(4, 68), range(2, 3), range(0, 1))
    """
    first = min(ATTENTION_SINKS, length // 4)
    return range(first, first + max(1, length // 8))


def padded_batches(
    lengths: Sequence[int] | Ints, indices: Iterable[int], batch_tokens: int
) -> Iterator[list[int]]:
    """Yield consecutive indices of texts that have at most `batch_tokens` tokens when padded to the
    longest."""
    batch: list[int] = []
    width = 0
    for index in indices:
        width_with_it = max(width, int(lengths[index]))
        if batch and (len(batch) + 1) * width_with_it > batch_tokens:
            yield batch
            batch = []
            width_with_it = int(lengths[index])
        batch.append(index)
        width = width_with_it
    if batch:
        yield batch


def check_context(tokens: int, context: int) -> None:
    """Raise LLMError if a sequence of `tokens` tokens does not fit the context."""
    if tokens > context:
        raise LLMError(f"{tokens} tokens exceed the context length of {context}; use a shorter text")
