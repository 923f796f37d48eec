"""Configs: what they refuse, their tensors and parameters, and rotary frequencies."""

import math
from dataclasses import fields, replace
from functools import partial

import pytest

from llmcli.config import ModelConfig, RopeScaling, SamplingConfig, TrainConfig, as_record
from llmcli.errors import LLMError

SMALL = ModelConfig(
    vocab_size=10, hidden_size=4, intermediate_size=6, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=2, max_position_embeddings=16,
)  # fmt: skip
MAY_BE_ZERO = ("eos_token_id", "num_experts", "num_experts_per_tok", "sliding_window")
INTEGERS = [field.name for field in fields(ModelConfig) if field.type is int and field.name not in MAY_BE_ZERO]
SPARSE = replace(SMALL, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2)
KINDS = ("sliding_attention", "full_attention")
GEMMA = replace(SMALL, model_type="gemma3_text", layer_types=KINDS, sliding_window=3)


def test_the_integers_of_a_model_config():
    assert len(INTEGERS) == 8  # so that the tables below leave nothing out


def test_sizes_must_be_integers_of_at_least_1():
    for name in INTEGERS:
        for value in [0, -1, 2.0, True, "4", None, math.nan, [4]]:
            with pytest.raises(LLMError, match=name) as caught:
                replace(SMALL, **{name: value})
            assert caught.value.exit_code == 2, (name, value)


def test_other_fields_have_types_and_bounds():
    no_numbers = [0, -1.0, math.nan, math.inf, "1", None, True]
    cases = {
        "rms_norm_eps": no_numbers,
        "rope_theta": no_numbers,
        "eos_token_id": [-1, 10, 11, 0.0, False, "0", None],  # of 10 tokens
        "tie_word_embeddings": ["false", "", 0, 1, None, [False]],
    }
    for name, values in cases.items():
        for value in values:
            with pytest.raises(LLMError, match=name):
                replace(SMALL, **{name: value})
    assert [replace(SMALL, eos_token_id=value).eos_token_id for value in (0, 9)] == [0, 9]


def test_parameters_counted_by_hand():
    layer = 4 + 4 + 16 + 8 + 8 + 2 + 2 + 16 + 24 + 24 + 24
    assert SMALL.parameters == 40 + 2 * layer + 4 + 40 == 348
    assert replace(SMALL, tie_word_embeddings=True).parameters == 308
    assert len(SMALL.tensor_shapes()) == 1 + 2 * 11 + 2
    assert SPARSE.parameters - SPARSE.active_parameters == 2 * 2 * 72  # in 2 layers, 2 experts of 3 * 4 * 6


def test_fields_that_contradict_each_other_are_wrong_usage():
    cases = [
        (SMALL, {"num_attention_heads": 4, "num_key_value_heads": 3}, "key-value heads do not divide"),
        (SMALL, {"num_key_value_heads": 4}, "key-value heads do not divide"),
        (SMALL, {"head_dim": 3}, "must be even"),
        (SPARSE, {"num_experts_per_tok": 5}, r"between 1 and num_experts \(4\), found 5"),
        (SPARSE, {"num_experts_per_tok": 0}, r"between 1 and num_experts \(4\), found 0"),
        (SPARSE, {"num_experts": 0, "num_experts_per_tok": 0}, "qwen3_moe cannot have 0 experts"),
        (SPARSE, {"model_type": "llama"}, "llama cannot have 4 experts"),
        (SPARSE, {"num_experts": -1}, "num_experts"),
        (GEMMA, {"layer_types": ("sliding_attention",)}, "must be 2 of full_attention, sliding_attention, found"),
        (GEMMA, {"sliding_window": 0}, "at least 1 for layers of type sliding_attention, found 0"),
        (GEMMA, {"query_pre_attn_scalar": 0.0}, r"query_pre_attn_scalar` must be between 1e-30 and 1e.30, found 0"),
    ]
    for config, changes, message in cases:
        with pytest.raises(LLMError, match=message) as caught:
            replace(config, **changes)
        assert caught.value.exit_code == 2, (changes, message)


def test_scaling_of_llama_3_by_hand():
    """Frequencies whose wavelength is a 4th of the original length or less stay; from all of it on they are an 8th."""
    rule = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    wavelength = {"short": 2048.0, "long": 8192.0, "between": 8192 / 2.5}
    frequency = {name: 2 * math.pi / length for name, length in wavelength.items()}
    assert rule.scaled(frequency["short"]) == pytest.approx(frequency["short"])
    assert rule.scaled(frequency["long"]) == pytest.approx(frequency["long"] / 8)
    assert rule.scaled(frequency["between"]) == pytest.approx(frequency["between"] * (0.5 + 0.5 / 8))


def test_linear_scaling_divides_all_frequencies():
    config = replace(SMALL, head_dim=4, rope_theta=100.0, rope_scaling=RopeScaling("linear", 4.0))
    assert config.rope_frequencies() == pytest.approx([1 / 4, 0.1 / 4])


def test_an_invalid_train_or_sampling_config_is_refused():
    of_training = {
        "steps": [0], "seconds": [0, -1.0, math.nan, math.inf], "dropout": [-0.1, 1.0, math.nan],
        "lr": [0.0, math.inf, math.nan], "batch_size": [0], "context": [0], "threads": [0], "seed": [-1],
    }  # fmt: skip
    of_sampling = {
        "max_tokens": [-1], "temperature": [-0.1, math.nan, math.inf], "top_k": [-1],
        "top_p": [-0.1, 1.1, math.nan], "min_p": [-0.1, 1.1, math.nan],
        "repetition_penalty": [0.0, math.inf, math.nan], "seed": [-1], "stop": [("a", "")], "min_tokens": [-1],
        "presence_penalty": [2.5], "frequency_penalty": [-3.0], "logit_bias": [((1, 101.0),)],
    }  # fmt: skip
    for config, cases in ((partial(TrainConfig, steps=10), of_training), (SamplingConfig, of_sampling)):
        for name, values in cases.items():
            for value in values:
                with pytest.raises(LLMError, match=f"`{name}`") as caught:
                    config(**{name: value})
                assert caught.value.exit_code == 2, (name, value)


def test_a_record_holds_every_field_in_order():
    config = TrainConfig(steps=7, seconds=2.5, seed=3)
    assert list(as_record(config)) == [field.name for field in fields(TrainConfig)]
    assert TrainConfig(**as_record(config)) == config


def test_each_layer_of_gemma_has_a_kind_and_a_window():
    assert GEMMA.num_hidden_layers == 2 and [GEMMA.window(0), GEMMA.window(1)] == [3, GEMMA.max_position_embeddings]
