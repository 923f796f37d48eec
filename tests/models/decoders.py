"""Decoders of several shapes, and their weights in torch."""

import numpy as np

from llmcli.config import ModelConfig, RopeScaling
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
        300, 32, 48, 3, 4, 2, 8, 48, True, model_type="gemma3_text", hidden_act="gelu_pytorch_tanh",
        layer_types=("sliding_attention", "full_attention", "sliding_attention"), sliding_window=5,
        rope_local_base_freq=300.0, query_pre_attn_scalar=6.0,
    ),
    "olmo2: norms after": ModelConfig(300, 64, 96, 2, 4, 2, 16, 48, model_type="olmo2"),
    "gpt2: LayerNorm, learned positions, no gates": ModelConfig(
        300, 32, 48, 2, 4, 4, 8, 48, True, model_type="gpt2", hidden_act="gelu_pytorch_tanh"
    ),
    "gpt_neox: in parallel, a quarter rotated": ModelConfig(
        300, 32, 48, 2, 4, 4, 8, 48, model_type="gpt_neox", hidden_act="gelu", partial_rotary_factor=0.25,
        use_parallel_residual=True,
    ),
    "llama: frequencies scaled as by Llama 3, gates of GELU": ModelConfig(
        300, 32, 64, 2, 4, 4, 16, 48, model_type="llama", rms_norm_eps=1e-5, hidden_act="gelu",
        rope_scaling=RopeScaling("llama3", 8.0, original_max_position_embeddings=32),
    ),
    "experts": ModelConfig(300, 32, 32, 2, 4, 2, 8, 48, model_type="qwen3_moe", num_experts=5, num_experts_per_tok=2),
    "mixtral": ModelConfig(300, 32, 48, 2, 4, 2, 8, 48, model_type="mixtral", num_experts=4, num_experts_per_tok=2),
    "experts that do not sum to one": ModelConfig(
        300, 32, 32, 2, 4, 2, 8, 48, model_type="qwen3_moe", num_experts=3, num_experts_per_tok=1, norm_topk_prob=False
    ),
}  # fmt: skip


def torch_model(config: ModelConfig) -> tuple[LanguageModel, dict[str, np.ndarray]]:
    """(a model in eval mode, its random weights by name)"""
    weights = dict(random_checkpoint(config).tensors)
    model = LanguageModel(config).eval()
    model.load_arrays(weights)
    return model, weights
