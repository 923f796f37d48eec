"""An ensemble with one n-gram cache of the text, in which each model has its own gates (ngram_cache.py).

Their weight in the cache is their weight in the ensemble, so that where one model predicts alone, the mixture is that
of this model with its own cache. B, T, n = batch, tokens, models.
"""

import numpy as np
from numpy.typing import NDArray

from llmcli.models.ensemble import EnsembleRuntime
from llmcli.models.ngram_cache import CachedText
from llmcli.models.ngram_runtime import CacheRuntimeWithExperts
from llmcli.models.runtime import Array, Scores, WeightedScores


class CachedEnsemble(CacheRuntimeWithExperts):
    """An ensemble with its n-gram cache; runtime.py describes the interface."""

    network: EnsembleRuntime

    def score(self, ids: NDArray[np.int64]) -> Scores:
        losses, correct, shares = self.score_network(ids)
        texts = [CachedText(row, self.weights) for row in ids]
        return np.stack([text.nats(1, *one) for text, *one in zip(texts, losses, shares, strict=True)]), correct

    def score_network(self, ids: NDArray[np.int64]) -> WeightedScores:
        return self.network.score_with_weights(ids)

    def _shares(self, tokens: int) -> Array:
        return self.network.recent_weights(tokens)
