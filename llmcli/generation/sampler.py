"""Logits -> a token id. Built once from a SamplingConfig, then called for every token.

Filters are pure functions from logits to logits, in the order in which they apply: repetition penalty, temperature,
top-k, top-p, min-p. What is filtered out is -inf.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.models.logits import log_softmax, softmax
from llmcli.models.runtime import Array

Ids = Collection[int] | NDArray[np.int64]


class Sampler:
    """`sampler(logits [V], seen ids)` -> (id, its log probability under the model itself).

    Where -inf stands in the logits nothing is chosen; `own` are then the model's own logits. Entries can stand for
    other tokens than their own number: `tokens` [V].
    """

    def __init__(self, config: SamplingConfig) -> None:
        self._config = config
        self._rng = np.random.default_rng(config.seed)

    def __call__(
        self, logits: Array, seen: Ids = (), *, own: Array | None = None, tokens: NDArray[np.int64] | None = None
    ) -> tuple[int, float]:
        """Choose; raises LLMError when the logits are not numbers."""
        logprobs = log_softmax(logits if own is None else own)
        *_, (_, filtered) = self.stages(logits, seen, tokens)
        token = int(filtered.argmax()) if self._config.temperature == 0 else self._draw(filtered)
        return token, float(logprobs[token])

    def pick(self, weights: Sequence[float]) -> int:
        """One of several that all mean the same, by their weights; the greatest at temperature 0."""
        if self._config.temperature == 0 or len(weights) == 1:
            return int(np.argmax(weights))
        return self._draw(np.log(np.array(weights, np.float64)).astype(np.float32))

    def stages(
        self, logits: Array, seen: Ids = (), tokens: NDArray[np.int64] | None = None
    ) -> Iterator[tuple[str, Array]]:
        """What each filter leaves of the logits, in the order in which they apply: (its name, logits)."""
        config = self._config
        if tokens is not None and config.repetition_penalty != 1:
            seen = np.flatnonzero(np.isin(tokens, as_array(seen)))
        logits = repetition_penalty(logits, seen, config.repetition_penalty)
        yield "repetition-penalty", logits
        if config.temperature == 0:  # the likeliest is taken
            return
        logits = temperature(logits, config.temperature)
        yield "temperature", logits
        logits = top_k(logits, config.top_k)
        yield "top-k", logits
        logits = top_p(logits, config.top_p)
        yield "top-p", logits
        yield "min-p", min_p(logits, config.min_p)

    def _draw(self, logits: Array) -> int:
        heap = np.exp(logits - logits.max()).cumsum(dtype=np.float64)
        token = int(heap.searchsorted(self._rng.random() * heap[-1], side="right"))
        return min(token, int(heap.searchsorted(heap[-1])))  # rounding must not reach what is filtered out


class Seen:
    """The tokens of a text that grows, each once; adding one costs the same however long the text is."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._known: set[int] = set()
        self._ids = np.empty(64, np.int64)
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        if token in self._known:
            return
        if len(self._known) == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
        self._ids[len(self._known)] = token
        self._known.add(token)

    def ids(self) -> NDArray[np.int64]:
        """In the order in which they came; a view."""
        return self._ids[: len(self._known)]


def as_array(ids: Ids) -> NDArray[np.int64]:
    """Distinct token ids; those of an array are taken to be distinct."""
    return ids if isinstance(ids, np.ndarray) else np.fromiter(set(ids), np.int64)


def repetition_penalty(logits: Array, seen: Ids, penalty: float) -> Array:
    """Make tokens that were seen less likely: positive logits divided, negative ones multiplied (CTRL, section 4.1)."""
    if penalty == 1 or not len(seen):
        return logits
    logits, ids = logits.copy(), as_array(seen)
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
    chances = softmax(logits)
    ranked = np.sort(chances)[::-1]
    least = ranked[min(int(ranked.cumsum(dtype=np.float64).searchsorted(p)), len(ranked) - 1)]
    return np.where(chances >= least, logits, np.float32(-np.inf))


def min_p(logits: Array, p: float) -> Array:
    """Keep what is at least p times as likely as the likeliest (arXiv:2407.01082)."""
    if p <= 0:
        return logits
    return np.where(logits >= logits.max() + np.float32(np.log(p)), logits, np.float32(-np.inf))
