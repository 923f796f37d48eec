"""GPT-2 and GPT-NeoX as stored by transformers, with different names and matrices than in llmcli.

In transformers, queries, keys and values are one matrix. GPT-2's matrices are transposed; GPT-NeoX has the
queries, keys and values of one head after another, and rotates the pairs (i, i + r/2) of the first r elements
of a head. In llmcli, the pairs are (i, i + D/2), and pairs that are not rotated come last.
`from_transformers` and `write_tensors` are inverse to each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.config import HEAD, ModelConfig, Shape
from llmcli.errors import LLMError
from llmcli.formats import tensor_names
from llmcli.formats.checkpoint import Checkpoint, ComputedTensors
from llmcli.formats.header import TensorInfo
from llmcli.formats.huggingface.config import parse_config
from llmcli.formats.huggingface.rewriting import count
from llmcli.formats.metadata import Json
from llmcli.formats.safetensors.file import write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmcli.formats.safetensors.dtypes import Values

# of GPT-2's layers of class Conv1D; no other architecture here has these names
_TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_BY_HEAD = ".query_key_value."
_NOT_WEIGHTS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$")  # causal masks in older files
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
}
# of GPT-2's keys
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


def rename_keys(config: Json) -> Json:
    """Add the keys used here to a config.json. Raises LLMError for a model that is not supported."""
    family = config.get("model_type")
    if family not in list(_KEYS):
        return config
    for key, value in _SUPPORTED[family].items():
        if config.get(key, value) is not value:
            raise LLMError(
                f"its config.json sets {key} to {json.dumps(config[key])[:100]}"
                f"; supported: {json.dumps(value)}"
            )
    changes = {ours: config.get(theirs, default) for theirs, (ours, default) in _KEYS[family].items()}
    if family == "gpt2":
        changes |= {key: config[key] for key in _ALIASES if key in config}
        if changes["intermediate_size"] is None:
            changes["intermediate_size"] = 4 * count(changes, "hidden_size")
        changes["head_dim"] = None
    changes["num_key_value_heads"] = count({**config, **changes}, "num_attention_heads")
    return config | changes


def from_transformers(config: Json, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return the tensors of a model under the names used here; `config` is from `rename_keys`. Raises
    LLMError if the model is not supported."""
    parsed = parse_config(json.dumps(config))
    if parsed.num_hidden_layers > len(tensors):  # before this number costs time or memory
        raise LLMError(f"its config has {parsed.num_hidden_layers:,} layers, but the file has fewer tensors")
    modules = tensor_names.TRANSFORMERS[parsed.model_type]
    prefix = next(iter(modules)).partition(".")[0] + "."
    heads = {HEAD, *(f"{module}.weight" for module in modules)}
    left = {
        name if name in heads or name.startswith(prefix) else prefix + name: tensor
        for name, tensor in tensors.items()
        if not _NOT_WEIGHTS.search(name)
    }
    named: dict[str, TensorInfo] = {}
    shapes = parsed.tensor_shapes()
    for theirs, ours in tensor_names.in_transformers(parsed):
        tensor = left.pop(theirs, None)
        if tensor is None:
            continue
        shape = shapes.get(ours[0], tensor.shape)
        expected = _shape(theirs, shape, len(ours))
        if tensor.shape != expected:
            raise LLMError(
                f"tensor {theirs} has shape {list(tensor.shape)}; its config requires {list(expected)}"
            )
        for i, name in enumerate(ours):
            rows = slice(i * shape[0], (i + 1) * shape[0])
            is_same = len(ours) == 1 and not _TRANSPOSED.search(theirs)
            view = None if is_same else partial(_part, parsed, theirs, expected, rows)
            named[name] = tensor._replace(name=name, shape=shape, view=view)
    return named | left


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
    shapes = model.config.tensor_shapes()
    parts = {theirs: ours for theirs, ours in tensor_names.in_transformers(config) if ours[0] in shapes}
    stored = {}
    for theirs, ours in parts.items():
        dtypes = {model.stored[name][0] for name in ours}
        stored[theirs] = (
            dtypes.pop() if len(dtypes) == 1 else "F32",
            _shape(theirs, shapes[ours[0]], len(ours)),
        )
    tensors = ComputedTensors(
        parts, lambda name: _joined(config, name, [model.tensors[part] for part in parts[name]])
    )
    write(path, tensors, stored, {"format": "pt", **metadata})


def _shape(name: str, shape: Shape, parts: int) -> Shape:
    """Return the shape of the tensor that transformers calls `name`, given the shape of one of its parts
    here."""
    stacked = parts * shape[0], *shape[1:]
    return stacked[::-1] if _TRANSPOSED.search(name) else stacked


def _part(config: ModelConfig, name: str, shape: Shape, rows: slice, values: Values) -> Values:
    """Return some rows, in the layout used here, of the tensor that transformers calls `name`. `values` are
    its elements, flat."""
    stacked = values.reshape(shape)
    if _TRANSPOSED.search(name):
        return stacked.T[rows]
    if _BY_HEAD not in name:
        return stacked[rows]
    size = rows.stop - rows.start
    # q, k or v
    part = stacked.reshape(config.num_attention_heads, 3, config.head_dim, -1)[:, rows.start // size]
    rotated = part if rows.start == 2 * size else part[:, _halves_as_pairs(config)]
    return rotated.reshape(size, *shape[1:])


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
