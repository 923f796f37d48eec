"""Differences between GGUF and Hugging Face files: names of architectures and config keys, and the row order
of query and key projections. Names of tensors: formats/tensor_names.py."""

import numpy as np
from numpy.typing import NDArray

from llmcli.config import ARCHITECTURES as KNOWN
from llmcli.config import LAYER_TYPES, REWRITTEN, ModelConfig, Shape

# GGUF's architecture -> transformers' model_type, after conversion (huggingface/conversion.py). If several
# model_types have the same name in GGUF, the first is used
ARCHITECTURES = {known.gguf: name for name, known in reversed(KNOWN.items()) if known.gguf}
ARCHITECTURES |= REWRITTEN
MODEL_TYPES_WITH_EXPERTS = {known.gguf: name for name, known in KNOWN.items() if known.expert_names}
GRANITE_KEYS = {  # GGUF's key -> Hugging Face's
    "embedding_scale": "embedding_multiplier",
    "attention.scale": "attention_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
CONFIG_KEYS = {  # GGUF's key without the prefix of the architecture -> Hugging Face's
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "rope.freq_base": "rope_theta",
}
ROPE_LAYER_INTERVAL = 4  # llama.cpp: every fourth layer of SmolLM3 has no rotary positions
ROPE_FACTORS = "rope_freqs.weight"  # tensor with a divisor for each rotary frequency
ROPE_SCALING_KEY = (
    "llmcli.rope_scaling"  # llama.cpp does not know this key; with its own it would scale twice
)


def interleaved_heads(config: ModelConfig, architecture: str) -> dict[str, int]:
    """Return projection -> number of heads where GGUF orders rows differently from Hugging Face; see
    `reorder_rows`."""
    if architecture not in ("llama", "smollm3", "granite"):
        return {}
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}


def epsilon_key(model_type: str) -> str:
    """Return GGUF's key of the epsilon of norms, without the prefix of the architecture."""
    kind = "" if KNOWN[model_type].layer_norm else "_rms"
    return f"attention.layer_norm{kind}_epsilon"


def rope_layers(model_type: str, count: int) -> Shape:
    """Return `no_rope_layers` of a model with this number of layers; llama.cpp does not store it."""
    if model_type != "smollm3":
        return ()
    return tuple(int((layer + 1) % ROPE_LAYER_INTERVAL != 0) for layer in range(count))


def layer_types(pattern: int, count: int) -> tuple[str, ...]:
    """Return the `layer_types` of a Gemma: every `pattern`-th of `count` layers attends to all tokens (0: no
    layer does)."""
    return tuple(LAYER_TYPES[pattern == 0 or (layer + 1) % pattern != 0] for layer in range(count))


def query_scalar(config: ModelConfig) -> float:
    """Return the `query_pre_attn_scalar` of a Gemma. Like llama.cpp, recognize Gemma 3 27B by its 62
    layers."""
    is_27b = config.num_hidden_layers == 62
    return config.hidden_size // config.num_attention_heads if is_27b else config.head_dim


def reorder_rows(rows: NDArray[np.float32], heads: int, *, interleave: bool) -> NDArray[np.float32]:
    """Permute the rows of query and key weights [heads * D, inputs] or biases [heads * D].

    Rotary embeddings rotate pairs of a head's D dimensions. Hugging Face pairs the two halves, (i, i + D/2);
    Meta's Llama and llama.cpp's architecture "llama" pair neighbors, (2i, 2i + 1). `interleave` converts
    halves to neighbors, otherwise neighbors to halves.
    """
    half = rows.shape[0] // heads // 2
    pairs = rows.reshape(heads, *((2, half) if interleave else (half, 2)), *rows.shape[1:])
    return np.reshape(pairs.swapaxes(1, 2), rows.shape)
