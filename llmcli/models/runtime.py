"""The interface of every runtime: numpy, onnxruntime, torch, and an ensemble of any of them.

B, T, V = batch, tokens, vocabulary size.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from llmcli.config import ModelConfig
from llmcli.errors import LLMError

Array = NDArray[np.float32]
Scores = tuple[NDArray[np.floating], NDArray[np.bool_]]  # (losses in nats [B, T], whether top-1 was correct [B, T])
WeightedScores = tuple[NDArray[np.floating], NDArray[np.bool_], Array]  # with the weights [B, T, n] of n models
PREFILL_CHUNK = 128  # tokens processed at a time during prefill
LOGITS_AT_ONCE = 1 << 22  # logits held in memory while scoring: 16 MB


class Scorer(Protocol):
    """Computes token losses: all that evaluation needs of a model."""

    @property
    def context(self) -> int:
        """The context length: the maximum number of tokens in a sequence."""

    def score(self, ids: NDArray[np.int64], /) -> Scores:
        """The loss of each of ids[:, 1:] in windows ids [B, T + 1], each window independently.

        Returns (losses in nats [B, T], whether the target was the most likely token [B, T]). A runtime's cache is
        unchanged. Raises LLMError when T exceeds the context.
        """


class Runtime(Scorer, Protocol):
    """A model ready to run, with a key-value (KV) cache of the tokens processed so far.

    Every method that processes tokens raises LLMError when they do not fit the context, and ValueError for no tokens.
    """

    @property
    def length(self) -> int:
        """Number of tokens in the cache, at most `context`."""

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache, as it is allocated."""

    @property
    def cache_bytes_per_token(self) -> int:
        """Memory that a token takes in the cache."""

    def fork(self, length: int = 0) -> "Runtime":
        """A runtime of the same weights, whose own cache begins with the first `length` tokens of this one's."""

    def prefill(self, ids: Sequence[int]) -> Array:
        """Process one token or more; return the logits [V] of the next one."""

    def step(self, token: int) -> Array:
        """Process one token; return the logits [V] of the next one."""

    def logits(self, ids: Sequence[int]) -> Array:
        """Process one token or more; return the logits [T, V] after each of them."""

    def rewind(self, length: int = 0) -> None:
        """Drop all but the first `length` tokens from the cache."""


@runtime_checkable
class RuntimeWithExperts(Runtime, Protocol):
    """A runtime that combines experts: those of sparse layers, or the models of an ensemble."""

    def expert_weights(self) -> Array:
        """Weights [layers, experts] of the experts for the last token; an ensemble counts as one layer."""


@runtime_checkable
class ReadingRuntime(Runtime, Protocol):
    """A runtime that processes tokens without computing logits."""

    def read(self, ids: Sequence[int]) -> None:
        """Process one token or more."""


@runtime_checkable
class BatchRuntime(Protocol):
    """A runtime whose forks can be processed together. Linear layers read each weight once for all of them, so that
    several texts take hardly longer than one. Results may differ in the last bits from those of single steps, since
    matrix products of other shapes add in another order."""

    @staticmethod
    def step_batch(runtimes: Sequence[Any], tokens: Sequence[int]) -> Array:
        """Process one token in each of B forks of one runtime; return the logits [B, V] after them."""


class CheckpointRuntime:
    """The properties of a runtime that follow from the config of its model."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.context = config.max_position_embeddings

    @property
    def parameters(self) -> int:
        return self.config.parameters

    @property
    def cache_bytes_per_token(self) -> int:
        return self.config.cache_bytes_per_token


def read(runtime: Runtime, ids: Sequence[int]) -> None:
    """Process one token or more, after which the logits are not needed."""
    if isinstance(runtime, ReadingRuntime):
        runtime.read(ids)
    else:
        runtime.prefill(ids)


def step_batch(runtimes: Sequence[Runtime], tokens: Sequence[int]) -> Array:
    """Process one token in each of B forks of one runtime, together if it can; return the logits [B, V] after them."""
    if len(runtimes) > 1 and isinstance(runtimes[0], BatchRuntime):
        return runtimes[0].step_batch(runtimes, tokens)
    return np.stack([runtime.step(token) for runtime, token in zip(runtimes, tokens, strict=True)])


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
