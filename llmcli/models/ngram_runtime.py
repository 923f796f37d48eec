"""A runtime whose predictions are mixed with an n-gram cache of the text so far (ngram_cache.py).

What the model writes itself, the tokens of `step`, is not added to the cache, or it would repeat itself (LOG.md, "An
n-gram cache"). After a rewind all that is left is a prompt.

B, T, V = batch, tokens, vocabulary size.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmcli.formats.cache_weights import CacheWeights
from llmcli.models.batch import step_batch
from llmcli.models.ngram_cache import ALONE, BYTES_PER_TOKEN, CachedText, NgramCache, Weights
from llmcli.models.runtime import Array, Runtime, RuntimeWithExperts, Scores, WeightedScores, read


class CacheRuntime:
    """A network with its n-gram cache; runtime.py describes the interface."""

    def __init__(self, network: Runtime, weights: Weights, cache: NgramCache | None = None) -> None:
        self.network, self.weights = network, weights
        self.cache = cache or NgramCache(weights)
        self._start = 0  # where the tokens in the KV cache begin in the n-gram cache
        self._ahead = 0  # tokens at the end of the n-gram cache that the network processes again

    @property
    def context(self) -> int:
        return self.network.context

    @property
    def length(self) -> int:
        return self.network.length

    @property
    def parameters(self) -> int:
        return self.network.parameters

    @property
    def cache_bytes(self) -> int:
        """Memory of the KV cache, and about that of the n-gram cache."""
        return self.network.cache_bytes + BYTES_PER_TOKEN * len(self.cache)

    @property
    def cache_bytes_per_token(self) -> int:
        """Memory that a token takes in both."""
        return self.network.cache_bytes_per_token + BYTES_PER_TOKEN

    def fork(self, length: int = 0) -> "CacheRuntime":
        """A runtime of the same weights, which begins with the first `length` tokens of this one."""
        return type(self)(self.network.fork(length), self.weights, self.cache.part(self._start, self._start + length))

    def rewind(self, length: int = 0) -> None:
        """Drop all but the first `length` tokens."""
        start, self._start, self._ahead = self._start, 0, 0
        self.network.rewind(length)
        if start:
            self.cache = self.cache.part(start, start + length)
        else:
            self.cache.rewind(length)

    def undo_step(self, length: int) -> None:
        """Drop what a step added to the first `length` tokens, of which as many count as before, unlike after `rewind`.
        The step may have failed anywhere."""
        self.network.rewind(length)
        self.cache.drop(self._start + length)

    def process_again(self, tokens: int) -> None:
        """Empty the KV cache of a text that goes on: its end is processed again. The first `tokens` of that the n-gram
        cache has; it keeps the whole text."""
        self.network.rewind()
        self._ahead, self._start = tokens, len(self.cache) - tokens

    def prefill(self, ids: Sequence[int]) -> Array:
        """Process one token or more; return the logits [V] of the next one."""
        logits = self.network.prefill(ids)
        self._extend(ids)
        return self.cache.mix(logits, self._shares(1)[0])

    def read(self, ids: Sequence[int]) -> None:
        """Process one token or more."""
        read(self.network, ids)
        self._extend(ids)

    def step(self, token: int) -> Array:
        """Process one token, which the model wrote; return the logits [V] of the next one."""
        return self._after_step(token, self.network.step(token))

    @staticmethod
    def step_batch(runtimes: "Sequence[CacheRuntime]", tokens: Sequence[int]) -> Array:
        """Process one token in each of several forks of one runtime; return the logits [B, V] after them."""
        logits = step_batch([runtime.network for runtime in runtimes], tokens)
        rows = zip(runtimes, tokens, logits, strict=True)
        return np.stack([runtime._after_step(token, row) for runtime, token, row in rows])

    def logits(self, ids: Sequence[int]) -> Array:
        """Process one token or more; return the logits [T, V] after each of them."""
        rows = []
        logits = self.network.logits(ids)
        for token, row, shares in zip(ids, logits, self._shares(len(ids)), strict=True):
            self._extend((token,))
            rows.append(self.cache.mix(row, shares))
        return np.stack(rows)

    def score(self, ids: NDArray[np.int64]) -> Scores:
        """The loss of each of ids[:, 1:] in windows ids [B, T + 1], each window independently.

        Returns (losses in nats [B, T], whether the target was the network's most likely token [B, T]).
        """
        losses, correct = self.network.score(ids)
        mixed = [CachedText(row, self.weights).nats(1, nats) for row, nats in zip(ids, losses, strict=True)]
        return np.stack(mixed), correct

    def score_network(self, ids: NDArray[np.int64]) -> Scores | WeightedScores:
        """The same for the network alone; of an ensemble also the weights [B, T, n] of its models."""
        return self.network.score(ids)

    def _extend(self, ids: Sequence[int]) -> None:
        known = min(self._ahead, len(ids))
        for token in ids[known:]:
            self.cache.append(token, counts=not known)
        self._ahead -= known

    def _after_step(self, token: int, logits: Array) -> Array:
        self.cache.append(token, counts=False)
        return self.cache.mix(logits, self._shares(1)[0])

    def _shares(self, tokens: int) -> "Sequence[Sequence[float]] | Array":
        """The weights [tokens, n] of an ensemble's models for what follows each of the last tokens."""
        return [ALONE] * tokens


class CacheRuntimeWithExperts(CacheRuntime):
    """The same for a network with experts."""

    network: RuntimeWithExperts

    def expert_weights(self) -> Array:
        """Weights [layers, experts] of the experts for the last token."""
        return self.network.expert_weights()


def process_again(runtime: Runtime, tokens: int) -> None:
    """Empty the KV cache of a text that goes on, whose last tokens are processed again: `tokens` that were processed
    before, and one that was not."""
    if isinstance(runtime, CacheRuntime):
        runtime.process_again(tokens)
    else:
        runtime.rewind()


def undo_step(runtime: Runtime, length: int) -> None:
    """Return to the state before a step that failed, after `length` tokens."""
    if isinstance(runtime, CacheRuntime):
        runtime.undo_step(length)
    else:
        runtime.rewind(length)


def network_of(runtime: Runtime) -> Runtime:
    """The network of a runtime that may have an n-gram cache."""
    return runtime.network if isinstance(runtime, CacheRuntime) else runtime


def with_cache(network: Runtime, weights: CacheWeights | None) -> Runtime:
    """The network with an n-gram cache, if there are weights for one. Those of an ensemble: cached_ensemble.py."""
    if weights is None:
        return network
    kind = CacheRuntimeWithExperts if isinstance(network, RuntimeWithExperts) else CacheRuntime
    return kind(network, weights)
