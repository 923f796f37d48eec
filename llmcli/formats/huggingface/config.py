"""Conversion between Hugging Face's config.json and a ModelConfig.

A key that would change the computation is an error; it is never ignored.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace

from llmcli.config import (
    ACTIVATIONS,
    ARCHITECTURES,
    LAYER_TYPES,
    REWRITTEN,
    ROPE_TYPES,
    ModelConfig,
    RopeScaling,
    Shape,
    as_record,
)
from llmcli.errors import LLMError, brief, prefixed
from llmcli.formats.metadata import Count, Json, JsonObject, parse_document, read_as

# in every architecture
UNSUPPORTED_KEYS = ("quantization_config", "per_layer_config", "attention_chunk_size")
_OWN_KEYS = {key for architecture in ARCHITECTURES.values() for key in architecture.own_keys}
_ROPE_KEYS = {  # rope type -> required keys
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_ACTIVATIONS = {  # some have several names
    **{name: name for name in ACTIVATIONS},
    "swish": "silu",
    "gelu_new": "gelu_pytorch_tanh",
}
_LAYER_TYPES = (*LAYER_TYPES, "attention")  # an older name of "full_attention"
_MAX_LISTED_LAYERS = 1 << 20


class _Keys(JsonObject):  # keys that ModelConfig does not have, or has with another type
    eos_token_id: Count | tuple[Count, ...] = 0
    layer_types: tuple[str, ...] | None = None
    max_window_layers: Count = 0
    no_rope_layer_interval: Count = 4
    no_rope_layers: tuple[Count | bool, ...] | None = None
    num_hidden_layers: Count = 0
    rope_parameters: Json | None = None
    rope_scaling: Json | None = None
    sliding_window: Count | None = None
    sliding_window_pattern: object = 0
    use_sliding_window: object = False


def dump_config(config: ModelConfig, dtype: str = "float32") -> str:
    """Return the text of config.json for a Hugging Face directory; `dtype` is torch's name for the dtype of
    weights."""
    experts: Json = {}
    if config.model_type == "qwen3_moe":
        experts = {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": config.intermediate_size,
            "norm_topk_prob": config.norm_topk_prob,
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.num_experts_per_tok,
        }
    elif config.model_type == "mixtral":
        experts = {"num_experts_per_tok": config.num_experts_per_tok, "num_local_experts": config.num_experts}
    architecture = config.architecture
    left_out = {"extra_eos_ids", "num_experts", "num_experts_per_tok", "norm_topk_prob"}
    left_out |= _OWN_KEYS.difference(architecture.own_keys)
    # the fields have Hugging Face's names
    values = {key: value for key, value in as_record(config).items() if key not in left_out} | {
        "architectures": [architecture.transformers_class],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": dtype,
        "sliding_window": config.sliding_window or None,
        "use_cache": True,
        "use_sliding_window": False,
        "bos_token_id": config.eos_token_id if config.bos_token_id is None else config.bos_token_id,
        "eos_token_id": [config.eos_token_id, *config.extra_eos_ids]
        if config.extra_eos_ids
        else config.eos_token_id,
        "max_window_layers": config.num_hidden_layers,
        "rope_scaling": config.rope_scaling and as_record(config.rope_scaling),
    }
    if config.is_gemma:
        values["hidden_activation"] = values["hidden_act"]
        values["query_pre_attn_scalar"] = config.query_pre_attn_scalar or config.head_dim
    if config.model_type in ("smollm3", "olmo2"):
        values["pad_token_id"] = None  # the default in transformers may not be in the vocabulary
    return json.dumps(dict(sorted(values.items())) | experts, indent=2)


def parse_config(text: str) -> ModelConfig:
    """Read a config.json. Raises LLMError if it is invalid or describes an unsupported model.

    With a sliding window, the context length is limited to the window, within which full attention is the
    same.
    """
    document = parse_document(text, "its config.json")
    check_architecture(document)
    architecture = ARCHITECTURES[document["model_type"]]
    for key in (*architecture.unsupported_keys, *UNSUPPORTED_KEYS):
        if document.get(key):
            raise LLMError(f"its config.json sets {key}, which is not supported")
    if not document.get("is_causal", True):
        raise LLMError("its config.json sets is_causal to false; supported: causal attention")
    document = dict(architecture.defaults) | document
    is_gemma = document["model_type"] == "gemma3_text"
    key = "hidden_activation" if is_gemma else "hidden_act"
    activation = document.get(key, architecture.activation)
    if activation not in list(_ACTIVATIONS):
        raise _unsupported(key, activation, ", ".join(_ACTIVATIONS))
    values = {key: value for key, value in document.items() if value is not None}
    with prefixed("its config.json is not valid"):
        keys: _Keys = read_as(_Keys, values)
    heads = values.get("num_attention_heads")
    width = values.get("hidden_size")
    values.setdefault("num_key_value_heads", heads)
    values.setdefault("head_dim", width // max(1, heads) if type(heads) is type(width) is int else None)
    if keys.eos_token_id == ():
        raise _unsupported("eos_token_id", [], "a token, or a list of tokens")
    eos, *extra = keys.eos_token_id if isinstance(keys.eos_token_id, tuple) else [keys.eos_token_id]
    bos = values.get("bos_token_id")
    values |= {
        "eos_token_id": eos,
        "extra_eos_ids": tuple(extra),
        "bos_token_id": bos if type(bos) is int and bos != eos else None,
    }
    values["hidden_act"] = _ACTIVATIONS[activation]
    rope = keys.rope_scaling or keys.rope_parameters or {}
    values |= _parse_gemma(keys) if is_gemma else _parse_rope(values, rope)
    is_smollm3 = document["model_type"] == "smollm3"
    values |= _parse_experts(values) | {"no_rope_layers": _parse_rope_layers(keys) if is_smollm3 else ()}
    for key in _OWN_KEYS.difference(architecture.own_keys):
        values.pop(key, None)
    names = [field.name for field in fields(ModelConfig) if field.default is MISSING or field.name in values]
    for name in names:
        if name not in values:
            raise _missing(name)
    with prefixed("its config.json is not valid"):
        config = ModelConfig(**{name: values[name] for name in names})
    window = None if is_gemma else _sliding_window(config.model_type, keys)
    if window is None or window >= config.max_position_embeddings:
        return config
    return replace(config, max_position_embeddings=window)


def check_architecture(document: Json) -> None:
    """Raise LLMError if the architecture in a config.json is not supported."""
    model_type = document.get("model_type")
    if model_type is None:
        raise _missing("model_type")
    if model_type not in list(ARCHITECTURES):
        raise _unsupported("model_type", model_type, ", ".join([*ARCHITECTURES, *REWRITTEN]))


def _unsupported(key: str, value: object, supported: str) -> LLMError:
    return LLMError(f"its config.json sets {key} to {brief(value, max_length=100)}; supported: {supported}")


def _missing(key: str) -> LLMError:
    return LLMError(f"its config.json has no {key}")


def _parse_experts(values: Json) -> Json:
    """Read the experts of Qwen3-MoE and Mixtral; other architectures have none, even if their config names
    some."""
    model_type = values["model_type"]
    if not ARCHITECTURES[model_type].expert_names:
        return {"num_experts": 0, "num_experts_per_tok": 0, "norm_topk_prob": True}
    if values.get("mlp_only_layers") or values.get("decoder_sparse_step", 1) != 1:
        raise LLMError("its config.json has layers with and without experts, which is not supported")
    experts = {
        "num_experts": values.get("num_experts", values.get("num_local_experts")),
        "num_experts_per_tok": values.get("num_experts_per_tok"),
        # the default in transformers is false for Qwen3-MoE; Mixtral does not have this key
        "norm_topk_prob": model_type == "mixtral" or values.get("norm_topk_prob", False),
    }
    if model_type == "qwen3_moe":
        experts["intermediate_size"] = values.get("moe_intermediate_size")
    for key, value in experts.items():
        if value is None:
            raise _missing("moe_intermediate_size" if key == "intermediate_size" else key)
    return experts


def _parse_rope(values: Json, parameters: Json) -> Json:
    """Read rope_theta and rope_scaling, which transformers 5 stores in rope_parameters. As in transformers,
    rope_scaling takes precedence over rope_parameters, and an inner rope_theta over an outer one."""
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise LLMError(
            "its config.json has rope_parameters for each type of layer; supported: one for all layers"
        )
    rotary_share = parameters.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    theta = {"rope_theta": parameters["rope_theta"]} if "rope_theta" in parameters else {}
    theta["partial_rotary_factor"] = 1.0 if rotary_share is None else rotary_share
    is_partial = "partial_rotary_factor" in ARCHITECTURES[values["model_type"]].own_keys
    if not is_partial and theta["partial_rotary_factor"] != 1:
        raise _unsupported("partial_rotary_factor", rotary_share, "1")
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    if rope_type == "default":
        return theta | {"rope_scaling": None}
    if rope_type not in list(ROPE_TYPES):
        raise LLMError(
            f"its config.json sets rope_scaling of type {brief(rope_type)}"
            f"; supported: {', '.join(ROPE_TYPES)}"
        )
    arguments = {key: parameters[key] for key in _ROPE_KEYS[rope_type] if parameters.get(key) is not None}
    if rope_type == "llama3":
        key = "original_max_position_embeddings"
        length = values.get(key, arguments.get(key, values.get("max_position_embeddings")))
        arguments |= {key: length} if length is not None else {}
    if missing := [key for key in _ROPE_KEYS[rope_type] if key not in arguments]:
        raise LLMError(f"its config.json has a rope_scaling without {missing[0]}")
    with prefixed("its config.json is not valid"):
        return theta | {"rope_scaling": RopeScaling(rope_type=rope_type, **arguments)}


def _parse_gemma(keys: _Keys) -> Json:
    """Read the kind of each layer of Gemma, and the rotary positions of each kind, which transformers 5
    stores in two objects in rope_parameters. Only the positions of full_attention may be scaled, by
    rope_scaling."""
    values = {key: value for key, value in keys.document.items() if key != "original_max_position_embeddings"}
    types = keys.layer_types
    if types is None:
        others = _others(keys, "sliding_window_pattern", keys.sliding_window_pattern)
        types = tuple("sliding_attention" if is_other else "full_attention" for is_other in others)
    parameters = keys.rope_parameters or {}
    objects = [own for own in parameters.values() if own is not None]
    if parameters.keys() - {*LAYER_TYPES} or not all(isinstance(own, dict) for own in objects):
        raise _unsupported("rope_parameters", parameters, f"objects for {' and '.join(LAYER_TYPES)}")
    full, local = ({"rope_type": "default"} | (parameters.get(kind) or {}) for kind in LAYER_TYPES)
    rope = _parse_rope(values, full | (keys.rope_scaling or {}))
    rope_local = _parse_rope(values, local)
    if rope_local["rope_scaling"]:
        raise LLMError("its config.json scales the rotary positions of layers of type sliding_attention")
    theta = rope_local.get("rope_theta", values.get("rope_local_base_freq", 10000.0))
    return rope | {"layer_types": types, "rope_local_base_freq": theta}


def _parse_rope_layers(keys: _Keys) -> Shape:
    """Return 0 for each layer of SmolLM3 without rotary positions, otherwise 1: by a list, or at a regular
    interval."""
    layers = keys.no_rope_layers
    if layers is None:
        return tuple(map(int, _others(keys, "no_rope_layer_interval", keys.no_rope_layer_interval)))
    if len(layers) < keys.num_hidden_layers:
        raise _unsupported(
            "no_rope_layers", list(layers), f"0 or 1 for each of {keys.num_hidden_layers} layers"
        )
    return tuple(int(n != 0) for n in layers[: keys.num_hidden_layers])


def _others(keys: _Keys, name: str, interval: object) -> list[bool]:
    """Return False for each `interval`-th layer, otherwise True; `name` is the key of the interval."""
    if not (isinstance(interval, int) and interval > 0):
        raise _unsupported(name, interval, "a number of layers")
    if keys.num_hidden_layers > _MAX_LISTED_LAYERS:
        raise _unsupported("num_hidden_layers", keys.num_hidden_layers, f"at most {_MAX_LISTED_LAYERS:,}")
    return [(layer + 1) % interval != 0 for layer in range(keys.num_hidden_layers)]


def _sliding_window(model_type: str, keys: _Keys) -> int | None:
    """Return the number of tokens that a layer attends to, including the current one; None without a limit.
    As in transformers, null differs from a missing key."""
    window = keys.sliding_window
    types = keys.layer_types
    layers = keys.num_hidden_layers
    if model_type.startswith("qwen") and not keys.use_sliding_window:
        window = None
    if model_type == "smollm3" and types is None and not keys.use_sliding_window:
        return None
    # these list the layer types or name the first layer with a window (SmolLM3 does not name it)
    if model_type in ("qwen2", "qwen3", "smollm3"):
        if types is not None:
            if len(types) != layers or any(kind not in _LAYER_TYPES for kind in types):
                raise _unsupported("layer_types", list(types), f"{layers} of {', '.join(_LAYER_TYPES)}")
            if "sliding_attention" not in types:
                return None
            if window is None:
                raise LLMError(
                    "its config.json has layers with sliding_attention, but no sliding_window in use"
                )
        elif model_type != "smollm3" and keys.max_window_layers >= layers:
            return None
    if window == 0:
        raise _unsupported("sliding_window", window, "a number of tokens, or null")
    return window
