"""The fields of a GGUF file as a ModelConfig.

A field that would make the model compute something other than what this program computes is an error, never ignored.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from llmcli.config import ModelConfig, RopeScaling
from llmcli.errors import LLMError
from llmcli.formats.gguf import tokenizer as gguf_tokenizer
from llmcli.formats.gguf.header import MAX_COUNT
from llmcli.formats.gguf.names import (
    ARCHITECTURES,
    EXPERT_STACKS,
    MODEL_TYPES_WITH_EXPERTS,
    ROPE_FACTORS,
    ROPE_SCALING_KEY,
)
from llmcli.formats.safetensors.file_header import TensorInfo

DEFAULT_ROPE_THETA = 10000.0
_EMBEDDING = "token_embd.weight"
_LLAMA3_CONTEXTS = (8192, 4096, 16384, 32768, 2048)  # original context lengths that are tried


def architecture(fields: Mapping[str, Any]) -> str:
    """GGUF's name of the architecture. Raises LLMError when it is not supported, or the file has no complete model."""
    _check_general(fields)
    name = fields.get("general.architecture")
    if name not in list(ARCHITECTURES):
        raise LLMError(f"it is of architecture {name!r}; supported: {', '.join(ARCHITECTURES)}")
    if fields.get(f"{name}.expert_count") and name not in MODEL_TYPES_WITH_EXPERTS:
        supported = ", ".join(MODEL_TYPES_WITH_EXPERTS)
        raise LLMError(f"it is of architecture {name!r} with experts; supported with experts: {supported}")
    return str(name)


def _check_general(fields: Mapping[str, Any]) -> None:
    """Raises LLMError for a file without a complete model."""
    content, parts = fields.get("general.type", "model"), fields.get("split.count", 1)
    if content != "model":
        hint = "; merge an adapter from its PEFT files: llm import MODEL --adapter DIR" if content == "adapter" else ""
        raise LLMError(f"it has no model: its general.type is {str(content)[:60]!r}{hint}")
    if parts not in (0, 1):
        raise LLMError(
            f"it is one of the {str(parts)[:20]} files of a model; join them first: llama-gguf-split --merge "
            "FIRST.gguf JOINED.gguf"
        )


def parse_config(
    fields: Mapping[str, Any], tensors: Mapping[str, TensorInfo], rope_factors: list[float] | None
) -> ModelConfig:
    """The config of a model, whose tensors have GGUF's names. Raises LLMError when it is not supported."""
    if _EMBEDDING not in tensors or len(tensors[_EMBEDDING].shape) != 2:
        raise LLMError(f"it has no {_EMBEDDING}")
    config = ModelConfig(
        vocab_size=tensors[_EMBEDDING].shape[0],
        tie_word_embeddings="output.weight" not in tensors,
        **_attention(fields, rope_factors),
        **_layers(fields),
        **_tokens(fields),
    )
    _check_counts(config, tensors)
    return config


def _number(fields: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """A field of the architecture. Raises LLMError when it has no default and is missing, or is not a number."""
    name = f"{fields['general.architecture']}.{key}"
    value = fields.get(name, default)
    if value is None:
        raise LLMError(f"it has no {name}")
    if type(value) not in (int, float):
        raise LLMError(f"its {name} is {str(value)[:60]}; expected one number for all layers")
    return value


def _attention(fields: Mapping[str, Any], rope_factors: list[float] | None) -> dict[str, Any]:
    """The values of a ModelConfig for heads, context and rotary positions."""
    heads, width = _number(fields, "attention.head_count"), _number(fields, "embedding_length")
    head_dim = _number(fields, "attention.key_length", width // max(1, heads))
    _check_neutral_fields(fields, head_dim)
    window, context = _number(fields, "attention.sliding_window", 0), _number(fields, "context_length")
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": _number(fields, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": min(window, context) if window else context,
        "rope_theta": _shortest_float(_number(fields, "rope.freq_base", DEFAULT_ROPE_THETA)),
        "rope_scaling": _rope_scaling(fields, rope_factors, head_dim),
    }


def _layers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a ModelConfig for the number of layers, their norms, and their experts if they have any."""
    name, experts = fields["general.architecture"], _number(fields, "expert_count", 0)
    return {
        "model_type": MODEL_TYPES_WITH_EXPERTS[name] if experts else ARCHITECTURES[name][0],
        "num_hidden_layers": _number(fields, "block_count"),
        "intermediate_size": _number(
            fields, "expert_feed_forward_length" if name == "qwen3moe" else "feed_forward_length"
        ),
        "rms_norm_eps": _shortest_float(_number(fields, "attention.layer_norm_rms_epsilon")),
        "num_experts": experts,
        "num_experts_per_tok": _number(fields, "expert_used_count") if experts else 0,
    }


def _tokens(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a ModelConfig for the tokens that begin and end a text."""
    _, eos = gguf_tokenizer.bos_and_eos(fields)
    bos = fields.get("tokenizer.ggml.bos_token_id")
    extra_keys = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    return {
        "eos_token_id": eos,
        "bos_token_id": None if bos == eos else bos,
        "extra_eos_ids": tuple(fields[key] for key in extra_keys if key in fields and fields[key] != eos),
    }


def _shortest_float(number: float) -> float:
    """The float with the fewest digits that is the same number in float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def _check_counts(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
    """Raises LLMError for more layers or experts than the file has tensors for. Called before anything takes time or
    memory in proportion to these numbers, which may be false."""
    if config.num_hidden_layers > len(tensors):
        raise LLMError(f"its config has {config.num_hidden_layers:,} layers, the file has {len(tensors):,} tensors")
    stacks = (tensors[stack] for pattern in EXPERT_STACKS if (stack := pattern.format(0)) in tensors)
    most = max([len(tensors), *(stack.shape[0] for stack in stacks if stack.shape)])
    if config.num_experts > most or config.swiglus > MAX_COUNT:
        raise LLMError(
            f"its config has {config.num_hidden_layers:,} layers of {config.num_experts:,} experts, the file has fewer "
            "tensors"
        )


# ---- fields that are not supported

# Fields that change what a model computes, and their neutral values, which change nothing. llama.cpp reads some of them
# for other architectures only; here they are checked for all, so that every model computes what its file says.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "activation_sparsity_scale": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.indexer.top_k": (0,),
    "attention.key_length_mla": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0, 1),
    "attention.value_length_mla": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "full_attention_interval": (0, 1),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "n_deepstack_layers": (0,),
    "nextn_predict_layers": (0,),
    "residual_scale": (0, 1),
    "rope.dimension_sections": (0,),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "router_logit_softcapping": (0,),
    "swiglu_clamp_exp": (0,),
    "swiglu_clamp_shexp": (0,),
    "use_parallel_residual": (False,),
}
_NEUTRAL_WITH_EXPERTS: dict[str, tuple[Any, ...]] = {
    "expert_gating_func": (0, 1),  # not specified, or softmax
    "expert_group_count": (0, 1),
    "expert_group_scale": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0, 1),
    "experts_per_group": (0, 1),
    "interleave_moe_layer_step": (0, 1),
    "moe_every_n_layers": (0, 1),
    "moe_latent_size": (0,),
}


def _check_neutral_fields(fields: Mapping[str, Any], head_dim: float) -> None:
    """Raises LLMError for a field whose value is not neutral."""
    name = fields["general.architecture"]
    neutral = _NEUTRAL | (_NEUTRAL_WITH_EXPERTS if fields.get(f"{name}.expert_count") else {})
    neutral = neutral | {"attention.value_length": (head_dim,), "rope.dimension_count": (head_dim,)}
    for key, allowed in neutral.items():
        value = fields.get(f"{name}.{key}", allowed[0])
        if any(entry not in allowed for entry in (value if isinstance(value, list) else [value])):
            raise LLMError(f"it sets {name}.{key} to {str(value)[:60]}; supported: {allowed[-1]}")
    scale = fields.get(f"{name}.attention.scale")
    if scale and not math.isclose(scale, head_dim**-0.5, rel_tol=1e-6):
        raise LLMError(f"it sets {name}.attention.scale to {str(scale)[:60]}; supported: 1 / sqrt({head_dim})")


# ---- scaling of rotary positions


def _rope_scaling(fields: Mapping[str, Any], factors: list[float] | None, head_dim: int) -> RopeScaling | None:
    """The scaling of rotary positions: by a factor, or by a tensor of `factors`. As in llama.cpp, the factor is also
    read under its older key, and the type is linear if none is given. Raises LLMError for other types."""
    name = fields["general.architecture"]
    rope_type = fields.get(f"{name}.rope.scaling.type", "linear")
    if rope_type not in ("none", "linear"):
        raise LLMError(f"its RoPE scaling is of type {str(rope_type)[:60]!r}; supported: linear, and that of Llama 3")
    factor = fields.get(f"{name}.rope.scaling.factor", fields.get(f"{name}.rope.scale_linear", 0)) or 1
    if type(factor) not in (int, float):
        raise LLMError(f"its RoPE scaling factor is {str(factor)[:60]}; expected a number")
    has_factor = rope_type == "linear" and factor != 1
    if has_factor and factors:
        raise LLMError(f"it has two RoPE scalings, a factor of {factor} and {ROPE_FACTORS}; supported: one of them")
    if factors:
        if len(factors) != head_dim // 2:
            raise LLMError(f"its {ROPE_FACTORS} has {len(factors):,} numbers; expected {head_dim // 2:,}")
        theta = fields.get(f"{name}.rope.freq_base", DEFAULT_ROPE_THETA)
        return _llama3_scaling(factors, theta, fields.get(ROPE_SCALING_KEY))
    return RopeScaling("linear", _shortest_float(factor)) if has_factor else None


def _llama3_scaling(factors: list[float], theta: float, stored: Any) -> RopeScaling:
    """The scaling of Llama 3.1 that divides the frequencies by these factors.

    A GGUF has only the factors, so the parameters are found by trying the usual ones, unless the file was written by
    this program and has them as JSON (`stored`). Raises LLMError when none give these factors.
    """
    candidates = []
    with suppress(ValueError, TypeError, RecursionError, LLMError):
        candidates.append(RopeScaling(**json.loads(stored)))
    with suppress(LLMError):  # factors that are not even positive numbers
        largest = round(max(factors), 4)
        candidates += [RopeScaling("llama3", largest, 1.0, 4.0, context) for context in _LLAMA3_CONTEXTS]
    frequencies = [theta ** (-2 * i / (2 * len(factors))) for i in range(len(factors))]
    for scaling in candidates:
        expected = (frequency / scaling.scaled(frequency) for frequency in frequencies)
        if all(math.isclose(e, factor, rel_tol=1e-5) for e, factor in zip(expected, factors, strict=True)):
            return scaling
    raise LLMError("its RoPE scaling factors are not those of Llama 3")
