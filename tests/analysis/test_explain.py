"""Explanations compared with the network, and with the probabilities of `generate`. tests/pages and tests/ecosystem
compare them with another program and with transformers."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmcli.analysis import explain as explain_module
from llmcli.analysis.explain import Explanation, explain, predict_next
from llmcli.config import ModelConfig, SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.generator import generate
from llmcli.generation.next_words import next_words
from llmcli.generation.sampler import Sampler
from llmcli.generation.token_healing import Prompt
from llmcli.generation.trace import trace
from llmcli.models.logits import softmax
from llmcli.models.ngram_runtime import NgramRuntime
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import PREFILL_CHUNK
from tests.conftest import TEXT, random_checkpoint
from tests.models.test_ngram_cache import WEIGHTS

TOKENIZER = Tokenizer.train_bpe([TEXT], 300)
CONFIG = ModelConfig(300, 32, 64, 3, 4, 2, 8, 2 * PREFILL_CHUNK + 40)


def explained(
    prompt: str, config: ModelConfig = CONFIG, *, literal: bool = True, **options: Any
) -> tuple[Explanation, Checkpoint]:
    model = random_checkpoint(config)
    encoded = Prompt.of(prompt, TOKENIZER, literal=literal)
    return explain(NumpyRuntime(model), TOKENIZER, encoded, **options), model


def test_contributions_sum_to_the_logit() -> None:
    for tied in [False, True]:
        for words in [1, 6, PREFILL_CHUNK]:
            explanation, model = explained(" cat" * words, replace(CONFIG, tie_word_embeddings=tied))
            attribution = explanation.attribution
            assert attribution.token == explanation.most_likely(1)[0], (tied, words)
            own = float(NumpyRuntime(model).prefill(explanation.ids)[attribution.token])
            assert attribution.logit == pytest.approx(own, abs=1e-5), (tied, words)  # the sum of all


@pytest.mark.slow
def test_of_many_tokens_the_last_are_analyzed(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "The cat sat on the mat." * 40
    monkeypatch.setattr(explain_module, "MAX_ABLATION_WORK", 0)
    full, _ = explained(prompt)
    for most in (1, 7, len(full.ids) - PREFILL_CHUNK, len(full.ids) - PREFILL_CHUNK + 3):
        monkeypatch.setattr(explain_module, "MAX_TOKENS", most)
        part, _ = explained(prompt)
        assert part.ids == full.ids[-most:] and part.preceding == full.preceding + len(full.ids) - most
        np.testing.assert_allclose(part.attention, full.attention[:, :, -most:, -most:], atol=1e-6)
        np.testing.assert_allclose(part.logit_lens.probabilities, full.logit_lens.probabilities, atol=1e-6)


def test_an_ablation_effect_is_that_of_the_network_without_the_token() -> None:
    explanation, model = explained("The dog ate", candidates=3)
    next_token = explanation.most_likely(1)[0]

    def bits(ids: list[int]) -> float:
        return math.log2(softmax(NumpyRuntime(model).prefill(ids))[next_token])

    expected = [
        bits(explanation.ids) - bits(explanation.ids[:i] + explanation.ids[i + 1 :])
        for i in range(len(explanation.ids) - 1)
    ]
    np.testing.assert_allclose(explanation.ablation_effects, [*expected, math.nan], atol=1e-3)


def test_a_single_token_cannot_be_left_out() -> None:
    explanation, _ = explained("a")
    assert len(explanation.ids) == 1 and np.isnan(explanation.ablation_effects).all()


def test_ablation_of_a_large_model_covers_the_last_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    full, _ = explained("The dog ate the hat.")
    monkeypatch.setattr(explain_module, "MAX_ABLATION_WORK", CONFIG.parameters * 4.5)
    explanation, _ = explained("The dog ate the hat.")
    assert np.isnan(explanation.ablation_effects).tolist() == [True] * (len(explanation.ids) - 3) + [False, False, True]
    np.testing.assert_allclose(explanation.ablation_effects[-3:], full.ablation_effects[-3:])


class RecordingSampler(Sampler):
    """Keeps the logits that it samples from."""

    def __init__(self) -> None:
        super().__init__(SamplingConfig(max_tokens=1, temperature=0.0))
        self.calls: list[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]] = []

    def __call__(self, logits, seen=(), *, model_logits=None, tokens=None):
        self.calls.append((logits, model_logits, tokens))
        return super().__call__(logits, seen, model_logits=model_logits, tokens=tokens)


def test_probabilities_equal_those_of_generate_exactly() -> None:
    for context in [16, 32, 200]:
        for literal in [False, True]:
            for prompt in ["T", "The cat sat on", "The dog ate the hat. " * 8 + "supercalifragil", "食べ"]:
                model = random_checkpoint(replace(CONFIG, max_position_embeddings=context))
                explanation = explain(NumpyRuntime(model), TOKENIZER, Prompt.of(prompt, TOKENIZER, literal=literal))
                sampler = RecordingSampler()
                pieces: Iterator = generate(NumpyRuntime(model), TOKENIZER, prompt, sampler, literal=literal)
                next_token = next(pieces).id
                [(logits, model_logits, tokens)] = sampler.calls
                used = logits if model_logits is None else model_logits
                total = float(np.log(float(np.exp(used - used.max()).sum())))
                logprobs = np.where(np.isneginf(logits), -np.inf, (used - used.max()).astype(np.float64) - total)
                expected = np.full(300, -np.inf)
                np.maximum.at(expected, range(300) if tokens is None else tokens, logprobs)
                assert np.array_equal(explanation.logprobs, expected), (context, literal, prompt)
                assert explanation.most_likely(1) == [next_token], context
                lens = explanation.logit_lens
                if not explanation.tail:
                    assert lens.ids[-1, 0] == next_token, context
                    assert lens.probabilities[-1, 0] == np.float32(np.exp(explanation.logprobs.max()))
                assert literal is False or explanation.tail == "", (context, literal, prompt)
                step = next(trace(NumpyRuntime(model), TOKENIZER, prompt, SamplingConfig(), literal=literal))
                assert step.entropy == pytest.approx(explanation.entropy, abs=1e-4), (context, literal, prompt)


def test_a_token_that_starts_inside_the_prompt_may_be_the_prediction() -> None:
    """After "The do" the model expects " dog": it reads "The", and the tail " do" is part of the predicted token."""
    model = random_checkpoint(CONFIG)
    [dog] = TOKENIZER.encode(" dog")
    head = model.tensors["lm_head.weight"]
    row = head[dog].copy()
    head[:] = 0
    head[dog] = row
    if NumpyRuntime(model).prefill(TOKENIZER.encode("The"))[dog] < 0:
        head[dog] = -row
    explanation = explain(NumpyRuntime(model), TOKENIZER, Prompt.of("The do", TOKENIZER), candidates=3)
    assert explanation.ids == TOKENIZER.encode("The") and explanation.tail == " do"
    for literal in (False, True):
        words, _ = explained("The do", literal=literal, evaluations=50)
        prompt = Prompt.of("The do", TOKENIZER, literal=literal)
        assert words.words == next_words(NumpyRuntime(random_checkpoint(CONFIG)), TOKENIZER, prompt, evaluations=50)
    assert explanation.most_likely(1) == [dog]
    table = TOKENIZER.token_bytes
    fits = [i for i, data in enumerate(table) if data in (b" ", b" d") or data.startswith(b" do")]
    assert set(explanation.logit_lens.ids.ravel().tolist()) <= set(fits)


def test_copies_compare_the_network_and_the_cache_after_the_same_prompt() -> None:
    """Also where the prompt ends inside a token, which the network completes by itself, without the cache."""
    network, prompt = NumpyRuntime(random_checkpoint(CONFIG)), "sat. The dog sat on the mat. The do"
    together = NgramRuntime(network, WEIGHTS)
    [dog] = TOKENIZER.encode(" dog")
    copies = explain(network, TOKENIZER, Prompt.of(prompt, TOKENIZER), predictor=together, token=dog).copies or ()
    for copy in copies:
        for runtime, shown in ((network, copy.network_probability), (together, copy.probability)):
            logprobs = predict_next(runtime, TOKENIZER, Prompt.of(prompt, TOKENIZER)).logprobs
            assert shown == pytest.approx(math.exp(logprobs[copy.token]))
    assert [TOKENIZER.label(copy.token) for copy in copies] == [" dog"]
    ids = TOKENIZER.encode("sat. The dog sat on the mat. The")
    [copy] = explain(network, TOKENIZER, Prompt(ids), predictor=together).copies or ()
    assert (TOKENIZER.label(copy.token), copy.positions) == (" dog", (ids.index(dog),))
    written = Prompt(ids, written=len(ids) - 1)  # " dog" is a token that the model wrote
    assert explain(network, TOKENIZER, written, predictor=together).copies == ()


def test_another_next_token_is_explained_in_its_likeliest_place() -> None:
    """After "The do", " dog" begins inside the prompt, and "." after it."""
    model = random_checkpoint(CONFIG)
    [dog], [dot] = TOKENIZER.encode(" dog"), TOKENIZER.encode(".")
    for token, start, tail in ((dog, "The", " do"), (dot, "The do", "")):
        explanation = explain(NumpyRuntime(model), TOKENIZER, Prompt.of("The do", TOKENIZER), token=token)
        assert (explanation.token, explanation.tail) == (token, tail)
        assert TOKENIZER.decode(explanation.ids) == start
        assert explanation.attribution.token == token
        logit = NumpyRuntime(model).prefill(explanation.ids)[token]
        assert explanation.attribution.logit == pytest.approx(float(logit), abs=1e-4)


def test_of_a_prompt_longer_than_the_context_the_end_is_read() -> None:
    explanation, model = explained("The cat sat on the mat. " * 9, replace(CONFIG, max_position_embeddings=16))
    ids = TOKENIZER.encode("The cat sat on the mat. " * 9)
    assert explanation.ids == ids[-16:] and explanation.truncated == len(ids) - 16 and explanation.preceding == 0
    alone = explain(NumpyRuntime(model), TOKENIZER, Prompt(ids[-16:]))
    np.testing.assert_allclose(explanation.attention, alone.attention, atol=1e-6)


def test_the_entropy_of_a_uniform_distribution_is_the_logarithm_of_its_size() -> None:
    model = random_checkpoint(CONFIG)
    model.tensors["lm_head.weight"][:] = 0
    explanation = explain(NumpyRuntime(model), TOKENIZER, Prompt.of("The cat", TOKENIZER, literal=True))
    allowed = TOKENIZER.vocabulary.allowed()
    assert explanation.entropy == pytest.approx(math.log2(allowed.sum()))
    assert explanation.most_likely(3) == np.flatnonzero(allowed)[:3].tolist()


def processed_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of tokens that networks process from now on, one per call."""
    counts: list[int] = []
    process = NumpyRuntime._process

    def counting(self: NumpyRuntime, ids: list[int], *rest: object) -> object:
        counts.append(len(ids))
        return process(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(NumpyRuntime, "_process", counting)
    return counts


def test_a_long_prompt_is_processed_once_and_its_analyzed_end_again(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, max_position_embeddings=6 * PREFILL_CHUNK)
    network, prompt = NumpyRuntime(random_checkpoint(config)), Prompt([5, 6, 7, 8] * 150)
    for predictor in [network, NgramRuntime(network, WEIGHTS)]:
        counts = processed_tokens(monkeypatch)
        whole = explain(network, TOKENIZER, prompt, predictor=predictor, ablates=False)
        assert sum(counts) <= 600 + explain_module.MAX_TOKENS + 1
        monkeypatch.undo()
        alone = NumpyRuntime(random_checkpoint(config))
        recorder = explain_module.ActivationRecorder(alone.config, 600, explain_module.MAX_TOKENS)
        alone.prefill(prompt.ids, recorder)
        np.testing.assert_allclose(whole.attention, recorder.weights, atol=1e-5)


def test_an_explanation_stops_while_the_prompt_is_processed() -> None:
    class StoppedError(Exception):
        pass

    network = NumpyRuntime(random_checkpoint(CONFIG))

    def stop() -> None:
        if network.length:
            raise StoppedError

    network.check = stop
    with pytest.raises(StoppedError):
        explain(network, TOKENIZER, Prompt([5, 6, 7, 8] * 70))
    assert network.length == PREFILL_CHUNK
