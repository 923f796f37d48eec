"""A runtime that mixes its predictions with an n-gram cache of the text so far (ngram_cache.py).

Tokens that the model generates (`step`) do not count in the cache, because the model would repeat itself
(LOG.md, "An n-gram cache"). After a rewind, all remaining tokens count, except those that `begin_prompt`
excludes.

B, T, V = batch, tokens, vocabulary size.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from llmcli.formats.training_record import CacheWeights
from llmcli.models.ngram_cache import BYTES_PER_TOKEN, NgramCache, NgramText, Weights
from llmcli.models.runtime import Array, Ints, Runtime, Scores


class NgramRuntime(Runtime):
    """A network with its n-gram cache. In an ensemble, each model has its own gates and its own weight."""

    def __init__(self, network: Runtime, weights: Weights, cache: NgramCache | None = None) -> None:
        super().__init__(network.context, network.parameters, network.cache_bytes_per_token + BYTES_PER_TOKEN)
        self.network = network
        self.weights = weights
        self.cache = cache or NgramCache(weights)
        self.draft_tokens = network.draft_tokens
        self._removed = 0  # number of tokens that a full KV cache has removed; the n-gram cache keeps them

    @property
    def length(self) -> int:
        return self.network.length

    @property
    def cache_bytes(self) -> int:
        """Memory of the KV cache and, approximately, of the n-gram cache."""
        return self.network.cache_bytes + BYTES_PER_TOKEN * len(self.cache)

    def fork(self, length: int = 0) -> "NgramRuntime":
        return type(self)(
            self.network.fork(length), self.weights, self.cache.part(self._removed, self._removed + length)
        )

    def rewind(self, length: int = 0) -> None:
        removed = self._removed
        self._removed = 0
        self.network.rewind(length)
        if removed:
            self.cache = self.cache.part(removed, removed + length)
        else:
            self.cache.rewind(length)

    def begin_prompt(self, cached: int, tokens: int, written: int) -> None:
        """See `Runtime`. Tokens that the model generated do not count in the n-gram cache."""
        self.rewind(cached)
        self.cache.count_first(max(0, tokens - written) if written else None)

    def undo_step(self, length: int) -> None:
        """See `Runtime`. This does not change which tokens count in the n-gram cache."""
        self.network.rewind(length)
        self.cache.drop(self._removed + length)

    def logits_of_draft(self, ids: Sequence[int]) -> Array:
        rows = zip(ids, self.network.logits_of_draft(ids), strict=True)
        return np.stack([self._after_step(token, row) for token, row in rows])

    def shift(self, ids: Sequence[int]) -> range:
        """See `Runtime`. The n-gram cache keeps the whole text."""
        removed = self.network.shift(ids)
        self._removed += len(removed)
        return removed

    def prefill(self, ids: Sequence[int]) -> Array:
        logits = self.network.prefill(ids)
        self._extend(ids)
        return self.cache.mix(logits, self.network.recent_weights(1)[0])

    def read(self, ids: Sequence[int]) -> None:
        self.network.read(ids)
        self._extend(ids)

    def step(self, token: int) -> Array:
        return self._after_step(token, self.network.step(token))

    @staticmethod
    def step_batch(runtimes: "Sequence[NgramRuntime]", tokens: Sequence[int]) -> Array:
        logits = runtimes[0].network.step_batch([runtime.network for runtime in runtimes], tokens)
        rows = zip(runtimes, tokens, logits, strict=True)
        return np.stack([runtime._after_step(token, row) for runtime, token, row in rows])

    def logits(self, ids: Sequence[int]) -> Array:
        return self._extend_and_mix(ids, self.network.logits(ids))

    def continuation_logits(self, texts: Sequence[Sequence[int]]) -> Iterator[Array]:
        """See `Runtime`. The tokens of a text count in the cache, as in a prompt, until the next text."""
        length = len(self.cache)
        for ids, logits in zip(texts, self.network.continuation_logits(texts), strict=True):
            yield self._extend_and_mix(ids, logits)
            self.cache.drop(length)

    def score(self, ids: Ints) -> Scores:
        """See `Runtime`; a token is correct if the network ranks it first."""
        losses, correct, *shares = self.network.score_with_weights(ids)
        texts = [NgramText(row, self.weights) for row in ids]
        return np.stack(
            [text.nats(1, *row) for text, *row in zip(texts, losses, *shares, strict=True)]
        ), correct

    def expert_weights(self) -> Array:
        return self.network.expert_weights()

    def _extend(self, ids: Sequence[int]) -> None:
        for token in ids:
            self.cache.append(token)

    def _extend_and_mix(self, ids: Sequence[int], logits: Array) -> Array:
        """Add tokens [T] to the cache; return the logits [T, V] of the mixture, given the network's."""
        rows = []
        for token, row, shares in zip(ids, logits, self.network.recent_weights(len(ids)), strict=True):
            self._extend((token,))
            rows.append(self.cache.mix(row, shares))
        return np.stack(rows)

    def _after_step(self, token: int, logits: Array) -> Array:
        self.cache.append(token, counts=False)
        return self.cache.mix(logits, self.network.recent_weights(1)[0])


def network_of(runtime: Runtime) -> Runtime:
    return runtime.network if isinstance(runtime, NgramRuntime) else runtime


def with_ngram_cache(network: Runtime, weights: CacheWeights | None) -> Runtime:
    return network if weights is None else NgramRuntime(network, weights)
