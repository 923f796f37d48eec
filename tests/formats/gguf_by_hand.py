"""A GGUF file written byte by byte, for tests."""

import struct
from typing import Any

import numpy as np

from llmcli.config import ModelConfig
from llmcli.data.tokenizers.tokenizer_json import byte_level_alphabet
from tests.conftest import random_checkpoint

CONFIG = ModelConfig(300, 32, 64, 1, 4, 2, 8, 40, True, 1e-5, 5000.0, 1, "llama")

ALPHABET = list(byte_level_alphabet())

TOKENS = ["<start>", "<end>", *ALPHABET, "Ġa", "ab"]

TOKENS += [f"<fill {i}>" for i in range(300 - len(TOKENS))]


def encoded_text(value: str) -> bytes:
    """The length of a text, and its bytes."""
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def encoded_value(value: Any) -> bytes:
    """The number of a type, and a value of it."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        is_small = 0 <= value < 1 << 32
        return struct.pack("<II", 4, value) if is_small else struct.pack("<Iq", 11, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + encoded_text(value)
    entry_type = encoded_value(value[0])[:4]
    entries = b"".join(encoded_value(entry)[4:] for entry in value)
    return struct.pack("<I", 9) + entry_type + struct.pack("<Q", len(value)) + entries


FIELDS: dict[str, Any] = {
    "general.architecture": "llama", "general.name": "By hand", "general.license": "mit", "llama.block_count": 1,
    "llama.context_length": 40, "llama.embedding_length": 32, "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 5000.0, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": [3, 3, *[1] * 298],
    "tokenizer.ggml.merges": ["Ġ a", "a b"], "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.chat_template": "{{ messages }}",
}  # fmt: skip


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + D/2 of each head next to each other, as in llama.cpp."""
    D = len(weight) // heads
    order = [head * D + half * (D // 2) + i for head in range(heads) for i in range(D // 2) for half in range(2)]
    return weight[order]


MODEL = random_checkpoint(CONFIG)

TENSOR_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
    "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
    "blk.0.attn_k.weight": "model.layers.0.self_attn.k_proj.weight",
    "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    "blk.0.attn_output.weight": "model.layers.0.self_attn.o_proj.weight",
    "blk.0.ffn_norm.weight": "model.layers.0.post_attention_layernorm.weight",
    "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
    "blk.0.ffn_up.weight": "model.layers.0.mlp.up_proj.weight",
    "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
}


Tensors = dict[str, tuple[int, tuple[int, ...], bytes]]


def tensors_of_model(*, sparse: bool = False) -> Tensors:
    """Those of MODEL: its layer has one SwiGLU, or two in a stack."""
    tensors: Tensors = {}
    for theirs, ours in TENSOR_NAMES.items():
        weight = np.asarray(MODEL.tensors[ours], "<f4")
        heads = {"attn_q": 4, "attn_k": 2}.get(theirs.split(".")[-2])
        if sparse and ".ffn_" in theirs and "norm" not in theirs:
            theirs, weight = theirs.replace(".weight", "_exps.weight"), np.stack([weight, weight])
        tensors[theirs] = 0, weight.shape, (interleaved(weight, heads) if heads else weight).tobytes()
    if sparse:
        tensors["blk.0.ffn_gate_inp.weight"] = 0, (2, 32), bytes(256)
    return tensors


def gguf_bytes(fields: dict[str, Any] | None = None, tensors: Tensors | None = None) -> bytes:
    """The bytes of a GGUF: magic, version, counts, fields, descriptions of tensors, padding, tensors."""
    fields = FIELDS if fields is None else fields
    tensors = tensors_of_model() if tensors is None else tensors
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    header += b"".join(encoded_text(key) + encoded_value(value) for key, value in fields.items())
    body = b""
    for name, (kind, shape, data) in tensors.items():
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        header += encoded_text(name) + dimensions + struct.pack("<IQ", kind, len(body))
        body += data + b"\0" * (-len(data) % 32)
    return header + b"\0" * (-len(header) % 32) + body
