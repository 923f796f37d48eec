"""Models without some parts, compared with models whose weights of these parts are zero in the file."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmcli.analysis import explain as explain_module
from llmcli.analysis.comparison import Comparison, compare, parse_parts
from llmcli.analysis.explain import explain
from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.generation.next_words import next_words
from llmcli.generation.token_healing import Prompt
from llmcli.models.ngram_runtime import NgramRuntime
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import PREFILL_CHUNK
from tests.analysis.test_explain import CONFIG, TOKENIZER
from tests.conftest import random_checkpoint
from tests.models.test_ngram_cache import WEIGHTS
from tests.pages.live import switched_off

EXPERTS = replace(CONFIG, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2)
PARTS = [("2.3",), ("1",), ("3.1", "2", "1.4", "1.1"), ("1", "2", "3")]


def compared(prompt: str, config: ModelConfig = CONFIG, *, literal: bool = True, **options: Any) -> Comparison:
    runtime = NumpyRuntime(random_checkpoint(config))
    encoded = Prompt.of(prompt, TOKENIZER, literal=literal)
    return compare(runtime, TOKENIZER, encoded, **options)


@pytest.mark.usefixtures("short_search")
def test_the_divergence_and_the_change_of_a_token_are_those_of_the_definition() -> None:
    for without in PARTS:
        comparison = compared("The dog ate", without=without)
        p, q = (np.exp(explanation.logprobs) for explanation in (comparison.first, comparison.second))
        likeliest, token = comparison.next_tokens(1)[0], int(p.argmax())
        assert (likeliest.token, likeliest.first) == (token, p[token]), without
        assert likeliest.bits == pytest.approx(math.log2(q[token] / p[token])), without
        p, q = p[p > 0] / p.sum(), q[p > 0] / q.sum()
        assert comparison.kl_divergence == pytest.approx(float(p @ np.log2(p / q))), without


@pytest.mark.usefixtures("short_search")
def test_activations_equal_those_of_a_file_with_weights_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    for config in [CONFIG, EXPERTS]:
        for without in PARTS[::2]:
            monkeypatch.setattr(explain_module, "MAX_ABLATION_WORK", 0)  # leaving out each of many tokens takes seconds
            prompt = "The cat sat on the mat. " * (PREFILL_CHUNK // 6)
            second = compared(prompt, config, without=without).second
            network = NumpyRuntime(switched_off(random_checkpoint(config), without))
            token = compared(prompt, config).first.token
            truth = explain(network, TOKENIZER, Prompt.of(prompt, TOKENIZER, literal=True), token=token)
            assert second.attribution.token == token, (config, without)
            np.testing.assert_allclose(second.logit_lens.probabilities, truth.logit_lens.probabilities, atol=1e-6)
            np.testing.assert_allclose(second.attention, truth.attention, atol=1e-6)
            np.testing.assert_allclose(second.attribution.heads, truth.attribution.heads, atol=1e-5)
            for part in without:
                layer, _, head = part.partition(".")
                heads = second.attribution.heads[int(layer) - 1]
                assert not (heads[int(head) - 1] if head else heads).any(), (config, without)


@pytest.mark.usefixtures("short_search")
def test_tokens_that_start_inside_the_prompt_are_compared_by_the_text_that_they_add() -> None:
    for prompt in ["The d", "The cat sat o", "りんごを食"]:
        same = compared(prompt, literal=False, other=Prompt.of(prompt, TOKENIZER))
        other = compared(prompt, literal=False, without=("1", "2", "3"))
        assert same.kl_divergence == 0 and all(change.bits == 0 for change in same.next_tokens(9)), prompt
        assert 0 < other.kl_divergence < 30, prompt
        total = sum(change.first for change in other.next_tokens(10_000))
        assert total == pytest.approx(np.exp(other.first.prediction.text_logprobs).sum(), abs=1e-6), prompt


@pytest.mark.usefixtures("short_search")
def test_two_prompts_are_explained_as_each_alone() -> None:
    runtime = NumpyRuntime(random_checkpoint(CONFIG))
    prompts = [Prompt.of(text, TOKENIZER) for text in ("The cat", "The dog ate")]
    before = runtime.prefill([1, 2, 3])
    comparison = compare(runtime, TOKENIZER, prompts[0], other=prompts[1], without=["2.1", "2.1"])
    assert comparison.without == ("2.1",)
    runtime.rewind()
    assert np.array_equal(runtime.prefill([1, 2, 3]), before)  # the model itself does not change
    reduced = runtime.without([(1, 0)])
    for prompt, explanation in zip(prompts, (comparison.first, comparison.second), strict=True):
        assert np.array_equal(explanation.logprobs, explain(reduced, TOKENIZER, prompt).logprobs)
        assert explanation.words == next_words(reduced, TOKENIZER, prompt)


@pytest.mark.usefixtures("short_search")
def test_an_ngram_cache_stays_on() -> None:
    model, prompt = random_checkpoint(CONFIG), Prompt.of("The cat sat. The cat", TOKENIZER, literal=True)
    network = NumpyRuntime(model)
    predictor = NgramRuntime(network, WEIGHTS)
    found = compare(network, TOKENIZER, prompt, without=["1"], predictor=predictor).second
    reduced = NgramRuntime(NumpyRuntime(switched_off(model, ("1",))), WEIGHTS)
    np.testing.assert_allclose(
        found.logprobs, explain(reduced.network, TOKENIZER, prompt, predictor=reduced).logprobs, atol=1e-5
    )
    assert found.copies
    without = compare(network, TOKENIZER, prompt, without=["cache", "1"], predictor=predictor).second
    alone = explain(reduced.network, TOKENIZER, prompt)
    np.testing.assert_allclose(without.logprobs, alone.logprobs, atol=1e-5)
    assert without.copies is None
    with pytest.raises(LLMError, match="the model has no n-gram cache to switch off"):
        compare(network, TOKENIZER, prompt, without=["cache"])


def test_a_part_that_the_model_does_not_have_is_refused_with_those_that_it_has() -> None:
    for name in ["0", "4", "2.0", "2.5", "x", "", "1.", ".1", "1.1.1", "-1", "１", "1 ", "9" * 99]:
        with pytest.raises(LLMError, match=r"the model has layers 1 to 3, with 4 heads each, found ") as error:
            parse_parts(["1", name], CONFIG, has_cache=True)
        assert "\n" not in str(error.value), name


def test_parts_are_counted_from_one() -> None:
    assert parse_parts(["1", "2.3", "03.04"], CONFIG, has_cache=True) == [(0, None), (1, 2), (2, 3)]
