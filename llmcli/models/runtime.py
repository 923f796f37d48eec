"""The interface of every runtime: numpy, onnxruntime, torch, and an ensemble of any of them.

B, T, V = batch, tokens, vocabulary size.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from llmcli.errors import LLMError

Array = NDArray[np.float32]
Scores = tuple[NDArray[np.floating], NDArray[np.bool_]]  # (losses in nats [B, T], whether top-1 was correct [B, T])


class Scorer(Protocol):
    """Computes token losses. Evaluation needs nothing else of a model."""

    @property
    def context(self) -> int:
        """The context length: the most tokens that attend to each other."""

    def score(self, ids: NDArray[np.int64], /) -> Scores:
        """Losses of ids[:, 1:] for windows ids [B, T + 1], each window on its own.

        Returns (losses in nats [B, T], whether the target was the most likely token [B, T]).
        """


class Runtime(Scorer, Protocol):
    """A model ready to run, with a key-value cache of the tokens processed so far."""

    @property
    def length(self) -> int:
        """Number of tokens in the cache, at most `context`."""

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""

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
    """A runtime that combines experts: sparse layers, or the models of an ensemble."""

    def expert_weights(self) -> Array:
        """Weights [layers, experts] that the last token gave to the experts; an ensemble counts as one layer."""


def check_context(tokens: int, context: int) -> None:
    """Raise LLMError when a sequence of `tokens` tokens is longer than the context."""
    if tokens > context:
        raise LLMError(f"{tokens} tokens do not fit the model's context length of {context}; use a shorter text")
