"""Logits to probabilities, losses and entropy. N, V = rows, vocabulary size."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from llmcli.errors import DAMAGED, LLMError
from llmcli.models.runtime import Array, Bools, Doubles, Ints

Floats = TypeVar("Floats", bound=np.floating)


def softmax(logits: NDArray[Floats]) -> NDArray[Floats]:
    """Compute probabilities over the last dimension."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return exponentials


def masked(logits: Array, allowed: Bools | None) -> Array:
    """Set the logits of tokens that are not allowed to -inf; None allows all."""
    return logits if allowed is None else np.where(allowed, logits, np.float32(-np.inf))


def log_softmax(logits: Array) -> Doubles:
    """Compute log probabilities [V] from one row of logits. Raises LLMError if the highest logit is NaN or
    infinite."""
    highest = logits.max()
    check_finite(highest)
    shifted = logits - highest
    return shifted.astype(np.float64) - np.log(float(np.exp(shifted).sum()))


def token_logprob(logits: Array, token: int, highest: np.floating) -> float:
    """Compute the entry of `log_softmax` for one token, with identical bits. The logits must be finite, and
    `highest` must be their maximum."""
    shifted = logits - highest
    return float(shifted[token]) - float(np.log(float(np.exp(shifted).sum())))


def check_finite(value: float | np.floating) -> None:
    """Raise LLMError if a value computed by a model is NaN or infinite."""
    if not np.isfinite(value):
        raise LLMError(f"the model produced NaN or infinite logits: {DAMAGED}")


def token_losses(logits: Array, targets: Ints) -> tuple[Doubles, Bools]:
    """Return (cross-entropy in nats [N], whether the target was the most likely token [N]) for token ids
    `targets` [N]; `logits` [N, V] is overwritten."""
    logits -= logits.max(axis=-1, keepdims=True)
    correct = logits.argmax(axis=-1) == targets
    target_logits = np.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return np.log(np.exp(logits, out=logits).sum(axis=-1, dtype=np.float64)) - target_logits, correct


def entropy(probabilities: NDArray[np.floating]) -> float:
    """Compute the Shannon entropy in bits.

    >>> entropy(np.array([0.5, 0.25, 0.25, 0]))
    1.5
    """
    positive = probabilities[probabilities > 0].astype(np.float64)
    return float(-(positive * np.log2(positive)).sum()) + 0.0
