"""The fit of the n-gram cache, on texts drawn from known probabilities: the network's are these, or nearly."""

import numpy as np
import pytest
from numpy.typing import NDArray

from llmcli.config import ModelConfig
from llmcli.formats.training_record import CacheWeights
from llmcli.models.ngram_cache import NgramText
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data import cache_fit
from llmcli.training.data.cache_fit import reserve_tokens

V, SEPARATOR = 50, 50
TOKENS = 12_000


def draw(chain: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A text of a Markov chain [V, V]."""
    ids = [0]
    bounds = chain.cumsum(axis=1)
    for number in rng.random(count - 1):
        ids.append(min(V - 1, int(np.searchsorted(bounds[ids[-1]], number))))
    return np.array(ids)


def losses(chain: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """In nats, of each token but the first, under a network that has learned these probabilities."""
    return -np.log(chain[ids[..., :-1], ids[..., 1:]])


def fit(network: NDArray[np.float64], ids: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch) -> CacheWeights | None:
    monkeypatch.setattr(cache_fit, "score", lambda model, windows: (losses(network, windows), None))
    _, validation = reserve_tokens(ids, 2000, 128, SEPARATOR)
    return validation.fit_cache(LanguageModel(ModelConfig(V + 1, 8, 8, 1, 1, 1, 8, 128)))


def adapting(weights: CacheWeights | None, ids: NDArray[np.int64], nats: NDArray[np.float64]) -> float:
    return float((NgramText(ids, weights).nats(1, nats) if weights else nats).sum())


def test_what_the_network_knows_exactly_needs_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for concentration in [100.0, 0.03]:
        rng = np.random.default_rng(1)
        chain = rng.dirichlet(np.full(V, concentration), size=V) * 0.999 + 0.001 / V
        assert fit(chain, draw(chain, TOKENS, rng), monkeypatch) is None


def test_the_cache_never_makes_a_new_text_worse(monkeypatch) -> None:
    """The network has learned a part of the probabilities, so what was counted in a long text may be better. A new text
    begins with an empty cache, and with counts of 1."""
    for concentration, learned in [(0.1, 0.7), (0.02, 0.9)]:
        rng = np.random.default_rng(2)
        chain = rng.dirichlet(np.full(V, concentration), size=V) * 0.999 + 0.001 / V
        network = learned * chain + (1 - learned) / V
        weights = fit(network, draw(chain, TOKENS, rng), monkeypatch)
        for count in (300, 3000):
            new = draw(chain, count, rng)
            nats = losses(network, new)
            assert adapting(weights, new, nats) < 1.003 * nats.sum()


def test_a_text_that_repeats_what_the_network_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    phrases = rng.integers(0, V, (20, 30))
    ids = np.concatenate(phrases[rng.integers(0, 20, TOKENS // 30)])
    uniform = np.full((V, V), 1 / V)
    weights = fit(uniform, ids, monkeypatch)
    assert weights
    new = np.concatenate(phrases[rng.integers(0, 20, 100)])
    nats = losses(uniform, new)
    assert adapting(weights, new, nats) < 0.5 * nats.sum()
