"""GGUF's names of architectures, tensors and config keys, and Hugging Face's. Standard library only."""

from collections.abc import Iterator

from llmcli.config import ModelConfig

# GGUF's architecture -> (transformers' model_type, whether the rows of q and k are interleaved: see rotary_layout)
ARCHITECTURES = {
    "llama": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False), "qwen3moe": ("qwen3_moe", False),
}  # fmt: skip
MODEL_TYPES_WITH_EXPERTS = {"llama": "mixtral", "qwen3moe": "qwen3_moe"}  # GGUF's architecture -> model_type
ARCHITECTURE_OF = {  # model_type -> GGUF's architecture
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
}  # fmt: skip
CONFIG_KEYS = {  # GGUF's key without the prefix of the architecture -> Hugging Face's
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "context_length": "max_position_embeddings", "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok", "rope.freq_base": "rope_theta",
}  # fmt: skip
ROPE_FACTORS = "rope_freqs.weight"  # the tensor with a divisor for each rotary frequency
ROPE_SCALING_KEY = "llmcli.rope_scaling"  # our own: with its own keys llama.cpp would scale a second time
_TENSORS = {  # GGUF's -> Hugging Face's, with {} in place of the layer
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    **{
        f"blk.{{}}.{gguf_name}": f"model.layers.{{}}.{hf_name}"
        for gguf_name, hf_name in (
            ("attn_norm.weight", "input_layernorm.weight"),
            ("attn_q.weight", "self_attn.q_proj.weight"),
            ("attn_k.weight", "self_attn.k_proj.weight"),
            ("attn_v.weight", "self_attn.v_proj.weight"),
            ("attn_q.bias", "self_attn.q_proj.bias"),
            ("attn_k.bias", "self_attn.k_proj.bias"),
            ("attn_v.bias", "self_attn.v_proj.bias"),
            ("attn_q_norm.weight", "self_attn.q_norm.weight"),
            ("attn_k_norm.weight", "self_attn.k_norm.weight"),
            ("attn_output.weight", "self_attn.o_proj.weight"),
            ("ffn_norm.weight", "post_attention_layernorm.weight"),
            ("ffn_gate.weight", "mlp.gate_proj.weight"),
            ("ffn_up.weight", "mlp.up_proj.weight"),
            ("ffn_down.weight", "mlp.down_proj.weight"),
        )
    },
}
_GGUF_TENSORS = {hf_name: gguf_name for gguf_name, hf_name in _TENSORS.items()}
ROUTER = "blk.{}.ffn_gate_inp.weight"
# the matrices of all experts of a layer as one tensor, and, in older files, as one tensor each
EXPERT_STACKS = ("blk.{}.ffn_gate_exps.weight", "blk.{}.ffn_up_exps.weight", "blk.{}.ffn_down_exps.weight")
_SINGLE_EXPERTS = ("blk.{}.ffn_gate.{}.weight", "blk.{}.ffn_up.{}.weight", "blk.{}.ffn_down.{}.weight")


def hf_tensor_name(name: str) -> str:
    """Hugging Face's name for a tensor outside the experts; an unknown name is returned unchanged.

    >>> hf_tensor_name("blk.3.attn_q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    first, _, rest = name.partition(".")
    layer, _, inner = rest.partition(".")
    if first == "blk" and layer.isdecimal() and f"blk.{{}}.{inner}" in _TENSORS:
        return _TENSORS[f"blk.{{}}.{inner}"].format(int(layer))
    return _TENSORS.get(name, name)


def gguf_tensor_name(name: str) -> str:
    """GGUF's name for a tensor outside the experts.

    >>> gguf_tensor_name("model.layers.3.self_attn.q_proj.weight")
    'blk.3.attn_q.weight'
    """
    if not name.startswith("model.layers."):
        return _GGUF_TENSORS[name]
    layer, _, inner = name.removeprefix("model.layers.").partition(".")
    return _GGUF_TENSORS[f"model.layers.{{}}.{inner}"].format(layer)


def expert_tensors(config: ModelConfig) -> Iterator[tuple[str, str, int | None]]:
    """(Hugging Face's name, GGUF's, index in the stack) of each router and each matrix of an expert. The matrices occur
    twice: under GGUF's name of a tensor of their own, where the index is None, and under that of a stack."""
    for layer in range(config.num_hidden_layers if config.num_experts else 0):
        yield config.router_name(layer), ROUTER.format(layer), None
        for expert, names in enumerate(config.swiglu_names(layer)):
            for name, stack, single in zip(names, EXPERT_STACKS, _SINGLE_EXPERTS, strict=True):
                yield name, single.format(layer, expert), None
                yield name, stack.format(layer), expert


def expert_stacks(config: ModelConfig, layer: int) -> list[tuple[str, list[str]]]:
    """(GGUF's name of a stack, Hugging Face's names of the matrices in it) of a layer's gates, ups and downs."""
    matrices = zip(*config.swiglu_names(layer), strict=True)
    return [(stack.format(layer), list(names)) for stack, names in zip(EXPERT_STACKS, matrices, strict=True)]
