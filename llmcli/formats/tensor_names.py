"""Names of tensors in transformers and in GGUF, for each architecture whose names differ from those used here
(Llama's in transformers)."""

from collections.abc import Iterator, Mapping

from llmcli.config import HEAD, ModelConfig

_QKV = "self_attn.q_proj self_attn.k_proj self_attn.v_proj"  # stacked in one matrix
_GATE_UP = "mlp.gate_proj mlp.up_proj"
# name in transformers -> names here, without ".weight" and ".bias"; "#" is the number of a layer
TRANSFORMERS: dict[str, dict[str, str]] = {
    "gpt2": {
        "transformer.wte": "model.embed_tokens",
        "transformer.wpe": "model.embed_positions",
        "transformer.ln_f": "model.norm",
        "lm_head": "lm_head",
        "transformer.h.#.ln_1": "input_layernorm",
        "transformer.h.#.ln_2": "post_attention_layernorm",
        "transformer.h.#.attn.c_attn": _QKV,
        "transformer.h.#.attn.c_proj": "self_attn.o_proj",
        "transformer.h.#.mlp.c_fc": "mlp.up_proj",
        "transformer.h.#.mlp.c_proj": "mlp.down_proj",
    },
    "gpt_neox": {
        "gpt_neox.embed_in": "model.embed_tokens",
        "gpt_neox.final_layer_norm": "model.norm",
        "embed_out": "lm_head",
        "gpt_neox.layers.#.input_layernorm": "input_layernorm",
        "gpt_neox.layers.#.post_attention_layernorm": "post_attention_layernorm",
        "gpt_neox.layers.#.attention.query_key_value": _QKV,
        "gpt_neox.layers.#.attention.dense": "self_attn.o_proj",
        "gpt_neox.layers.#.mlp.dense_h_to_4h": "mlp.up_proj",
        "gpt_neox.layers.#.mlp.dense_4h_to_h": "mlp.down_proj",
    },
    "phi3": {  # and Llama's names
        "model.layers.#.self_attn.qkv_proj": _QKV,
        "model.layers.#.mlp.gate_up_proj": _GATE_UP,
    },
}
_GGUF = {  # all architectures; the norms of a layer and the experts are below
    "token_embd": "model.embed_tokens",
    "position_embd": "model.embed_positions",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.#.attn_q": "self_attn.q_proj",
    "blk.#.attn_k": "self_attn.k_proj",
    "blk.#.attn_v": "self_attn.v_proj",
    "blk.#.attn_q_norm": "self_attn.q_norm",
    "blk.#.attn_k_norm": "self_attn.k_norm",
    "blk.#.attn_output": "self_attn.o_proj",
    "blk.#.ffn_gate": "mlp.gate_proj",
    "blk.#.ffn_up": "mlp.up_proj",
    "blk.#.ffn_down": "mlp.down_proj",
}
_GGUF_STACKED = {  # by GGUF's architecture
    "gpt2": {"blk.#.attn_qkv": _QKV},
    "phi3": {"blk.#.attn_qkv": _QKV, "blk.#.ffn_up": _GATE_UP},
}
# in the order of NormNames
_GGUF_NORMS = ("blk.#.attn_norm", "blk.#.post_attention_norm", "blk.#.ffn_norm", "blk.#.post_ffw_norm")
GGUF_ROUTER = ".ffn_gate_inp.weight"
GGUF_STACK = "_exps.weight"  # ends the name of a tensor that stacks the matrices of all experts of a layer


def in_transformers(config: ModelConfig, model_type: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (name in transformers, names here) of each tensor of a model of type `model_type`; the output
    embedding even if it is tied."""
    return _expanded(config, TRANSFORMERS[model_type])


def in_gguf(config: ModelConfig, architecture: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (name in GGUF, names here) of each tensor; the output embedding even if it is tied.

    >>> dict(in_gguf(ModelConfig(300, 32, 64, 1, 2, 2, 16, 32), "qwen3"))["blk.0.attn_q.weight"]
    ['model.layers.0.self_attn.q_proj.weight']
    """
    names = _GGUF | dict(zip(_GGUF_NORMS, config.architecture.norm_names, strict=True))
    stacked = _GGUF_STACKED.get(architecture, {})
    parts = " ".join(stacked.values()).split()
    names = {theirs: ours for theirs, ours in names.items() if ours not in parts}
    yield from _expanded(config, names | stacked)
    for layer in range(config.num_hidden_layers if config.num_experts else 0):
        yield f"blk.{layer}{GGUF_ROUTER}", [config.router_name(layer)]
        for kind, experts in zip(
            ("gate", "up", "down"), zip(*config.mlp_names(layer), strict=True), strict=True
        ):
            yield f"blk.{layer}.ffn_{kind}{GGUF_STACK}", [*experts]


def _expanded(config: ModelConfig, names: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    shapes = config.tensor_shapes()
    for module, ours in names.items():
        is_layer = "#" in module
        for layer in range(config.num_hidden_layers if is_layer else 1):
            start = f"model.layers.{layer}." if is_layer else ""
            for kind in ("weight", "bias"):
                own = [f"{start}{name}.{kind}" for name in ours.split()]
                if own and (own[0] in shapes or own == [HEAD]):
                    yield f"{module.replace('#', str(layer))}.{kind}", own
