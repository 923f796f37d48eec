"""Configs: what they refuse, the tensors they demand, and their JSON."""

import json
import math
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.config import ModelConfig, RopeScaling, SamplingConfig, TrainConfig, as_record
from llmcli.errors import LLMError
from llmcli.formats.hf_config import dump_config, parse_config

SMALL = ModelConfig(
    vocab_size=10,
    hidden_size=4,
    intermediate_size=6,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=2,
    max_position_embeddings=16,
)
MAY_BE_ZERO = ("eos_token_id", "num_experts", "num_experts_per_tok")
WHOLE = [field.name for field in fields(ModelConfig) if field.type is int and field.name not in MAY_BE_ZERO]
SPARSE = replace(SMALL, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2)


def test_the_whole_numbers_of_a_model_config():
    assert len(WHOLE) == 8  # so that the tables below leave nothing out


# ---- what a model config refuses


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4", None, math.nan, [4]])
def test_sizes_must_be_whole_numbers_of_at_least_1(name, value):
    with pytest.raises(LLMError, match=name) as caught:
        replace(SMALL, **{name: value})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", None, True])
def test_epsilon_and_theta_must_be_positive_numbers(name, value):
    with pytest.raises(LLMError, match=name):
        replace(SMALL, **{name: value})


@pytest.mark.parametrize("value", [-1, 10, 11, 0.0, False, "0", None])
def test_the_end_of_text_must_be_an_id_of_the_vocabulary(value):
    with pytest.raises(LLMError, match="eos_token_id"):
        replace(SMALL, eos_token_id=value)


def test_the_end_of_text_may_be_the_first_and_the_last_id():
    assert replace(SMALL, eos_token_id=0).eos_token_id == 0
    assert replace(SMALL, eos_token_id=9).eos_token_id == 9


@pytest.mark.parametrize("value", ["false", "", 0, 1, None, [False]])
def test_tying_must_be_true_or_false(value):
    with pytest.raises(LLMError, match="tie_word_embeddings"):
        replace(SMALL, tie_word_embeddings=value)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 3), (2, 4), (1, 2)])
def test_key_value_heads_must_divide_the_heads(heads, kv_heads):
    with pytest.raises(LLMError, match="key-value heads do not divide") as caught:
        replace(SMALL, num_attention_heads=heads, num_key_value_heads=kv_heads)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("head_dim", [1, 3, 33])
def test_a_head_must_be_of_even_size(head_dim):
    with pytest.raises(LLMError, match="even"):
        replace(SMALL, head_dim=head_dim)


# ---- tensors


def test_the_tensors_of_one_layer_by_name_and_shape():
    layer = "model.layers.0."
    assert list(replace(SMALL, num_hidden_layers=1).tensor_shapes().items()) == [
        ("model.embed_tokens.weight", (10, 4)),
        (layer + "input_layernorm.weight", (4,)),
        (layer + "self_attn.q_proj.weight", (4, 4)),
        (layer + "self_attn.k_proj.weight", (2, 4)),
        (layer + "self_attn.v_proj.weight", (2, 4)),
        (layer + "self_attn.q_norm.weight", (2,)),
        (layer + "self_attn.k_norm.weight", (2,)),
        (layer + "self_attn.o_proj.weight", (4, 4)),
        (layer + "post_attention_layernorm.weight", (4,)),
        (layer + "mlp.gate_proj.weight", (6, 4)),
        (layer + "mlp.up_proj.weight", (6, 4)),
        (layer + "mlp.down_proj.weight", (4, 6)),
        ("model.norm.weight", (4,)),
        ("lm_head.weight", (10, 4)),
    ]


def test_parameters_counted_by_hand():
    layer = 4 + 4 + 16 + 8 + 8 + 2 + 2 + 16 + 24 + 24 + 24
    assert SMALL.parameters == 40 + 2 * layer + 4 + 40 == 348
    assert replace(SMALL, tie_word_embeddings=True).parameters == 308
    assert len(SMALL.tensor_shapes()) == 1 + 2 * 11 + 2


# ---- JSON


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


def test_json_says_what_transformers_needs_to_know():
    found = json.loads(dump_config(replace(SMALL, tie_word_embeddings=True, eos_token_id=3)))
    assert found["architectures"] == ["Qwen3ForCausalLM"]
    assert found["model_type"] == "qwen3"
    assert found["hidden_act"] == "silu"
    assert found["eos_token_id"] == found["bos_token_id"] == 3
    assert found["tie_word_embeddings"] is True
    assert found["attention_bias"] is False
    assert found["use_sliding_window"] is False


def changed(**values):
    return json.dumps(json.loads(dump_config(SMALL)) | values)


def test_keys_that_the_program_does_not_know_are_passed_over():
    assert parse_config(changed(transformers_version="9", hidden_dropout=None)) == SMALL


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": ["qwen3"]}, "model_type"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling of type 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling without what it needs"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "rope_scaling must hold positive numbers"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\]; an object or null is wanted"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0}},
            "needs: a high_freq_factor",
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
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "by type of layer"),
        ({"use_sliding_window": True, "sliding_window": "8", "max_window_layers": 0}, "sliding_window to '8'"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": "1"}, "max_window_layers to '1'"),
        ({"layer_types": ["full_attention"]}, "layer_types that are not run"),
        ({"layer_types": ["sliding_attention"] * 2}, "but no sliding_window in use"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 4.0}, "hidden_size"),
        ({"hidden_size": "4"}, "hidden_size"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
        ({"rope_theta": {}}, "rope_theta"),
        ({"eos_token_id": [0, 10]}, "eos_token_id"),
        ({"eos_token_id": [0, "1"]}, "eos_token_id"),
        ({"bos_token_id": 10}, "bos_token_id 10 is not below"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"num_key_value_heads": 7}, "key-value heads"),
        ({"head_dim": 3}, "head_dim"),
    ],
)
def test_a_config_of_another_graph_or_with_junk_in_it_is_refused(values, message):
    with pytest.raises(LLMError, match=message) as caught:
        parse_config(changed(**values))
    assert "config.json" in str(caught.value)
    assert caught.value.exit_code == 1  # the file is at fault, not what was typed


@pytest.mark.parametrize("name", [name for name in WHOLE if name not in ("num_key_value_heads", "head_dim")])
def test_a_config_that_lacks_a_size_is_refused(name):
    found = json.loads(dump_config(SMALL))
    del found[name]
    with pytest.raises(LLMError, match=f"has no {name}"):
        parse_config(json.dumps(found))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"qwen3"', "{}", "[" * 100_000, '{"vocab_size": 1' + "0" * 5000 + "}", "\0"]
)
def test_what_is_no_config_is_refused(text):
    with pytest.raises(LLMError, match=r"config\.json"):
        parse_config(text)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_a_config_with_experts_comes_back_and_counts_its_parameters(kind):
    config = replace(SPARSE, model_type=kind, norm_topk_prob=True)
    assert parse_config(dump_config(config)) == config
    expert = 3 * 4 * 6
    assert config.parameters - replace(config, num_experts=3).parameters == 2 * (expert + 4)
    assert config.parameters - config.active_parameters == 2 * 2 * expert
    assert SMALL.active_parameters == SMALL.parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 5}, r"between 1 and num_experts \(4\), found 5"),
        ({"num_experts_per_tok": 0}, r"between 1 and num_experts \(4\), found 0"),
        ({"num_experts": 0, "num_experts_per_tok": 0}, "qwen3_moe cannot have 0 experts"),
        ({"model_type": "llama"}, "llama cannot have 4 experts"),
        ({"num_experts": -1}, "num_experts"),
    ],
)
def test_experts_that_cannot_be(changes, message):
    with pytest.raises(LLMError, match=message):
        replace(SPARSE, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": None}, "has no num_experts"),
        ({"num_experts_per_tok": None}, "has no num_experts_per_tok"),
        ({"moe_intermediate_size": None}, "has no moe_intermediate_size"),
        ({"mlp_only_layers": [0]}, "layers without experts"),
        ({"decoder_sparse_step": 2}, "layers without experts"),
        ({"num_experts": "4"}, "config.json is not usable: num_experts must be a whole number"),
    ],
)
def test_a_config_with_other_experts_is_refused(changes, message):
    found = {key: value for key, value in (json.loads(dump_config(SPARSE)) | changes).items() if value is not None}
    with pytest.raises(LLMError, match=message):
        parse_config(json.dumps(found))


def test_as_transformers_reads_it_weights_do_not_sum_to_one_unless_said():
    found = json.loads(dump_config(SPARSE))
    del found["norm_topk_prob"]
    assert not parse_config(json.dumps(found)).norm_topk_prob


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.integers(-3, 20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(json.loads(dump_config(SMALL)))), JSON, max_size=4) | JSON, st.booleans())
def test_any_json_gives_a_config_or_one_error(value, whole):
    text = changed(**value) if whole and isinstance(value, dict) else json.dumps(value)
    try:
        found = parse_config(text)
    except LLMError as error:
        assert "config.json" in str(error)
    else:
        assert isinstance(found, ModelConfig)
        assert all(type(getattr(found, name)) is int for name in [*WHOLE, "eos_token_id"])


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_any_text_that_is_no_config_gives_one_error(text):
    with pytest.raises(LLMError, match=r"config\.json"):
        parse_config(text)


# ---- training and sampling


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "--steps"),
        ({"seconds": 0}, "--time"),
        ({"seconds": -1.0}, "--time"),
        ({"seconds": math.nan}, "--time"),
        ({"seconds": math.inf}, "--time"),
        ({"dropout": -0.1}, "--dropout"),
        ({"dropout": 1.0}, "--dropout"),
        ({"dropout": math.nan}, "--dropout"),
        ({"lr": 0.0}, "--lr"),
        ({"lr": math.inf}, "--lr"),
        ({"lr": math.nan}, "--lr"),
        ({"batch_size": 0}, "batch"),
        ({"context": 0}, "context"),
        ({"threads": 0}, "threads"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_train_config_refuses_what_cannot_be_trained_with(values, message):
    with pytest.raises(LLMError, match=message) as caught:
        TrainConfig(**({"steps": 10} | values))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": -1}, "--max-tokens"),
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": math.nan}, "--temperature"),
        ({"temperature": math.inf}, "--temperature"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
        ({"top_p": math.nan}, "--top-p"),
        ({"min_p": -0.1}, "--min-p"),
        ({"min_p": 1.1}, "--min-p"),
        ({"min_p": math.nan}, "--min-p"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty"),
        ({"repetition_penalty": math.inf}, "--repetition-penalty"),
        ({"repetition_penalty": math.nan}, "--repetition-penalty"),
        ({"seed": -1}, "--seed"),
        ({"stop": ("a", "")}, "--stop"),
    ],
)
def test_a_sampling_config_refuses_what_cannot_be_sampled_with(values, message):
    with pytest.raises(LLMError, match=message) as caught:
        SamplingConfig(**values)
    assert caught.value.exit_code == 2


def test_a_record_holds_every_field_in_order():
    config = TrainConfig(steps=7, seconds=2.5, seed=3)
    assert list(as_record(config)) == [field.name for field in fields(TrainConfig)]
    assert TrainConfig(**as_record(config)) == config


# ---- the configs of other models


LEFT_OUT = "left out"


def told(**values):
    """A config as a directory of another program has it."""
    own = {
        "model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 100,
    }  # fmt: skip
    return parse_config(json.dumps({key: value for key, value in (own | values).items() if value != LEFT_OUT}))


def test_what_old_configs_leave_out():
    found = told(num_key_value_heads=None, head_dim=None)
    assert (found.num_key_value_heads, found.head_dim, found.rope_theta) == (2, 4, 10000.0)
    assert not (found.tie_word_embeddings or found.qk_norm or found.qkv_bias)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("llama", {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "eos_token_id": 2, "bos_token_id": 1}),
        ("mistral", {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "eos_token_id": 2, "bos_token_id": 1}),
        ("mixtral", {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "eos_token_id": 2, "bos_token_id": 1}),
        ("qwen2", {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "bos_token_id": None}),
        ("qwen3", {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "head_dim": 128}),
        ("qwen3_moe", {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "norm_topk_prob": False, "head_dim": 4}),
    ],
)
def test_defaults_go_by_architecture_as_in_transformers(kind, found):
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 6}
    config = told(model_type=kind, **(experts if kind in ("mixtral", "qwen3_moe") else {}))
    assert {key: getattr(config, key) for key in found} == found


def test_key_value_heads_that_are_left_out_are_not_those_that_are_null():
    assert told(num_key_value_heads=LEFT_OUT).num_key_value_heads == 2
    assert told(model_type="mistral", num_key_value_heads=None).num_key_value_heads == 2
    assert (
        told(
            model_type="mistral", num_key_value_heads=LEFT_OUT, num_attention_heads=8, hidden_size=16
        ).num_key_value_heads
        == 8
    )


def test_swish_is_silu():
    assert told(hidden_act="swish") == told(hidden_act="silu") == told()


def test_a_bias_that_the_architecture_does_not_read_is_none():
    assert told(model_type="qwen2", attention_bias=True) == told(model_type="qwen2")
    assert told(model_type="mistral", mlp_bias=True) == told(model_type="mistral")


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("values", "original"),
    [
        ({"rope_scaling": LLAMA3}, 100),  # as long as the model's
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 50}}, 50),
        ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 25}, 25),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 50},
          "original_max_position_embeddings": 25}, 25),
        ({"rope_parameters": LLAMA3, "model_type": "mistral", "sliding_window": 30}, 100),
    ],
)  # fmt: skip
def test_where_the_original_length_is_found(values, original):
    assert told(**values).rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, original)


def test_a_rope_scaling_counts_before_rope_parameters():
    found = told(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters=LLAMA3 | {"rope_theta": 7.0})
    assert found.rope_scaling == RopeScaling("linear", 2.0) and found.rope_theta == 10000.0


def test_the_kind_decides_what_attention_has():
    layer = "model.layers.0.self_attn."
    assert layer + "q_norm.weight" in told(model_type="qwen3").tensor_shapes()
    shapes = told(model_type="qwen2", num_key_value_heads=1).tensor_shapes()
    assert shapes[layer + "q_proj.bias"] == (8,) and shapes[layer + "v_proj.bias"] == (4,)
    assert layer + "q_norm.weight" not in shapes
    assert not [name for name in told().tensor_shapes() if "bias" in name or "q_norm" in name]


@pytest.mark.parametrize(
    ("values", "theta"),
    [
        ({"rope_theta": 500000}, 500000),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6),
        ({"rope_theta": 5.0, "rope_scaling": None}, 5.0),
    ],
)
def test_both_ways_to_tell_the_rotary_positions(values, theta):
    found = told(**values)
    assert found.rope_theta == theta and found.rope_scaling is None


def test_linear_scaling_by_hand():
    found = told(rope_theta=100.0, rope_scaling={"type": "linear", "factor": 4.0})
    assert found.rope_frequencies() == pytest.approx([1 / 4, 0.1 / 4])


def test_scaling_of_llama_3_by_hand():
    """Frequencies whose wavelength is a 4th of the original length or less stay; from all of it on they are an 8th."""
    rule = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    wavelength = {"short": 2048.0, "long": 8192.0, "between": 8192 / 2.5}
    frequency = {name: 2 * math.pi / length for name, length in wavelength.items()}
    assert rule.scaled(frequency["short"]) == pytest.approx(frequency["short"])
    assert rule.scaled(frequency["long"]) == pytest.approx(frequency["long"] / 8)
    assert rule.scaled(frequency["between"]) == pytest.approx(frequency["between"] * (0.5 + 0.5 / 8))


def test_scaled_configs_come_back_as_they_were():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    found = told(rope_scaling=scaling, eos_token_id=[3, 4, 5], bos_token_id=1, model_type="mistral")
    assert parse_config(dump_config(found)) == found
    assert json.loads(dump_config(found))["eos_token_id"] == [3, 4, 5]
    assert (found.eos_token_id, found.extra_eos_ids, found.bos_token_id) == (3, (4, 5), 1)


@pytest.mark.parametrize(
    ("values", "context"),
    [
        ({"model_type": "mistral", "sliding_window": 30}, 30),
        ({"model_type": "mistral", "sliding_window": None}, 100),
        ({"model_type": "qwen2", "sliding_window": 30, "use_sliding_window": False}, 100),
        ({"model_type": "qwen2", "sliding_window": 30, "use_sliding_window": True, "max_window_layers": 0}, 30),
        ({"model_type": "mistral", "sliding_window": 300}, 100),
        ({"model_type": "mistral", "max_position_embeddings": 10000}, 4096),  # the default of transformers
        ({"model_type": "mistral", "max_position_embeddings": 10000, "sliding_window": None}, 10000),
        ({"model_type": "llama", "sliding_window": 30}, 30),  # no limit in its graph, but in its cache
        ({"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 30}, 30),
        ({"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 100}, 100),
        # no layer slides
        ({"model_type": "qwen2", "sliding_window": 30, "use_sliding_window": True, "max_window_layers": 1}, 100),
        ({"model_type": "qwen3", "sliding_window": 30, "use_sliding_window": True}, 100),
        ({"model_type": "qwen2", "sliding_window": 30, "use_sliding_window": True, "max_window_layers": 0,
          "layer_types": ["full_attention"]}, 100),
        ({"model_type": "qwen3", "sliding_window": 30, "use_sliding_window": True,
          "layer_types": ["sliding_attention"]}, 30),
    ],
)  # fmt: skip
def test_within_a_sliding_window_the_graph_is_the_same(values, context):
    assert told(**values).max_position_embeddings == context
