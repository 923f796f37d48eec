"""The interface of every runtime: numpy, onnxruntime, torch, and an ensemble of any of them.

B, T, V = batch, tokens, vocabulary size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmcli.errors import LLMError

Array = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Scores = tuple[NDArray[np.floating], NDArray[np.bool_]]  # (losses in nats [B, T], whether top-1 was correct [B, T])
WeightedScores = tuple[NDArray[np.floating], NDArray[np.bool_], Array]  # with the weights [B, T, n] of n models
PREFILL_CHUNK = 128  # tokens processed at a time during prefill
LOGITS_AT_ONCE = 1 << 22  # logits held in memory while scoring: 16 MB


class Scorer(Protocol):
    """Computes token losses: all that evaluation needs of a model."""

    context: int  # the maximum number of tokens in a sequence

    def score(self, ids: Ints, /) -> Scores:
        """The loss of each of ids[:, 1:] in windows ids [B, T + 1], each window independently: (losses in nats [B, T],
        whether the target was the most likely token [B, T]). The cache is unchanged. Raises LLMError when T exceeds the
        context."""


class Runtime(ABC):
    """A model ready to run, with a key-value (KV) cache of the tokens processed so far; it is a Scorer. Methods that
    process tokens raise LLMError when they do not fit the context, and ValueError for no tokens."""

    def __init__(self, context: int, parameters: int, cache_bytes_per_token: int) -> None:
        self.context, self.parameters = context, parameters
        self.cache_bytes_per_token = cache_bytes_per_token  # memory that a token takes in the cache

    @property
    @abstractmethod
    def length(self) -> int:
        """Number of tokens in the cache, at most `context`."""

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """Memory of the cache, as it is allocated."""

    @abstractmethod
    def fork(self, length: int = 0) -> "Runtime":
        """A runtime of the same weights, whose own cache begins with the first `length` tokens of this one's."""

    @abstractmethod
    def prefill(self, ids: Sequence[int]) -> Array:
        """Process one token or more; return the logits [V] of the next one."""

    @abstractmethod
    def logits(self, ids: Sequence[int]) -> Array:
        """Process one token or more; return the logits [T, V] after each of them."""

    @abstractmethod
    def rewind(self, length: int = 0) -> None:
        """Drop all but the first `length` tokens from the cache."""

    @abstractmethod
    def score(self, ids: Ints, /) -> Scores:
        """See `Scorer`."""

    def step(self, token: int) -> Array:
        """Process one token; return the logits [V] of the next one."""
        return self.prefill((token,))

    def read(self, ids: Sequence[int]) -> None:
        """Process one token or more, after which the logits are not needed."""
        self.prefill(ids)

    @staticmethod
    def step_batch(runtimes: Sequence[Any], tokens: Sequence[int]) -> Array:
        """`step` for each of B forks of one runtime; the logits [B, V]. Together they read each weight once, so
        several texts take hardly longer than one. The last bits may differ: the order of additions in a matrix product
        depends on its shape."""
        return np.stack([runtime.step(token) for runtime, token in zip(runtimes, tokens, strict=True)])

    def expert_weights(self) -> Array:
        """Weights [layers, experts] for the last token, of the experts in sparse layers or the models of an ensemble
        (one layer). Raises LLMError if they are not known."""
        raise LLMError("the experts are only known on the CPU; run the model without `quantize` and `device`")


def step_batch(runtimes: Sequence[Runtime], tokens: Sequence[int]) -> Array:
    """`Runtime.step_batch`; a single text takes a step by itself."""
    return runtimes[0].step_batch(runtimes, tokens) if len(runtimes) > 1 else runtimes[0].step(tokens[0])[None]


def check_context(tokens: int, context: int) -> None:
    """Raise LLMError when a sequence of `tokens` tokens does not fit the context."""
    if tokens > context:
        raise LLMError(f"{tokens} tokens exceed the context length of {context}; use a shorter text")


def check_input(ids: Sequence[int], length: int, context: int) -> None:
    """Raise ValueError when there is no token to process, LLMError when `ids` do not fit the context after `length`
    tokens."""
    if not len(ids):
        raise ValueError("at least one token is needed")
    check_context(length + len(ids), context)
