"""The n-gram cache against its definition, written out with plain counting."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmcli.data.tokens.batches import PrefixedTokens
from llmcli.errors import LLMError
from llmcli.formats.training_record import CacheWeights, TrainingRecord
from llmcli.models import ngram_cache
from llmcli.models.logits import softmax
from llmcli.models.ngram_cache import NgramCache, NgramText, find_matches

WEIGHTS = CacheWeights(((-1.0, 0.2, -0.3, -0.1), (-0.5, 0.1, -0.8, -0.2), (0.4, -0.2, -0.5, 0.1)))
V = 6


def text(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 4, length).tolist()


def network(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(V).astype(np.float32)


def defined(ids: Sequence[int], probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """The mixture after a text by the formula in the module's docstring."""
    p = probabilities.astype(np.float64)
    for k, weights in enumerate(WEIGHTS.weights, 1):
        places = [i for i in range(k, len(ids)) if ids[i - k : i] == ids[len(ids) - k :]]
        if len(ids) < k or not places:
            continue
        counts = Counter(ids[i] for i in places)
        T, D, G = len(places), len(counts), len(ids) - places[-1]
        z = sum(w * f for w, f in zip(weights, (1, math.log(T), math.log(D / T), math.log(G)), strict=True))
        g = 1 / (1 + math.exp(-z))
        p = (1 - g) * p + g * np.array([counts[v] / T for v in range(V)])
    return p


@pytest.mark.parametrize("few", [0, ngram_cache.FEW_TOKENS])  # mixed in numpy, and in Python's floats
def test_a_growing_text_gives_the_mixture_of_the_definition(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_cache, "FEW_TOKENS", few)
    ids, cache = text(60), NgramCache(WEIGHTS)
    for count, token in enumerate(ids):
        logits = network(count)
        np.testing.assert_allclose(softmax(cache.mix(logits)), defined(ids[:count], softmax(logits)), rtol=1e-5)
        cache.append(token)


def test_a_whole_text_has_the_same_losses() -> None:
    ids = text(80, seed=1)
    rows = [softmax(network(i).astype(np.float64)) for i in range(len(ids))]
    losses = np.array([-math.log(row[token]) for row, token in zip(rows, ids, strict=True)])
    expected = [-math.log(defined(ids[:i], row)[ids[i]]) for i, row in enumerate(rows)]
    cached = NgramText(np.array(ids), WEIGHTS)
    np.testing.assert_allclose(cached.nats(0, losses), expected, rtol=1e-6)
    np.testing.assert_allclose(cached.nats(30, losses[30:45]), expected[30:45], rtol=1e-6)


def test_a_text_is_divided_into_blocks_that_begin_afresh() -> None:
    ids, losses = np.array(text(50, seed=2)), np.full(50, 1.3)
    blocks = NgramText(PrefixedTokens(5, ids[1:]), WEIGHTS, starts=(0, 20, 40)).nats(0, losses)
    ids[0] = 5
    expected = [
        NgramText(ids[first : first + 20], WEIGHTS).nats(0, losses[first : first + 20]) for first in (0, 20, 40)
    ]
    np.testing.assert_allclose(blocks, np.concatenate(expected))


def test_documents_do_not_match_each_other() -> None:
    first, second = text(30, seed=3), text(30, seed=4)
    joined = find_matches(np.array([*first, 5, *second]), 3, separator=5)
    alone = find_matches(np.array(second), 3)
    np.testing.assert_array_equal(joined[:, 31:], alone)


def test_short_texts_have_no_matches() -> None:
    for length in [0, 1, 2]:
        assert not find_matches(np.zeros(length, np.int64), 5).any(), length
        np.testing.assert_allclose(
            NgramText(np.zeros(length, np.int64), WEIGHTS).nats(0, np.ones(length)), np.ones(length)
        )


def test_tokens_that_do_not_count_are_context_until_a_rewind() -> None:
    """After 1 2 1 3 1 the followers of 1 are 2, from the prompt, and 3, which the model wrote."""
    cache = NgramCache(WEIGHTS, [1, 2, 1])
    cache.append(3, counts=False)
    cache.append(1, counts=False)
    assert list(cache.added()) == [2]
    assert [(order, total) for order, _, total, _ in cache.matches()] == [(1, 1)]
    cache.append(2, counts=False)
    assert list(cache.added()) == [1]  # after 1 2
    cache.rewind(5)
    assert cache.added() == NgramCache(WEIGHTS, [1, 2, 1, 3, 1]).added()


@pytest.mark.parametrize("length", [0, 3, 8, 10, 12, 15])
def test_a_rewind_builds_again_only_what_did_not_count(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight tokens that count, four that do not, three that do."""
    ids = text(15, seed=7)
    cache = NgramCache(WEIGHTS, ids[:8])
    for position, token in enumerate(ids[8:]):
        cache.append(token, counts=position >= 4)
    appended, append = [], NgramCache.append
    monkeypatch.setattr(NgramCache, "append", lambda self, token: (appended.append(token), append(self, token)))
    cache.rewind(length)
    assert appended == ids[8:length]
    monkeypatch.undo()
    for token in (None, *text(20, seed=8)):
        if token is not None:
            cache.append(token)
            ids[length:] = [*ids[length:][: len(cache) - length - 1], token]
        assert cache.added() == NgramCache(WEIGHTS, ids[: len(cache)]).added()
    cache.drop(2)
    assert cache.added() == NgramCache(WEIGHTS, ids[:2]).added()


def test_weights_survive_the_record() -> None:
    assert TrainingRecord.from_json({"ngram_cache": WEIGHTS._asdict()}).ngram_cache == ([*map(list, WEIGHTS.weights)],)
    assert TrainingRecord().ngram_cache is None


def test_damaged_weights_are_refused() -> None:
    rows: tuple[Any, ...] = ([], [[1, 2, 3]], [[1, 2, 3, True]], [[1e9] * 4], [[1.0] * 4] * 17, [[math.nan] * 4])
    for value in (1, {}, *({"weights": one} for one in rows)):
        with pytest.raises(LLMError, match=r"^ngram_cache.* (expected (an object|1 to 16 lists of 4)|is missing)"):
            TrainingRecord.from_json({"ngram_cache": value})
