"""Architectures that become Llama by rewriting their weights and config, which happens when a directory or a
GGUF file is read.

Code that runs, trains or exports models only sees a Llama. Tensors are scaled (`TensorInfo.factor`) or split
into ranges of their rows; their values are not read here.
"""

import math
from collections.abc import Callable

from llmcli.config import ARCHITECTURES, FINAL_NORM, REWRITTEN
from llmcli.errors import LLMError, brief
from llmcli.formats.header import TensorInfo
from llmcli.formats.metadata import Json

Tensors = dict[str, TensorInfo]


def rewrite(config: Json, tensors: Tensors) -> tuple[Json, Tensors]:
    """Return the config.json and the tensors of the model as a Llama; other architectures are unchanged.
    Raises LLMError if that is not possible."""
    model_type = config.get("model_type")
    if model_type not in list(_FUNCTIONS):
        return config, tensors
    changes, tensors = _FUNCTIONS[model_type](config, tensors)
    base = REWRITTEN[model_type]
    changes |= {"model_type": base, "architectures": [ARCHITECTURES[base].transformers_class]}
    return config | changes, tensors


def _granite(config: Json, tensors: Tensors) -> tuple[Json, Tensors]:
    """Fold the four multipliers of Granite 3, which come from muP (arXiv:2203.03466), into the weights.

    Every sublayer reads the residual stream through an RMSNorm, so dividing the whole stream by
    embedding_multiplier changes nothing if epsilon is divided by its square. The embeddings do not change,
    tied or not, nor does the dtype of most weights.
    """
    keys = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
    embedding, attention, residual, scaling = (_multiplier(config, key) for key in keys)
    head_dim = config.get("head_dim") or count(config, "hidden_size") // count(config, "num_attention_heads")
    factors = {
        "self_attn.q_proj.weight": attention * math.sqrt(head_dim),
        "self_attn.o_proj.weight": residual / embedding,
        "mlp.down_proj.weight": residual / embedding,
        FINAL_NORM: 1 / scaling,
    }
    scaled = {
        name: tensor._replace(factor=factors.get(name, factors.get(name.split(".", 3)[-1], 1.0)))
        for name, tensor in tensors.items()
    }
    eps = config.get("rms_norm_eps", 1e-6)
    if type(eps) not in (int, float):
        raise LLMError(f"its config.json sets rms_norm_eps to {brief(eps)}; supported: a number")
    return {**dict.fromkeys(keys), "rms_norm_eps": eps / embedding**2}, scaled


def _phi3(config: Json, tensors: Tensors) -> tuple[Json, Tensors]:
    """Split the stacked matrices of Phi-3 (arXiv:2404.14219), which has other defaults than Llama."""
    heads = count(config, "num_attention_heads")
    groups = heads if config.get("num_key_value_heads") is None else count(config, "num_key_value_heads")
    head_dim = config.get("head_dim") or count(config, "hidden_size") // heads
    inner = count(config, "intermediate_size")
    q = heads * head_dim
    kv = groups * head_dim
    parts = {  # rows of each
        "self_attn.qkv_proj": {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv},
        "mlp.gate_up_proj": {"mlp.gate_proj": inner, "mlp.up_proj": inner},
    }
    split: Tensors = {}
    for name, tensor in tensors.items():
        layer, _, module = name.removesuffix(".weight").partition(".layers.")
        number, _, module = module.partition(".")
        if module not in parts:
            split[name] = tensor
            continue
        if not tensor.shape or tensor.shape[0] != sum(parts[module].values()):
            wanted = sum(parts[module].values())
            raise LLMError(
                f"tensor {name} has shape {list(tensor.shape)}; its config requires {wanted:,} rows"
            )
        first = 0
        for part, rows in parts[module].items():
            own = f"{layer}.layers.{number}.{part}.weight"
            split[own] = tensor.rows(first, first + rows)._replace(name=own)
            first += rows
    defaults = {"rms_norm_eps": 1e-5, "eos_token_id": 32000}
    return {key: value for key, value in defaults.items() if key not in config}, split


def _multiplier(config: Json, key: str) -> float:
    value = config.get(key, 1.0)
    if type(value) not in (int, float) or not 1e-6 <= value <= 1e6:
        raise LLMError(f"its config.json sets {key} to {brief(value)}; supported: a positive number")
    return float(value)


def count(config: Json, key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise LLMError(f"its config.json sets {key} to {brief(value)}; supported: a number of at least 1")
    return value


_FUNCTIONS: dict[str, Callable[[Json, Tensors], tuple[Json, Tensors]]] = {
    "granite": _granite,
    "phi3": _phi3,
}
