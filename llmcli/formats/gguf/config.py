"""Conversion of the fields of a GGUF file to a ModelConfig.

A field that would change the computation is an error; it is never ignored.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from llmcli.config import ARCHITECTURES as KNOWN
from llmcli.config import ModelConfig, RopeScaling
from llmcli.errors import LLMError
from llmcli.formats.gguf import conventions
from llmcli.formats.gguf import tokenizer as gguf_tokenizer
from llmcli.formats.gguf.conventions import ARCHITECTURES, MODEL_TYPES_WITH_EXPERTS, ROPE_FACTORS
from llmcli.formats.gguf.header import MAX_COUNT
from llmcli.formats.header import TensorInfo
from llmcli.formats.metadata import Json
from llmcli.formats.tensor_names import GGUF_STACK

DEFAULT_ROPE_THETA = 10000.0
_EMBEDDING = "token_embd.weight"
_LLAMA3_CONTEXTS = (8192, 4096, 16384, 32768, 2048)  # original context lengths to try


def check_architecture(fields: Json) -> None:
    """Raise LLMError if the architecture is not supported, or if the file does not contain a whole model."""
    content = fields.get("general.type", "model")
    parts = fields.get("split.count", 1)
    if content != "model":
        hint = (
            "; merge an adapter from its PEFT files: llm import MODEL --adapter DIR"
            if content == "adapter"
            else ""
        )
        raise LLMError(f"it has no model: its general.type is {str(content)[:60]!r}{hint}")
    if parts not in (0, 1):
        raise LLMError(
            f"it is one of the {str(parts)[:20]} files of a model; join them first: "
            "llama-gguf-split --merge FIRST.gguf JOINED.gguf"
        )
    name = fields.get("general.architecture")
    if name not in list(ARCHITECTURES):
        raise LLMError(f"it is of architecture {name!r}; supported: {', '.join(ARCHITECTURES)}")
    if fields.get(f"{name}.expert_count") and name not in MODEL_TYPES_WITH_EXPERTS:
        supported = ", ".join(MODEL_TYPES_WITH_EXPERTS)
        raise LLMError(f"it is of architecture {name!r} with experts; supported with experts: {supported}")


def parse_config(
    fields: Json, tensors: Mapping[str, TensorInfo], rope_factors: list[float] | None
) -> ModelConfig:
    """Return the config of a model whose tensors have GGUF names. Raises LLMError if the model is not
    supported."""
    if _EMBEDDING not in tensors or len(tensors[_EMBEDDING].shape) != 2:
        raise LLMError(f"it has no {_EMBEDDING}")
    name = fields["general.architecture"]
    number = partial(_number, fields)
    heads = number("attention.head_count")
    width = number("embedding_length")
    experts = number("expert_count", 0)
    head_dim = number("attention.key_length", width // max(1, heads))
    _check_neutral_fields(fields, head_dim)
    window = number("attention.sliding_window", 0)
    context = number("context_length")
    _, eos = gguf_tokenizer.bos_and_eos(fields)
    bos = fields.get("tokenizer.ggml.bos_token_id")
    other_ends = (fields.get(f"tokenizer.ggml.{kind}_token_id", eos) for kind in ("eot", "eom"))
    model_type = (MODEL_TYPES_WITH_EXPERTS if experts else ARCHITECTURES)[name]
    config = ModelConfig(
        model_type=model_type,
        vocab_size=tensors[_EMBEDDING].shape[0],
        tie_word_embeddings="output.weight" not in tensors,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=number("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=min(window, context) if window and name != "gemma3" else context,
        rope_theta=_shortest_float(number("rope.freq_base", DEFAULT_ROPE_THETA)),
        rope_scaling=_rope_scaling(fields, rope_factors, head_dim),
        num_hidden_layers=number("block_count"),
        intermediate_size=number(
            "expert_feed_forward_length" if name == "qwen3moe" else "feed_forward_length"
        ),
        rms_norm_eps=_shortest_float(number(conventions.epsilon_key(model_type))),
        hidden_act=KNOWN[model_type].activation,
        num_experts=experts,
        num_experts_per_tok=number("expert_used_count") if experts else 0,
        eos_token_id=eos,
        bos_token_id=None if bos == eos else bos,
        extra_eos_ids=tuple(token for token in other_ends if token != eos),
        no_rope_layers=conventions.rope_layers(model_type, min(number("block_count"), len(tensors))),
    )
    _check_counts(config, tensors)
    if not config.is_gemma:
        return config
    pattern = number("attention.sliding_window_pattern", 6)
    return replace(
        config,
        layer_types=conventions.layer_types(pattern, config.num_hidden_layers) if window else (),
        sliding_window=window,
        rope_local_base_freq=_shortest_float(number("rope.freq_base_swa", DEFAULT_ROPE_THETA)),
        query_pre_attn_scalar=conventions.query_scalar(config),
    )


def granite_keys(fields: Json, config: ModelConfig) -> Json:
    """Return the keys of a Granite's config.json that its conversion needs (huggingface/conversion.py)."""
    keys = {"rms_norm_eps": config.rms_norm_eps, "attention_multiplier": config.head_dim**-0.5}
    scales = {hf_key: fields.get(f"granite.{key}") for key, hf_key in conventions.GRANITE_KEYS.items()}
    return keys | {
        key: scale if type(scale) is not float else _shortest_float(scale)
        for key, scale in scales.items()
        if scale
    }


def _number(fields: Json, key: str, default: Any = None) -> Any:
    """Return a field of the architecture. Raises LLMError if it is missing without a default, or is not a
    number."""
    name = f"{fields['general.architecture']}.{key}"
    value = fields.get(name, default)
    if value is None:
        raise LLMError(f"it has no {name}")
    if type(value) not in (int, float):
        raise LLMError(f"its {name} is {str(value)[:60]}; expected one number for all layers")
    return value


def _shortest_float(number: float) -> float:
    """Return the shortest float that is the same number in float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def _check_counts(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise LLMError for more layers or experts than tensors, before these numbers cost time or memory."""
    if config.num_hidden_layers > len(tensors):
        raise LLMError(
            f"its config has {config.num_hidden_layers:,} layers, but the file has {len(tensors):,} tensors"
        )
    stacks = [tensor.shape[0] for name, tensor in tensors.items() if GGUF_STACK in name and tensor.shape]
    max_experts = max([len(tensors), *stacks])
    if config.num_experts > max_experts or config.mlps > MAX_COUNT:
        raise LLMError(
            f"its config has {config.num_hidden_layers:,} layers of {config.num_experts:,} experts, "
            "but the file has fewer tensors"
        )


# Fields that change the computation, with their neutral values. llama.cpp reads some of them only for other
# architectures.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            "activation_sparsity_scale",
            "attention.clamp_kqv",
            "attention.indexer.top_k",
            "attention.key_length_mla",
            "attention.max_alibi_bias",
            "attention.shared_kv_layers",
            "attention.temperature_length",
            "attention.value_length_mla",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "leading_dense_block_count",
            "n_deepstack_layers",
            "nextn_predict_layers",
            "rope.dimension_sections",
            "router_logit_softcapping",
            "swiglu_clamp_exp",
            "swiglu_clamp_shexp",
        ),
        (0,),
    ),
    **dict.fromkeys(
        (
            "attention.output_scale",
            "attention.temperature_scale",
            "embedding_scale",
            "full_attention_interval",
            "logit_scale",
            "residual_scale",
            "rope.scaling.alpha",
        ),
        (0, 1),
    ),
    "attention.causal": (True,),
    "rope.scaling.attn_factor": (1,),
    "use_parallel_residual": (False,),
}
_NEUTRAL_WITH_EXPERTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            "expert_gating_func",  # 0: not specified, 1: softmax
            "expert_group_count",
            "expert_group_scale",
            "expert_group_used_count",
            "expert_weights_scale",
            "experts_per_group",
            "interleave_moe_layer_step",
            "moe_every_n_layers",
        ),
        (0, 1),
    ),
    "expert_shared_count": (0,),
    "moe_latent_size": (0,),
    "expert_weights_norm": (True,),
}


def _check_neutral_fields(fields: Json, head_dim: float) -> None:
    """Raise LLMError for a field whose value is not neutral."""
    name = fields["general.architecture"]
    neutral = _NEUTRAL | (_NEUTRAL_WITH_EXPERTS if fields.get(f"{name}.expert_count") else {})
    neutral = neutral | {"attention.value_length": (head_dim,), "rope.dimension_count": (head_dim,)}
    if name == "granite":
        neutral = {key: value for key, value in neutral.items() if key not in conventions.GRANITE_KEYS}
        neutral["rope.scaling.finetuned"] = (True,)  # llama.cpp: False for no rotary positions
    for key, allowed in neutral.items():
        value = fields.get(f"{name}.{key}", allowed[0])
        if any(entry not in allowed for entry in (value if isinstance(value, list) else [value])):
            raise LLMError(f"it sets {name}.{key} to {str(value)[:60]}; supported: {allowed[-1]}")
    scale = fields.get(f"{name}.attention.scale")
    if scale and name != "granite" and not math.isclose(scale, head_dim**-0.5, rel_tol=1e-6):
        raise LLMError(
            f"it sets {name}.attention.scale to {str(scale)[:60]}; supported: 1 / sqrt({head_dim})"
        )


def _rope_scaling(fields: Json, factors: list[float] | None, head_dim: int) -> RopeScaling | None:
    """Return the scaling of rotary positions, by a factor or a tensor of `factors`. As in llama.cpp, the
    factor may have an older key, and the default type is linear. Raises LLMError for other types."""
    name = fields["general.architecture"]
    rope_type = fields.get(f"{name}.rope.scaling.type", "linear")
    if rope_type not in ("none", "linear"):
        raise LLMError(f"its RoPE scaling is of type {str(rope_type)[:60]!r}; supported: linear, Llama 3")
    factor = fields.get(f"{name}.rope.scaling.factor", fields.get(f"{name}.rope.scale_linear", 0)) or 1
    has_factor = rope_type == "linear" and factor != 1
    if type(factor) not in (int, float) or (has_factor and factors):
        raise LLMError(
            f"its RoPE scaling factor is {str(factor)[:60]}; supported: a number, or a tensor {ROPE_FACTORS}"
        )
    if factors:
        if len(factors) != head_dim // 2:
            raise LLMError(f"its {ROPE_FACTORS} has {len(factors):,} numbers; expected {head_dim // 2:,}")
        theta = fields.get(f"{name}.rope.freq_base", DEFAULT_ROPE_THETA)
        return _llama3_scaling(factors, theta, fields.get(conventions.ROPE_SCALING_KEY))
    return RopeScaling("linear", _shortest_float(factor)) if has_factor else None


def _llama3_scaling(factors: list[float], theta: float, stored: Any) -> RopeScaling:
    """Return the Llama 3.1 scaling that divides the frequencies by these factors: the scaling that our own
    files store as JSON (`stored`), or the first common one that results in these factors. Raises LLMError if
    there is none."""
    candidates = []
    with suppress(ValueError, TypeError, RecursionError, LLMError):
        candidates.append(RopeScaling(**json.loads(stored)))
    with suppress(LLMError):  # the factors may not be positive numbers
        largest = round(max(factors), 4)
        candidates += [RopeScaling("llama3", largest, 1.0, 4.0, context) for context in _LLAMA3_CONTEXTS]
    frequencies = [theta ** (-2 * i / (2 * len(factors))) for i in range(len(factors))]
    for scaling in candidates:
        expected = (frequency / scaling.scaled(frequency) for frequency in frequencies)
        if all(math.isclose(e, factor, rel_tol=1e-5) for e, factor in zip(expected, factors, strict=True)):
            return scaling
    raise LLMError("its RoPE scaling factors are not Llama 3's")
