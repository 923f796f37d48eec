"""Models that transformers stores differently from llmcli: conversion of config.json and tensors, for GPT-2
and GPT-NeoX in both directions.

In GPT-2 and GPT-NeoX, queries, keys and values are one matrix. GPT-2's matrices are transposed; GPT-NeoX has
the queries, keys and values of one head after another, and rotates the pairs (i, i + r/2) of the first r
elements of a head. In llmcli, the pairs are (i, i + D/2), and pairs that are not rotated come last.

Granite and Phi-3 become Llama, so that the rest of the program only sees a Llama.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.config import ARCHITECTURES, FINAL_NORM, HEAD, REWRITTEN, ModelConfig, Shape
from llmcli.errors import LLMError, brief
from llmcli.formats import tensor_names
from llmcli.formats.checkpoint import Checkpoint, ComputedTensors, checked_finite
from llmcli.formats.header import TensorInfo
from llmcli.formats.huggingface.config import parse_config
from llmcli.formats.metadata import Json
from llmcli.formats.safetensors.file import write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmcli.formats.safetensors.dtypes import Values

# weights of GPT-2's Conv1D layers; no other architecture here has tensors with these names
_TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_BY_HEAD = ".query_key_value."
_NOT_WEIGHTS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$")  # causal masks in older files
Tensors = dict[str, TensorInfo]
_KEYS: dict[str, dict[str, tuple[str, Any]]] = {  # key in transformers -> (key here, transformers' default)
    "gpt2": {
        "n_embd": ("hidden_size", 768),
        "n_layer": ("num_hidden_layers", 12),
        "n_head": ("num_attention_heads", 12),
        "n_positions": ("max_position_embeddings", 1024),
        "n_inner": ("intermediate_size", None),
        "activation_function": ("hidden_act", "gelu_new"),
        "layer_norm_epsilon": ("rms_norm_eps", 1e-5),
        "eos_token_id": ("eos_token_id", 50256),
        "bos_token_id": ("bos_token_id", 50256),
    },
    "gpt_neox": {
        "hidden_act": ("hidden_act", "gelu"),
        "layer_norm_eps": ("rms_norm_eps", 1e-5),
        "rotary_pct": ("partial_rotary_factor", 0.25),
        "rotary_emb_base": ("rope_theta", 10000.0),
        "use_parallel_residual": ("use_parallel_residual", True),
        "eos_token_id": ("eos_token_id", 2),
        "bos_token_id": ("bos_token_id", 0),
    },
    "granite": {},
    "phi3": {"rms_norm_eps": ("rms_norm_eps", 1e-5), "eos_token_id": ("eos_token_id", 32000)},
}
# Granite's scaling factors
_MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
# names that GPT-2's config.json also accepts for its own keys
_ALIASES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_SUPPORTED = {  # keys with only one supported value
    "gpt2": {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    "gpt_neox": {"attention_bias": True},
}
_COMMON = (
    "architectures",
    "model_type",
    "initializer_range",
    "tie_word_embeddings",
    "torch_dtype",
    "vocab_size",
)
_SAME_KEYS = {
    "gpt2": _COMMON,
    "gpt_neox": (
        *_COMMON,
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "rope_scaling",
    ),
}


def convert_config(config: Json) -> Json:
    """Add the keys used here to a config.json. Raises LLMError for a model that is not supported."""
    family = config.get("model_type")
    if family not in list(_KEYS):
        return config
    for key, value in _SUPPORTED.get(family, {}).items():
        if config.get(key, value) is not value:
            raise LLMError(
                f"its config.json sets {key} to {json.dumps(config[key])[:100]}"
                f"; supported: {json.dumps(value)}"
            )
    if family == "gpt_neox":
        _require_whole_heads(config)
    changes = {ours: config.get(theirs, default) for theirs, (ours, default) in _KEYS[family].items()}
    if family == "gpt2":
        changes |= {key: config[key] for key in _ALIASES if key in config}
        if changes["intermediate_size"] is None and type(width := changes["hidden_size"]) is int:
            changes["intermediate_size"] = 4 * width
    if family in _SUPPORTED:  # GPT has no such keys
        changes |= {"num_key_value_heads": None, "head_dim": None}
    if family == "granite":
        changes |= {"rms_norm_eps": granite_epsilon(config), **dict.fromkeys(_MULTIPLIERS)}
    if base := REWRITTEN.get(family):
        changes |= {"model_type": base, "architectures": [ARCHITECTURES[base].transformers_class]}
    return config | changes


def _require_whole_heads(config: Json) -> None:
    """Raise LLMError if the "head_dim" of a GPT-NeoX is not that of its matrices, which follow the hidden
    size: transformers would rotate these heads by it."""
    size, width, heads = (config.get(key) for key in ("head_dim", "hidden_size", "num_attention_heads"))
    if type(size) is type(width) is type(heads) is int and size * heads != width:
        raise LLMError(
            f"its config.json sets head_dim to {brief(size)}; supported: hidden_size / num_attention_heads"
        )


def convert_tensors(config: Json, tensors: Tensors) -> Tensors:
    """Return a model's tensors under the names used here; `config` is its own config.json. Raises LLMError if
    the model is not supported."""
    family = config.get("model_type")
    if family not in (*tensor_names.TRANSFORMERS, "granite"):
        return tensors
    parsed = parse_config(json.dumps(convert_config(config)))
    if family == "granite":
        return scale_granite(config, parsed.head_dim, tensors)
    if parsed.num_hidden_layers > len(tensors):  # before this number costs time or memory
        raise LLMError(f"its config has {parsed.num_hidden_layers:,} layers, but the file has fewer tensors")
    modules = tensor_names.TRANSFORMERS[family]
    prefix = next(iter(modules)).partition(".")[0] + "."
    heads = {HEAD, *(f"{module}.weight" for module in modules)}
    left = {
        name if name in heads or name.startswith(prefix) else prefix + name: tensor
        for name, tensor in tensors.items()
        if not _NOT_WEIGHTS.search(name)
    }
    named: Tensors = {}
    shapes = parsed.tensor_shapes()
    for theirs, ours in tensor_names.in_transformers(parsed, family):
        tensor = left.pop(theirs, None)
        if tensor is None:
            continue
        parts = [shapes.get(name, tensor.shape) for name in ours]
        expected = _stored_shape(theirs, parts)
        if tensor.shape != expected:
            raise LLMError(
                f"tensor {theirs} has shape {list(tensor.shape)}; its config requires {list(expected)}"
            )
        is_same = len(ours) == 1 and not _TRANSPOSED.search(theirs)
        first = 0
        for name, shape in zip(ours, parts, strict=True):
            view = None if is_same else partial(_part, parsed, theirs, slice(first, first + shape[0]))
            # its share of the stacked tensor's bytes
            own = tensor if is_same else tensor.rows(first, first + shape[0], sum(rows for rows, *_ in parts))
            named[name] = own._replace(name=name, shape=shape, view=view)
            first += shape[0]
    return named | left


def granite_epsilon(config: Json) -> float:
    """Return the epsilon of a Granite 3 as a Llama; see `scale_granite`."""
    return _number(config, "rms_norm_eps", 1e-6, 1e-30) / _number(config, "embedding_multiplier") ** 2


def scale_granite(config: Json, head_dim: int, tensors: Tensors) -> Tensors:
    """Fold the four multipliers of Granite 3, which come from muP (arXiv:2203.03466), into the weights.

    Every sublayer reads the residual stream through an RMSNorm, so dividing the whole stream by
    embedding_multiplier changes nothing if epsilon is divided by its square. The embeddings do not change,
    tied or not, nor does the dtype of most weights.
    """
    embedding, attention, residual, scaling = (_number(config, key) for key in _MULTIPLIERS)
    factors = {
        "self_attn.q_proj.weight": attention * math.sqrt(head_dim),
        "self_attn.o_proj.weight": residual / embedding,
        "mlp.down_proj.weight": residual / embedding,
        FINAL_NORM: 1 / scaling,
    }
    return {
        name: tensor._replace(factor=factors.get(name, factors.get(name.split(".", 3)[-1], 1.0)))
        for name, tensor in tensors.items()
    }


def _number(config: Json, key: str, default: float = 1.0, low: float = 1e-6) -> float:
    value = config.get(key, default)
    if type(value) not in (int, float) or not low <= value <= 1e6:
        raise LLMError(f"its config.json sets {key} to {brief(value)}; supported: a positive number")
    return float(value)


def dump_config(model: Checkpoint) -> str:
    """Return the text of config.json for transformers."""
    document = json.loads(model.config_json)
    family = model.config.model_type
    if family not in _KEYS:
        return model.config_json
    values = {theirs: document[ours] for theirs, (ours, _) in _KEYS[family].items()}
    values |= {key: document[key] for key in _SAME_KEYS[family]}
    return json.dumps(dict(sorted(values.items())), indent=2)


def write_tensors(path: Path, model: Checkpoint, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with the tensors that transformers has. Raises LLMError if the disk is full or
    fails."""
    config = model.config
    shapes = config.tensor_shapes()
    names = tensor_names.in_transformers(config, config.model_type)
    parts = {theirs: ours for theirs, ours in names if ours[0] in shapes}
    stored = {}
    for theirs, ours in parts.items():
        dtypes = {model.stored[name][0] for name in ours}
        shape = _stored_shape(theirs, [shapes[name] for name in ours])
        stored[theirs] = dtypes.pop() if len(dtypes) == 1 else "F32", shape
    tensors = ComputedTensors(
        parts,
        lambda name: checked_finite(
            name, _joined(config, name, [model.tensors[part] for part in parts[name]])
        ),
    )
    write(path, tensors, stored, {"format": "pt", **metadata})


def _stored_shape(name: str, parts: Sequence[Shape]) -> Shape:
    """Return the shape of the tensor that transformers calls `name`, given the shapes of its parts here."""
    stacked = sum(rows for rows, *_ in parts), *parts[0][1:]
    return stacked[::-1] if _TRANSPOSED.search(name) else stacked


def _part(config: ModelConfig, name: str, rows: slice, values: Values) -> Values:
    """Return some rows, in the layout used here, of the values of the tensor that transformers calls
    `name`."""
    if _TRANSPOSED.search(name):
        return values.T[rows]
    if _BY_HEAD not in name:
        return values[rows]
    size = rows.stop - rows.start
    # q, k or v
    part = values.reshape(config.num_attention_heads, 3, config.head_dim, -1)[:, rows.start // size]
    rotated = part if rows.start == 2 * size else part[:, _halves_as_pairs(config)]
    return rotated.reshape(size, *values.shape[1:])


def _joined(config: ModelConfig, name: str, parts: list[Values]) -> Values:
    """Return the tensor that transformers calls `name`."""
    import numpy as np

    stacked = np.concatenate(parts)
    if _TRANSPOSED.search(name):
        return np.ascontiguousarray(stacked.T)
    if _BY_HEAD not in name:
        return stacked
    heads = stacked.reshape(3, config.num_attention_heads, config.head_dim, -1)
    heads[:2] = heads[:2][:, :, np.argsort(_halves_as_pairs(config))]
    return np.ascontiguousarray(heads.swapaxes(0, 1)).reshape(stacked.shape)


def _halves_as_pairs(config: ModelConfig) -> NDArray[np.int64]:
    """Return the order [D] of a head's elements that moves the pairs (i, i + r/2) of its first r elements to
    (i, i + D/2)."""
    import numpy as np

    D, r = config.head_dim, config.rotary_dim
    first, second, others, more = np.split(np.arange(D), [r // 2, r, (r + D) // 2])
    return np.concatenate([first, others, second, more])
