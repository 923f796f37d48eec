"""Hugging Face's config.json: read into a ModelConfig, and written from one.

Whatever would make the graph another one than this program runs is refused, never ignored.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import Any

from llmcli.config import ARCHITECTURES, EXPERT_NAMES, ROPE_TYPES, ModelConfig, RopeScaling, as_record
from llmcli.errors import LLMError, brief
from llmcli.formats.metadata import document

# what transformers takes for a key that a config.json leaves out, where that is not the same for all architectures;
# sizes of tensors are no guess, since the tensors must agree
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"eos_token_id": 2, "bos_token_id": 1},
    "mistral": {"eos_token_id": 2, "bos_token_id": 1, "num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {
        "eos_token_id": 2, "bos_token_id": 1, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    },
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
    "qwen3_moe": {"num_key_value_heads": 4, "sliding_window": 4096},
}  # fmt: skip
# keys that change the graph when they are set, and the architectures that read them
UNSUPPORTED = {
    "attention_bias": ("llama", "qwen3", "qwen3_moe"),
    "mlp_bias": ("llama",),
    "quantization_config": tuple(ARCHITECTURES),
    "per_layer_config": tuple(ARCHITECTURES),
    "attention_chunk_size": tuple(ARCHITECTURES),
}


def dump_config(config: ModelConfig, dtype: str = "float32") -> str:
    """The text of config.json, exactly as a Hugging Face directory would hold it; `dtype` is the weights'."""
    ends = [config.eos_token_id, *config.extra_eos_ids]
    experts: dict[str, dict[str, Any]] = {
        "qwen3_moe": {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": config.intermediate_size,
            "norm_topk_prob": config.norm_topk_prob,
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.num_experts_per_tok,
        },
        "mixtral": {"num_experts_per_tok": config.num_experts_per_tok, "num_local_experts": config.num_experts},
    }
    return json.dumps(
        {
            "architectures": [ARCHITECTURES[config.model_type]],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": config.eos_token_id if config.bos_token_id is None else config.bos_token_id,
            "eos_token_id": ends if config.extra_eos_ids else config.eos_token_id,
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "hidden_size": config.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": config.intermediate_size,
            "max_position_embeddings": config.max_position_embeddings,
            "max_window_layers": config.num_hidden_layers,
            "model_type": config.model_type,
            "num_attention_heads": config.num_attention_heads,
            "num_hidden_layers": config.num_hidden_layers,
            "num_key_value_heads": config.num_key_value_heads,
            "rms_norm_eps": config.rms_norm_eps,
            "rope_scaling": config.rope_scaling and as_record(config.rope_scaling),
            "rope_theta": config.rope_theta,
            "sliding_window": None,
            "tie_word_embeddings": config.tie_word_embeddings,
            "torch_dtype": dtype,
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": config.vocab_size,
        }
        | experts.get(config.model_type, {}),
        indent=2,
    )


def parse_config(text: str) -> ModelConfig:
    """Read a config.json; raises LLMError when it describes another graph or is not one at all.

    Where a model looks back through a sliding window, the context is no longer than that: within it the graph is
    the same.
    """
    found = document(text, "config.json")
    _check_supported(found)
    found = DEFAULTS[found["model_type"]] | found
    values = {key: value for key, value in found.items() if value is not None}
    for key, reads in (("num_key_value_heads", ("num_attention_heads",)), ("head_dim", _HEAD_DIM)):
        if key not in values and all(type(values.get(name)) is int for name in reads):
            sizes = [values[name] for name in reads]
            values[key] = sizes[0] if len(sizes) == 1 else sizes[0] // max(1, sizes[1])
    values |= _ends(values)
    values |= _rope(values)
    values |= _experts(values)
    missing = [f.name for f in fields(ModelConfig) if f.default is MISSING and f.name not in values]
    if missing:
        raise LLMError(f"its config.json has no {missing[0]}")
    try:
        known = {field.name for field in fields(ModelConfig)}
        config = ModelConfig(**{key: value for key, value in values.items() if key in known})
    except LLMError as error:
        raise LLMError(f"its config.json is not usable: {error}") from error
    window = _sliding_window(found, config.num_hidden_layers)
    if window is None or window >= config.max_position_embeddings:
        return config
    return replace(config, max_position_embeddings=window)


def _check_supported(found: Mapping[str, Any]) -> None:
    """Raises LLMError for a config of another graph than that of the decoders here."""
    if found.get("model_type") not in list(ARCHITECTURES):
        raise LLMError(
            f"its config.json says model_type {brief(found.get('model_type'))}; this program runs "
            f"{', '.join(ARCHITECTURES)}"
        )
    kind = found["model_type"]
    unsupported = [key for key, readers in UNSUPPORTED.items() if kind in readers and found.get(key)]
    if unsupported:
        raise LLMError(f"its config.json sets {unsupported[0]}, which this program does not run")
    if found.get("hidden_act", "silu") not in ("silu", "swish"):  # two names of one function
        raise LLMError(f"its config.json sets hidden_act {brief(found['hidden_act'])}; this program runs 'silu'")
    if not found.get("is_causal", True):
        raise LLMError("its config.json sets is_causal to false; this program runs causal attention")


_HEAD_DIM = ("hidden_size", "num_attention_heads")


def _ends(found: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens that end a text, of which a config.json names one or lists several."""
    ends = found.get("eos_token_id", 0)
    first, *others = ends if isinstance(ends, list) and ends else [ends]
    begin = found.get("bos_token_id")
    return {
        "eos_token_id": first,
        "extra_eos_ids": tuple(others),
        "bos_token_id": begin if type(begin) is int and begin != first else None,
    }


def _experts(found: Mapping[str, Any]) -> dict[str, Any]:
    """The experts, as the configs of Qwen3-MoE and Mixtral have them; nothing of them counts in others."""
    kind = found["model_type"]
    if kind not in EXPERT_NAMES:
        return {"num_experts": 0, "num_experts_per_tok": 0, "norm_topk_prob": True}
    if found.get("mlp_only_layers") or found.get("decoder_sparse_step", 1) != 1:
        raise LLMError("its config.json has layers without experts among others with them, which are not run here")
    told: dict[str, Any] = {"num_experts": found.get("num_experts", found.get("num_local_experts"))}
    if kind == "mixtral":
        told["norm_topk_prob"] = True
    else:
        told["norm_topk_prob"] = found.get("norm_topk_prob", False)  # as transformers reads a config without it
        told["intermediate_size"] = found.get("moe_intermediate_size")
    told["num_experts_per_tok"] = found.get("num_experts_per_tok")
    for key, value in told.items():
        if value is None:
            raise LLMError(f"its config.json has no {'moe_' * (key == 'intermediate_size')}{key}")
    return told


def _rope(found: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary positions, as a config.json has them in rope_theta and rope_scaling, or, from transformers 5 on, both
    in rope_parameters. As there, a rope_scaling counts before rope_parameters, and a rope_theta inside before one
    outside."""
    told = found.get("rope_scaling") or found.get("rope_parameters") or {}
    if not isinstance(told, Mapping):
        raise LLMError(f"its config.json has a rope_scaling that is none: {told!r}"[:200])
    if any(isinstance(value, Mapping) for value in told.values()):
        raise LLMError("its config.json has rope_parameters by type of layer; one for all layers is run here")
    share = told.get("partial_rotary_factor", found.get("partial_rotary_factor"))
    if share not in (None, 1):
        raise LLMError(f"its config.json sets partial_rotary_factor to {share!r}; this program runs 1"[:200])
    theta = {"rope_theta": told["rope_theta"]} if "rope_theta" in told else {}
    kind = told.get("rope_type", told.get("type", "default"))
    if kind == "default":
        return theta | {"rope_scaling": None}
    if kind not in list(ROPE_TYPES):
        raise LLMError(
            f"its config.json sets rope_scaling of type {brief(kind)}; this program runs {', '.join(ROPE_TYPES)}"
        )
    known = {key: told[key] for key in _ROPE_KEYS[kind] if told.get(key) is not None}
    if kind == "llama3":
        original = "original_max_position_embeddings"
        length = found.get(original, known.get(original, found.get("max_position_embeddings")))
        known |= {original: length} if length is not None else {}
    if missing := [key for key in _ROPE_KEYS[kind] if key not in known]:
        raise LLMError(f"its config.json has a rope_scaling without what it needs: a {missing[0]}")
    try:
        scaling = RopeScaling(rope_type=kind, **known)
    except LLMError as error:
        raise LLMError(f"its config.json is not usable: {error}") from error
    return theta | {"rope_scaling": scaling}


_ROPE_KEYS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _sliding_window(found: Mapping[str, Any], layers: int) -> int | None:
    """How many tokens a layer sees at most, itself among them; None where none has such a limit. As transformers
    reads it: null is not the same as left out."""
    kind, window = found["model_type"], found.get("sliding_window")
    if kind.startswith("qwen") and not found.get("use_sliding_window"):
        window = None
    if kind in ("qwen2", "qwen3") and not _slides(found, layers):
        return None
    if window is not None and (type(window) is not int or window < 1):
        raise LLMError(
            f"its config.json sets sliding_window to {window!r}; a number of tokens, or null, is wanted"[:200]
        )
    return window


def _slides(found: Mapping[str, Any], layers: int) -> bool:
    """Whether a layer of Qwen 2 or 3 has a sliding window: its config lists the types of the layers, or tells from
    which layer on. Raises LLMError for other types."""
    types = found.get("layer_types")
    if types is None:
        first = found["max_window_layers"]
        if type(first) is not int:
            raise LLMError(f"its config.json sets max_window_layers to {first!r}; a number of layers is wanted"[:200])
        return bool(found.get("use_sliding_window")) and found.get("sliding_window") is not None and first < layers
    known = ("full_attention", "attention", "sliding_attention")  # the second is an old name of the first
    if not isinstance(types, list) or len(types) != layers or any(one not in known for one in types):
        raise LLMError(f"its config.json has layer_types that are not run here: {types!r}"[:200])
    slides = "sliding_attention" in types
    if slides and not (found.get("use_sliding_window") and found.get("sliding_window") is not None):
        raise LLMError("its config.json has layers with sliding_attention, but no sliding_window in use")
    return slides
