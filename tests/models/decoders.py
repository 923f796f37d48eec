"""Decoders of several shapes, their definition written out in float64, and their weights in torch."""

import math

import numpy as np
import torch
from torch import Tensor

from llmcli.config import ModelConfig
from llmcli.models.torch.transformer import LanguageModel
from tests.conftest import random_checkpoint

SHAPES = {
    "untied": ModelConfig(300, 64, 160, 3, 4, 4, 16, 48),
    "tied": ModelConfig(300, 64, 160, 2, 4, 4, 16, 48, tie_word_embeddings=True),
    "grouped": ModelConfig(300, 64, 160, 2, 4, 2, 16, 48),
    "one key-value head, tied": ModelConfig(300, 48, 96, 2, 6, 1, 8, 48, tie_word_embeddings=True),
    "heads wider than the model": ModelConfig(300, 32, 96, 2, 4, 2, 16, 48, rope_theta=1e6),
    "qwen2: biases, queries and keys without norms": ModelConfig(300, 64, 160, 2, 4, 2, 16, 48, model_type="qwen2"),
    "smollm3: a layer without positions": ModelConfig(
        300, 32, 48, 2, 4, 2, 8, 48, model_type="smollm3", no_rope_layers=(1, 0)
    ),
    "gemma3: windows, norms before and after": ModelConfig(
        300,
        32,
        48,
        3,
        4,
        2,
        8,
        48,
        tie_word_embeddings=True,
        model_type="gemma3_text",
        hidden_act="gelu_pytorch_tanh",
        layer_types=("sliding_attention", "full_attention", "sliding_attention"),
        sliding_window=5,
        rope_local_base_freq=300.0,
        query_pre_attn_scalar=6.0,
    ),
    "olmo2: norms after": ModelConfig(300, 64, 96, 2, 4, 2, 16, 48, model_type="olmo2"),
    "gpt2: LayerNorm, learned positions, no gates": ModelConfig(
        300, 32, 48, 2, 4, 4, 8, 48, tie_word_embeddings=True, model_type="gpt2", hidden_act="gelu_pytorch_tanh"
    ),
    "gpt_neox: in parallel, a quarter rotated": ModelConfig(
        300,
        32,
        48,
        2,
        4,
        4,
        8,
        48,
        model_type="gpt_neox",
        hidden_act="gelu",
        partial_rotary_factor=0.25,
        use_parallel_residual=True,
    ),
    "experts": ModelConfig(300, 32, 32, 2, 4, 2, 8, 48, model_type="qwen3_moe", num_experts=5, num_experts_per_tok=2),
    "experts that do not sum to one": ModelConfig(
        300, 32, 32, 2, 4, 2, 8, 48, model_type="qwen3_moe", num_experts=3, num_experts_per_tok=1, norm_topk_prob=False
    ),
}


def logits_by_definition(weights: dict[str, np.ndarray], config: ModelConfig, ids: list[int]) -> Tensor:
    """The logits [T, V] of a model by its definition, one head and one position at a time, in float64."""
    W = {name: torch.from_numpy(array).double() for name, array in weights.items()}
    D, H, G = config.head_dim, config.num_attention_heads, config.num_key_value_heads

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    def norm(x: Tensor, L: dict[str, Tensor], name: str) -> Tensor:
        if f"{name}.bias" not in L:
            return rms(x, L[f"{name}.weight"])
        return rms(x - x.mean(-1, keepdim=True), L[f"{name}.weight"]) + L[f"{name}.bias"]

    def linear(x: Tensor, L: dict[str, Tensor], name: str) -> Tensor:
        return x @ L[f"{name}.weight"].T + L.get(f"{name}.bias", torch.zeros(1))

    def activation(x: Tensor) -> Tensor:
        if config.hidden_act == "gelu":
            return x * (1 + torch.erf(x / math.sqrt(2))) / 2
        if config.hidden_act == "gelu_pytorch_tanh":
            return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
        return x * x.sigmoid()

    def rms_if(x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else rms(x, weight)

    def rotated(x: Tensor, position: int, is_rotary: bool, is_sliding: bool) -> Tensor:
        out = x.clone()
        rotated = int(D * config.partial_rotary_factor) if is_rotary else 0
        for i in range(rotated // 2):
            theta = config.rope_local_base_freq if is_sliding else config.rope_theta
            angle = position * theta ** (-2 * i / rotated)
            a, b = x[i], x[i + D // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + D // 2] = a * math.sin(angle) + b * math.cos(angle)
        return out

    def mlp(h: Tensor, L: dict[str, Tensor], name: str) -> Tensor:
        up = linear(h, L, f"{name}up_proj")
        is_gated = f"{name}gate_proj.weight" in L
        inner = activation(linear(h, L, f"{name}gate_proj")) * up if is_gated else activation(up)
        return linear(inner, L, f"{name}down_proj")

    def experts(h: Tensor, L: dict[str, Tensor]) -> Tensor:
        probabilities = (L["mlp.gate.weight"] @ h).softmax(0)
        chosen = sorted(range(config.num_experts), key=lambda e: -probabilities[e])[: config.num_experts_per_tok]
        total = sum(probabilities[e] for e in chosen) if config.norm_topk_prob else 1
        return sum(probabilities[e] / total * mlp(h, L, f"mlp.experts.{e}.") for e in chosen)

    is_olmo2, is_gemma = config.model_type == "olmo2", config.model_type == "gemma3_text"
    x = W["model.embed_tokens.weight"][ids] * (math.sqrt(config.hidden_size) if is_gemma else 1)
    if config.model_type == "gpt2":
        x = x + W["model.embed_positions.weight"][: len(ids)]
    for layer in range(config.num_hidden_layers):
        L = {name.split(f"layers.{layer}.")[1]: w for name, w in W.items() if f"layers.{layer}." in name}
        is_sliding = is_gemma and config.layer_types[layer] == "sliding_attention"
        h = x if is_olmo2 else norm(x, L, "input_layernorm")
        is_rotary = config.model_type != "gpt2" and (not config.no_rope_layers or config.no_rope_layers[layer] != 0)
        q, k, v = (linear(h, L, f"self_attn.{name}_proj") for name in "qkv")
        if is_olmo2:  # all heads together, so that the norms of heads below are left out
            q, k = rms(q, L.pop("self_attn.q_norm.weight")), rms(k, L.pop("self_attn.k_norm.weight"))
        rows = []
        for t in range(len(ids)):
            heads = []
            for head in range(H):
                group = head * G // H
                query = rms_if(q[t, head * D : (head + 1) * D], L.get("self_attn.q_norm.weight"))
                query = rotated(query, t, is_rotary, is_sliding)
                cut = slice(group * D, (group + 1) * D)
                seen = range(max(0, t + 1 - config.sliding_window) if is_sliding else 0, t + 1)
                normed = [rms_if(k[s, cut], L.get("self_attn.k_norm.weight")) for s in seen]
                keys = [rotated(key, s, is_rotary, is_sliding) for s, key in zip(seen, normed, strict=True)]
                divisor = math.sqrt(config.query_pre_attn_scalar or D)
                scores = torch.stack([query @ key / divisor for key in keys]).softmax(0)
                heads.append(sum(p * v[s, cut] for s, p in zip(seen, scores, strict=True)))
            rows.append(torch.cat(heads))
        y = linear(torch.stack(rows), L, "self_attn.o_proj")
        before = x
        x = x + (rms(y, L["post_attention_layernorm.weight"]) if is_olmo2 or is_gemma else y)
        name = "pre_feedforward_layernorm" if is_gemma else "post_attention_layernorm"
        h = x if is_olmo2 else norm(before if config.use_parallel_residual else x, L, name)
        y = torch.stack([experts(row, L) for row in h]) if config.num_experts else mlp(h, L, "mlp.")
        x = x + (rms(y, L["post_feedforward_layernorm.weight"]) if is_olmo2 or is_gemma else y)
    return norm(x, W, "model.norm") @ W.get("lm_head.weight", W["model.embed_tokens.weight"]).T


def torch_model(config: ModelConfig) -> tuple[LanguageModel, dict[str, np.ndarray]]:
    """(a model in eval mode, its random weights by name)"""
    weights = dict(random_checkpoint(config).tensors)
    model = LanguageModel(config).eval()
    model.load_arrays(weights)
    return model, weights
