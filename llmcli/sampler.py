"""Logits -> a token id. Built once from a SamplingConfig, then called for every token.

Filters are pure functions from logits to logits, in the order in which they apply: repetition penalty, temperature,
top-k, top-p, min-p. What is filtered out is -inf.
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.errors import LLMError

Array = NDArray[np.float32]


class Sampler:
    """`sampler(logits [V], seen ids)` -> (id, its log probability under the model itself)."""

    def __init__(self, config: SamplingConfig) -> None:
        self._config = config
        self._rng = np.random.default_rng(config.seed)

    def __call__(self, logits: Array, seen: Collection[int] = ()) -> tuple[int, float]:
        """Choose; raises LLMError when the logits are not numbers."""
        highest = highest_of(logits)
        config = self._config
        shifted = logits - np.float32(highest)
        total = float(np.exp(shifted).sum())
        filtered = repetition_penalty(logits, seen, config.repetition_penalty)
        if config.temperature == 0:
            token = int(filtered.argmax())
        else:
            filtered = temperature(filtered, config.temperature)
            filtered = top_k(filtered, config.top_k)
            filtered = top_p(filtered, config.top_p)
            filtered = min_p(filtered, config.min_p)
            token = self._draw(filtered)
        return token, float(shifted[token]) - float(np.log(total))

    def _draw(self, logits: Array) -> int:
        heap = np.exp(logits - logits.max()).cumsum(dtype=np.float64)
        token = int(heap.searchsorted(self._rng.random() * heap[-1], side="right"))
        return min(token, int(heap.searchsorted(heap[-1])))  # rounding must not reach what is filtered out


def highest_of(logits: Array) -> float:
    """The highest logit; raises LLMError when it is not a number."""
    highest = logits.max()
    if not np.isfinite(highest):
        raise LLMError("the model's answer is not a number: its weights are damaged (look: llm inspect --verify)")
    return float(highest)


def probabilities(logits: Array) -> Array:
    """softmax(logits), over the last dimension."""
    heap = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return heap / heap.sum(axis=-1, keepdims=True)


def repetition_penalty(logits: Array, seen: Collection[int], penalty: float) -> Array:
    """Make tokens that were seen less likely: positive logits divided, negative ones multiplied (CTRL, section 4.1)."""
    if penalty == 1 or not seen:
        return logits
    logits = logits.copy()
    ids = np.fromiter(set(seen), np.int64)
    found = logits[ids]
    logits[ids] = np.where(found > 0, found / penalty, found * penalty)
    return logits


def temperature(logits: Array, value: float) -> Array:
    """Below 1 the likely becomes likelier, above 1 everything becomes more alike."""
    return logits if value == 1 else (logits - logits.max()) / np.float32(min(max(value, 1e-6), 1e30))


def top_k(logits: Array, k: int) -> Array:
    """Keep the k likeliest; 0 keeps all. Equals of the last one kept stay too."""
    if not 0 < k < len(logits):
        return logits
    least = np.partition(logits, -k)[-k]
    return np.where(logits >= least, logits, np.float32(-np.inf))


def top_p(logits: Array, p: float) -> Array:
    """Keep the likeliest that together reach probability p (nucleus sampling, arXiv:1904.09751)."""
    if p >= 1:
        return logits
    chances = probabilities(logits)
    ranked = np.sort(chances)[::-1]
    least = ranked[min(int(ranked.cumsum(dtype=np.float64).searchsorted(p)), len(ranked) - 1)]
    return np.where(chances >= least, logits, np.float32(-np.inf))


def min_p(logits: Array, p: float) -> Array:
    """Keep what is at least p times as likely as the likeliest (arXiv:2407.01082)."""
    if p <= 0:
        return logits
    return np.where(logits >= logits.max() + np.float32(np.log(p)), logits, np.float32(-np.inf))
