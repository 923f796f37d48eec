"""Hugging Face's config.json: round trips, defaults of each architecture, and unsupported configs."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.config import ModelConfig, RopeScaling, as_record
from llmcli.errors import LLMError
from llmcli.formats.huggingface.config import dump_config, parse_config
from tests.formats.test_metadata import json_values
from tests.test_config import INTEGERS, SMALL, SPARSE


def model_configs():
    sizes = st.integers(1, 1 << 24)
    return st.builds(
        lambda vocab, width, inner, layers, groups, per_group, half, context, tie, eps, theta, eos: ModelConfig(
            vocab, width, inner, layers, groups * per_group, groups, 2 * half, context, tie, eps, theta, eos % vocab
        ),
        sizes, sizes, sizes, sizes, sizes, st.integers(1, 64), sizes, sizes, st.booleans(),
        st.floats(1e-12, 1e-2), st.floats(1.0, 1e9), st.integers(0, 1 << 30),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(model_configs())
def test_json_round_trip(config):
    assert parse_config(dump_config(config)) == config


def test_configs_with_scaling_several_end_tokens_or_experts_round_trip():
    scaling = {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192), "extra_eos_ids": (4, 5), "bos_token_id": 1}
    experts = [replace(SPARSE, model_type=kind, norm_topk_prob=True) for kind in ("qwen3_moe", "mixtral")]
    for config in (replace(SMALL, model_type="mistral", **scaling), *experts):
        assert parse_config(dump_config(config)) == config


KEYS = sorted(json.loads(dump_config(SMALL)))


def changed(base=SMALL, **values):
    return json.dumps(json.loads(dump_config(base)) | values)


def test_an_unsupported_or_invalid_config_is_an_error():
    cases = [
        ({"model_type": "bert"}, "model_type to 'bert'"),
        ({"model_type": None}, "has no model_type"),
        ({"model_type": ["qwen3"]}, "model_type"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling of type 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling without factor$"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "rope_scaling: `factor` must be between"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\]; expected an object"),
        ({"model_type": "gemma3_text", "rope_parameters": {"full_attention": 5}}, "supported: objects for full_att"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0}},
            "without high_freq_factor",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
            "low_freq_factor must be below",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias"),
        ({"per_layer_config": {"0": {}}}, "per_layer_config"),
        ({"attention_chunk_size": 8}, "attention_chunk_size"),
        ({"is_causal": False}, "is_causal"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor to 0.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "for each type of layer"),
        ({"use_sliding_window": True, "sliding_window": "8", "max_window_layers": 0}, "window is '8'"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": "1"}, "layers is '1'"),
        ({"layer_types": ["full_attention"]}, "layer_types to"),
        ({"layer_types": ["sliding_attention"] * 2}, "but no sliding_window in use"),
        ({"hidden_act": "relu"}, "hidden_act to 'relu'; supported: silu, gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
        ({"eos_token_id": [0, 10]}, "eos_token_id"),
        ({"eos_token_id": [0, "1"]}, "eos_token_id"),
        ({"bos_token_id": 10}, "bos_token_id 10 is not below"),
    ]
    of_experts = [
        ({"num_experts": None}, "has no num_experts"),
        ({"num_experts_per_tok": None}, "has no num_experts_per_tok"),
        ({"moe_intermediate_size": None}, "has no moe_intermediate_size"),
        ({"mlp_only_layers": [0]}, "layers with and without experts"),
        ({"decoder_sparse_step": 2}, "layers with and without experts"),
        ({"num_experts": "4"}, "is not valid: num_experts must be an integer"),
    ]
    for base, (values, message) in [*((SMALL, case) for case in cases), *((SPARSE, case) for case in of_experts)]:
        with pytest.raises(LLMError, match=message) as caught:
            parse_config(changed(base, **values))
        assert "config.json" in str(caught.value), (values, message)
        assert caught.value.exit_code == 1, (values, message)  # the file is at fault, not what was typed


def test_text_that_is_not_a_config_is_an_error():
    numbers = '{"vocab_size": 1' + "0" * 5000 + "}"
    for text in ["", "{", "[]", "null", "3", '"qwen3"', "{}", "[" * 100_000, numbers, "\0"]:
        with pytest.raises(LLMError, match=r"config\.json"):
            parse_config(text)
    for name in [name for name in INTEGERS if name not in ("num_key_value_heads", "head_dim")]:
        with pytest.raises(LLMError, match=f"has no {name}"):
            parse_config(changed(**{name: None}))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4) | json_values, st.booleans())
def test_any_json_gives_a_config_or_one_error(value, whole):
    text = changed(**value) if whole and isinstance(value, dict) else json.dumps(value)
    try:
        config = parse_config(text)
    except LLMError as error:
        assert "config.json" in str(error)
    else:
        assert isinstance(config, ModelConfig)
        assert all(type(getattr(config, name)) is int for name in [*INTEGERS, "eos_token_id"])


def parsed(**values):
    """The config.json of another program."""
    defaults = {
        "model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 100,
    }  # fmt: skip
    return parse_config(json.dumps(defaults | values))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL = "original_max_position_embeddings"
MIXTRAL = {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
SLIDING = {"sliding_window": 30, "use_sliding_window": True}


def context(length: int) -> dict[str, int]:
    return {"max_position_embeddings": length}


def test_keys_are_read_as_in_transformers():
    """tests/ecosystem/test_config_keys.py compares the logits with and without each key."""
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 25)
    cases = [
        ({}, {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "eos_token_id": 2, "bos_token_id": 1}),
        ({"model_type": "mistral"}, {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "eos_token_id": 2, "bos_token_id": 1}),
        (MIXTRAL, {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "eos_token_id": 2, "bos_token_id": 1}),
        ({"model_type": "qwen2"}, {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "bos_token_id": None}),
        ({"model_type": "qwen3"}, {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "head_dim": 128}),
        ({"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 6},
         {"rope_theta": 1e4, "norm_topk_prob": False, "head_dim": 4, "intermediate_size": 6}),
        ({"rope_scaling": LLAMA3, ORIGINAL: 25}, {"rope_scaling": scaling}),
        ({"rope_scaling": LLAMA3 | {ORIGINAL: 50}, ORIGINAL: 25}, {"rope_scaling": scaling}),
        # the context length ends at the sliding window
        ({"model_type": "mistral", "sliding_window": 30}, context(30)),
        ({"model_type": "mistral", "sliding_window": None}, context(100)),
        ({"model_type": "mistral", "sliding_window": 300}, context(100)),
        ({"model_type": "mistral", "max_position_embeddings": 10000}, context(4096)),
        ({"model_type": "mistral", "max_position_embeddings": 10000, "sliding_window": None}, context(10000)),
        ({"model_type": "llama", "sliding_window": 30}, context(30)),  # no limit in its graph, but in its cache
        (MIXTRAL | {"sliding_window": 30}, context(30)),
        (MIXTRAL | {"sliding_window": 100}, context(100)),
        ({"model_type": "qwen2", "max_window_layers": 0} | SLIDING, context(30)),
        ({"model_type": "qwen2", "max_window_layers": 0} | SLIDING | {"use_sliding_window": False}, context(100)),
        ({"model_type": "qwen2", "max_window_layers": 1} | SLIDING, context(100)),  # no layer slides
        ({"model_type": "qwen3"} | SLIDING, context(100)),
        ({"model_type": "qwen2", "max_window_layers": 0, "layer_types": ["full_attention"]} | SLIDING, context(100)),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"]} | SLIDING, context(30)),
    ]  # fmt: skip
    for values, expected in cases:
        found = as_record(parsed(**values))
        assert found == found | expected, (values, expected)
