"""Sampling: a token id from logits. A Sampler is built once from a SamplingConfig, then called for every
token.

Filters are pure functions from logits to logits, applied in this order: repetition penalty, temperature,
top-k, top-p, min-p. Removed tokens have logits of -inf. V = vocabulary size.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np

from llmcli.config import SamplingConfig
from llmcli.models.logits import check_finite, masked, softmax, token_logprob
from llmcli.models.runtime import Array, Doubles, Ints

Ids = Collection[int] | Ints


class Sampler:
    """`sampler(logits [V], seen ids)` -> (token id, log probability under the model)."""

    def __init__(self, config: SamplingConfig) -> None:
        self.config = config

    @cached_property
    def _rng(self) -> "np.random.Generator":
        """The random numbers of the draws. Created for the first draw, because importing numpy.random takes a
        twentieth of the time of a short command."""
        return np.random.default_rng(self.config.seed)

    def __call__(
        self, logits: Array, seen: Ids = (), *, model_logits: Array | None = None, tokens: Ints | None = None
    ) -> tuple[int, float]:
        """Choose an entry of `logits`, where -inf marks entries that are not allowed. The repetition penalty
        applies to the tokens `seen`. The log probability is computed from `model_logits`, if given. `tokens`
        are the token ids of the entries (default: their indices). Raises LLMError for NaN or infinite
        logits."""
        model_logits = logits if model_logits is None else model_logits
        highest = model_logits.max()
        check_finite(highest)
        *_, (_, filtered) = self.stages(logits, seen, tokens)
        if self.config.temperature == 0:
            chosen = int(filtered.argmax())
        else:
            kept = np.flatnonzero(filtered > -np.inf)
            chosen = int(kept[self.draw(filtered[kept])])
        return chosen, token_logprob(model_logits, chosen, highest)

    def choose(self, weights: Sequence[float]) -> int:
        """Draw the index of a choice by weight; at temperature 0, return the choice with the largest
        weight."""
        if self.config.temperature == 0 or len(weights) == 1:
            return int(np.argmax(weights))
        return self.draw(np.log(np.array(weights, np.float64)).astype(np.float32))

    def stages(self, logits: Array, seen: Ids, tokens: Ints | None) -> Iterator[tuple[str, Array]]:
        """Yield (name of the filter, logits after it) for each filter in order; arguments as in
        `__call__`."""
        config = self.config
        if tokens is not None and config.repetition_penalty != 1:
            seen = np.flatnonzero(np.isin(tokens, np.fromiter(seen, np.int64, len(seen))))
        logits = repetition_penalty(logits, seen, config.repetition_penalty)
        yield "repetition-penalty", logits
        if config.temperature == 0:  # greedy: the other filters would not change the choice
            return
        logits = temperature(logits, config.temperature)
        yield "temperature", logits
        logits = top_k(logits, config.top_k)
        yield "top-k", logits
        logits = top_p(logits, config.top_p)
        yield "top-p", logits
        yield "min-p", min_p(logits, config.min_p)

    def probabilities(self, logits: Array, tokens: Ints | None = None) -> Doubles:
        """Return the probability with which each entry of `logits` is chosen; arguments as in `__call__`."""
        *_, (_, filtered) = self.stages(logits, (), tokens)
        if self.config.temperature == 0:
            return (np.arange(len(filtered)) == filtered.argmax()).astype(np.float64)
        return softmax(filtered.astype(np.float64))

    def draw(self, logits: Array) -> int:
        """Draw an index from the softmax of the logits, never one whose logit is -inf."""
        cumulative = np.exp(logits - logits.max()).cumsum(dtype=np.float64)
        drawn = int(cumulative.searchsorted(self._rng.random() * cumulative[-1], side="right"))
        return min(drawn, int(cumulative.searchsorted(cumulative[-1])))  # rounding must not exceed the last


def repetition_penalty(logits: Array, seen: Ids, penalty: float) -> Array:
    """Make seen tokens less likely: divide positive logits, multiply negative ones (arXiv:1909.05858, section
    4.1)."""
    if penalty == 1 or not len(seen):
        return logits
    logits = logits.copy()
    ids = np.fromiter(seen, np.int64, len(seen))
    seen_logits = logits[ids]
    logits[ids] = np.where(seen_logits > 0, seen_logits / penalty, seen_logits * penalty)
    return logits


def logit_bias(logits: Array, bias: Array | None, tokens: Ints | None = None) -> Array:
    """Add a bias [V] to the logits of `tokens` (default: the indices)."""
    return logits if bias is None else logits + (bias if tokens is None else bias[tokens])


def temperature(logits: Array, value: float) -> Array:
    """Divide by the temperature: below 1, the distribution becomes sharper; above 1, flatter."""
    return logits if value == 1 else (logits - logits.max()) / usable_temperature(value)


def usable_temperature(value: float) -> np.float32:
    """Return a temperature that float32 can divide by."""
    return np.float32(min(max(value, 1e-6), 1e30))


def top_k(logits: Array, k: int) -> Array:
    """Keep the k most likely tokens, including ties at the end; 0 keeps all."""
    if not 0 < k < len(logits):
        return logits
    threshold = np.partition(logits, -k)[-k]
    return masked(logits, logits >= threshold)


def top_p(logits: Array, p: float) -> Array:
    """Keep the most likely tokens that together reach probability p (nucleus sampling, arXiv:1904.09751)."""
    if p >= 1:
        return logits
    probabilities = softmax(logits)
    # V tokens below this limit have less than 1 - p together: sorting the others takes a fifth of the time
    likely = probabilities[probabilities > (1 - p) / (2 * len(probabilities))]
    ranked = np.sort(likely)[::-1]
    threshold = ranked[min(int(ranked.cumsum(dtype=np.float64).searchsorted(p)), len(ranked) - 1)]
    return masked(logits, probabilities >= threshold)


def min_p(logits: Array, p: float) -> Array:
    """Keep tokens at least p times as likely as the most likely one (arXiv:2407.01082)."""
    if p <= 0:
        return logits
    return masked(logits, logits - logits.max() >= min_logit(p))


@lru_cache(maxsize=32)
def min_logit(p: float) -> np.float32:
    """Return the lowest logit that min-p keeps, relative to the highest."""
    return np.float32(np.log(p) if p > 0 else -np.inf)
