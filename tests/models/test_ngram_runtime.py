"""A network with its n-gram cache, compared with the two apart."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from llmcli.config import ModelConfig, SamplingConfig
from llmcli.data.tokens.batches import PrefixedTokens
from llmcli.formats.ensemble_file import Ensemble
from llmcli.formats.training_record import CacheWeights, TrainingRecord
from llmcli.generation.drafts import Drafts
from llmcli.generation.generator import ChosenToken, Piece, decode
from llmcli.models.ensemble import EnsembleRuntime
from llmcli.models.logits import log_softmax, softmax
from llmcli.models.ngram_cache import NgramCache, NgramText
from llmcli.models.ngram_runtime import NgramRuntime, network_of, with_ngram_cache
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.open_runtime import open_runtime
from llmcli.models.runtime import Array
from tests.conftest import random_checkpoint
from tests.evaluation.scoring import evaluate
from tests.models.test_ngram_cache import WEIGHTS, text

CONFIG = ModelConfig(12, 64, 96, 2, 4, 2, 16, 64)
MODEL = random_checkpoint(CONFIG)


def cached() -> NgramRuntime:
    runtime = with_ngram_cache(NumpyRuntime(MODEL), WEIGHTS)
    assert isinstance(runtime, NgramRuntime)
    return runtime


def expected(prompt: list[int], written: list[int]) -> Array:
    """The logits after a prompt and what the model wrote after it."""
    cache = NgramCache(WEIGHTS, prompt)
    for token in written:
        cache.append(token, counts=False)
    return cache.mix(NumpyRuntime(MODEL).prefill([*prompt, *written]))


def test_a_prompt_and_what_the_model_writes_after_it() -> None:
    runtime, prompt, written = cached(), text(20), text(10, seed=1)
    np.testing.assert_allclose(runtime.prefill(prompt), expected(prompt, []), rtol=1e-4, atol=1e-5)
    for count, token in enumerate(written, 1):
        np.testing.assert_allclose(runtime.step(token), expected(prompt, written[:count]), rtol=1e-4, atol=1e-5)
    assert runtime.length == 30


def test_a_step_that_failed_is_undone_without_counting_what_was_written() -> None:
    prompt, written = text(20), text(6, seed=1)
    for is_added in (False, True):
        runtime = cached()
        runtime.prefill(prompt)
        for token in written[:-1]:
            runtime.step(token)
        (runtime if is_added else runtime.network).step(3)
        runtime.undo_step(25)
        np.testing.assert_allclose(runtime.step(written[-1]), expected(prompt, written), rtol=1e-4, atol=1e-5)


def test_several_texts_together() -> None:
    base, prompts = cached(), [text(7 + 3 * n, seed=n) for n in range(3)]
    forks = [base.fork() for _ in prompts]
    for fork, prompt in zip(forks, prompts, strict=True):
        fork.read(prompt)
    for step in range(3):
        logits = base.step_batch(forks, [1, 2, 3])
        for row, prompt, token in zip(logits, prompts, [1, 2, 3], strict=True):
            np.testing.assert_allclose(row, expected(prompt, [token] * (step + 1)), rtol=1e-4, atol=1e-5)


def test_texts_that_continue_one_prompt_count_in_the_cache_as_if_alone() -> None:
    """After each of two rewinds."""
    for kind in ["model", "ensemble"]:
        runtime = cached() if kind == "model" else open_runtime(ensemble_of(WEIGHTS, OTHER))
        alone, prompt = runtime.fork(), text(24)
        texts = [text(length, seed=length) for length in (5, 1, 9, 5)]
        runtime.prefill([*prompt, 3, 1])
        runtime.step(2)
        for length in (24, 9):
            runtime.rewind(length)
            for ids, logits in zip(texts, runtime.continuation_logits(texts), strict=True):
                alone.rewind()
                np.testing.assert_allclose(
                    logits, alone.logits([*prompt[:length], *ids])[length:], rtol=1e-4, atol=1e-5
                )
            alone.rewind()
            after = alone.prefill([*prompt[:length], 2])
            np.testing.assert_allclose(runtime.fork(length).prefill([2]), after, rtol=1e-4, atol=1e-5)


def test_what_is_left_after_a_rewind_or_a_fork_counts_as_a_prompt() -> None:
    runtime, prompt, written = cached(), text(12), text(8, seed=1)
    runtime.prefill(prompt)
    for token in written:
        runtime.step(token)
    known = [*prompt, *written[:5]]
    fork = runtime.fork(17)
    runtime.rewind(17)
    for one in (fork, runtime):
        np.testing.assert_allclose(one.prefill([2]), expected([*known, 2], []), rtol=1e-4, atol=1e-5)


def test_tokens_that_the_model_wrote_do_not_count_when_they_are_read_again() -> None:
    """With any part of them in the KV cache, and after rewinds; a text that begins anew counts as a whole."""
    for known in [0, 7, 16]:
        runtime, prompt, written = cached(), text(12), text(8, seed=1)
        ids = [*prompt, *written]
        runtime.prefill(ids[:known]) if known else None
        runtime.begin_prompt(known, len(ids), len(written))
        np.testing.assert_allclose(runtime.prefill(ids[known:]), expected(prompt, written), rtol=1e-4, atol=1e-5)
        for kept in (19, 13, 9):
            runtime.rewind(kept)
            np.testing.assert_allclose(runtime.prefill(ids[kept:]), expected(prompt, written), rtol=1e-4, atol=1e-5)
        runtime.rewind()
        np.testing.assert_allclose(runtime.prefill(ids), expected(ids, []), rtol=1e-4, atol=1e-5)


def test_the_probabilities_of_generation_are_those_of_evaluation() -> None:
    runtime, ids = cached(), text(50, seed=2)
    rows = runtime.logits(ids)
    losses = [-log_softmax(row)[token] for row, token in zip(rows, ids[1:], strict=False)]
    np.testing.assert_allclose(runtime.score(np.array([ids]))[0][0], losses, rtol=1e-4)
    with_bos = PrefixedTokens(ids[0], np.array(ids[1:]))
    score = evaluate(with_bos, np.ones(12, np.int64), 64, runtime.network.score, cached=NgramText(with_bos, WEIGHTS))
    assert score.nats == pytest.approx(sum(losses), rel=1e-5)
    assert score.network_nats == pytest.approx(float(NumpyRuntime(MODEL).score(np.array([ids]))[0].sum()), rel=1e-5)
    assert score.network_bits_per_byte != score.bits_per_byte


def test_generation_beyond_the_context_copies_only_from_the_prompt() -> None:
    class Given:
        """A text whose tokens are given, not chosen."""

        finish_reason, sampling, tokens = None, SamplingConfig(), 0
        tokenizer = SimpleNamespace(bos_ids=())
        ids, following, drafts = text(40), text(60, seed=1), Drafts()

        def choose(self, logits: Array) -> ChosenToken:
            self.logits = logits
            return self.following.pop(0), 0.0

        def append(self, choice: ChosenToken) -> list[Piece]:
            self.ids.append(choice[0])
            self.finish_reason = None if self.following else "length"
            return []

    runtime, given = cached(), Given()
    assert list(decode(runtime, given)) == []
    cache = NgramCache(WEIGHTS, given.ids[:40])
    for token in given.ids[40:-1]:
        cache.append(token, counts=False)
    network = NumpyRuntime(MODEL)
    for done, token in enumerate(given.ids[:-1]):
        if network.length == network.context:
            network.shift(given.ids[:done])
        logits = network.step(token)
    np.testing.assert_allclose(given.logits, cache.mix(logits), rtol=1e-4, atol=1e-5)
    runtime.rewind()
    np.testing.assert_allclose(runtime.prefill([3]), expected([3], []), rtol=1e-4, atol=1e-5)


OTHER = CacheWeights(tuple(tuple(2 * value for value in row) for row in WEIGHTS.weights[:2]))


def ensemble_of(*weights: CacheWeights | None) -> Ensemble:
    models = tuple(
        replace(
            random_checkpoint(CONFIG, seed),
            record=TrainingRecord.from_json({"ngram_cache": one._asdict()} if one else {}),
        )
        for seed, one in enumerate(weights)
    )
    return Ensemble(models, ("a", "b"))


def test_an_ensemble_averages_mixtures_over_one_cache() -> None:
    for weights in [(WEIGHTS, OTHER), (OTHER, WEIGHTS), (None, WEIGHTS)]:
        runtime, ids = open_runtime(ensemble_of(*weights)), text(40)
        assert isinstance(runtime, NgramRuntime), weights
        network = runtime.network.fork()
        rows, losses = [], []
        for position, token in enumerate(ids):
            logits = network.prefill([token])
            caches = [NgramCache(one, ids[: position + 1]) if one else None for one in weights]
            mixtures = [softmax(cache.mix(logits) if cache else logits) for cache in caches]
            rows.append(np.log(np.tensordot(network.expert_weights()[0], mixtures, 1)))
            losses.append(-rows[-1][ids[position + 1]] if position + 1 < len(ids) else np.nan)
        together = runtime.fork()
        np.testing.assert_allclose([log_softmax(row) for row in together.logits(ids)], rows, atol=1e-4)
        for last in (39, 10):
            together.rewind(last)
            np.testing.assert_allclose(log_softmax(together.prefill([ids[last]])), rows[last], atol=1e-4)
        np.testing.assert_allclose(runtime.score(np.array([ids]))[0][0], losses[:-1], atol=1e-4)
        cached_text = NgramText(np.array(ids), runtime.weights)
        score = evaluate(
            np.array(ids), np.ones(12, np.int64), 64, runtime.network.score_with_weights, cached=cached_text
        )
        assert score.nats == pytest.approx(sum(losses[:-1]), abs=1e-3), weights


def test_what_has_no_cache_is_the_network_and_experts_are_those_of_the_network() -> None:
    network = NumpyRuntime(MODEL)
    assert with_ngram_cache(network, None) is network_of(network) is network
    assert isinstance(open_runtime(ensemble_of(WEIGHTS, OTHER), cache=False), EnsembleRuntime)
    assert isinstance(open_runtime(ensemble_of(None, None)), EnsembleRuntime)
    config = replace(CONFIG, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2)
    network = NumpyRuntime(random_checkpoint(config))
    runtime = with_ngram_cache(network, WEIGHTS)
    runtime.prefill([1, 2, 3])
    np.testing.assert_array_equal(runtime.expert_weights(), network.expert_weights())
    assert network_of(runtime) is network
