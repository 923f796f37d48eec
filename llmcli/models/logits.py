"""Logits to probabilities: softmax, its normalization, entropy."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from llmcli.errors import LLMError

Array = NDArray[np.float32]
Floats = TypeVar("Floats", bound=np.floating)


def highest_of(logits: Array) -> float:
    """The highest logit; raises LLMError when it is not a number."""
    highest = logits.max()
    if not np.isfinite(highest):
        raise LLMError("the model's answer is not a number: its weights are damaged (look: llm inspect --verify)")
    return float(highest)


def normalized(logits: Array) -> tuple[Array, float]:
    """(logits less their highest, the logarithm of the sum of their exponentials): log p(i) is the first's i less the
    second. Raises LLMError as `highest_of` does."""
    shifted = logits - np.float32(highest_of(logits))
    return shifted, float(np.log(float(np.exp(shifted).sum())))


def entropy(chances: NDArray[np.floating]) -> float:
    """How unsure probabilities are, in bits.

    >>> entropy(np.array([0.5, 0.25, 0.25, 0]))
    1.5
    """
    some = chances[chances > 0].astype(np.float64)
    return float(-(some * np.log2(some)).sum()) + 0.0


def probabilities(logits: NDArray[Floats]) -> NDArray[Floats]:
    """softmax(logits), over the last dimension."""
    heap = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return heap / heap.sum(axis=-1, keepdims=True)
