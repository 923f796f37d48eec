"""Write a model as a GGUF file, for llama.cpp, Ollama and LM Studio, with the `gguf` package."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.config import EMBEDDING, HEAD, ModelConfig, as_record
from llmcli.errors import LLMError, usage
from llmcli.formats import atomic_io, training_stages
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.gguf import rotary_layout
from llmcli.formats.gguf import tokenizer as gguf_tokenizer
from llmcli.formats.gguf.names import (
    ARCHITECTURE_OF,
    ARCHITECTURES,
    ROPE_FACTORS,
    ROPE_SCALING_KEY,
    ROUTER,
    expert_stacks,
    gguf_tensor_name,
)
from llmcli.formats.gguf.package import import_gguf
from llmcli.formats.metadata import parse_document

DTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
_FILE_TYPES = {  # dtype -> name in the gguf package
    "f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0",
}  # fmt: skip
QUANTIZED_BLOCK = 32  # elements in a block of Q8_0 and Q4_0


def write(path: Path, checkpoint: Checkpoint, dtype: str, general: Mapping[str, str]) -> None:
    """Write a model. Its matrices become `dtype`, its norms and biases float32; a matrix whose rows do not divide into
    the blocks of a quantized dtype becomes float16. `general` are fields general.*: name, license, ...

    Raises LLMError for a model or tokenizer that llama.cpp does not support, and when the disk is full or fails.
    """
    if dtype not in DTYPES:
        raise usage(f"--dtype must be {', '.join(DTYPES)}, found {dtype}")
    gguf = import_gguf("to write a GGUF")
    _check_supported(checkpoint.config)
    tokenizer = gguf_tokenizer.to_fields(json.loads(checkpoint.tokenizer_json), checkpoint.config)

    def write_file(temporary: Path) -> None:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE_OF[checkpoint.config.model_type])
        for key, value in general.items():
            writer.add_string(f"general.{key}", value)
        for key, value in training_stages.to_metadata(checkpoint.record, general.get("name", "")).items():
            writer.add_string(key, value)
        writer.add_file_type(int(getattr(gguf.LlamaFileType, _FILE_TYPES[dtype])))
        if dtype.startswith("q"):
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_config(writer, checkpoint.config, gguf)
        for method, value in tokenizer:
            getattr(writer, method)(value)
        if template := _chat_template(checkpoint):
            writer.add_chat_template(template)
        size = _add_tensors(writer, checkpoint, dtype, gguf)
        # the error of the package would not say that the disk is full
        atomic_io.check_space(path, size + len(checkpoint.tokenizer_json))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    atomic_io.write_with(path, write_file)


def _check_supported(config: ModelConfig) -> None:
    """Raises LLMError for what llama.cpp cannot compute."""
    if not config.norm_topk_prob:
        raise LLMError("the weights of this model's active experts do not sum to 1, which llama.cpp does not support")
    if (
        config.rope_scaling
        and config.rope_scaling.rope_type == "llama3"
        and ARCHITECTURE_OF[config.model_type] != "llama"
    ):
        raise LLMError(
            f"llama.cpp supports Llama 3's RoPE scaling only in models of type llama, not "
            f"{config.model_type}; use --to hf instead"
        )


def _add_config(writer: Any, config: ModelConfig, gguf: ModuleType) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    if config.num_experts:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(config.rope_theta))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.rope_scaling and config.rope_scaling.rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)
    elif config.rope_scaling:
        writer.add_string(ROPE_SCALING_KEY, json.dumps(as_record(config.rope_scaling)))


def _chat_template(checkpoint: Checkpoint) -> str:
    template = parse_document(checkpoint.tokenizer_config_json, "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else ""


def _add_tensors(writer: Any, checkpoint: Checkpoint, dtype: str, gguf: ModuleType) -> int:
    """Add all tensors to the writer; return their size in bytes."""
    size = 0
    for name, values, type_name in _tensors(checkpoint, dtype):
        quantization_type = gguf.GGMLQuantizationType[type_name]
        data = gguf.quants.quantize(values, quantization_type)
        writer.add_tensor(name, data, raw_dtype=quantization_type)
        size += data.nbytes
    return size


def _tensors(checkpoint: Checkpoint, dtype: str) -> Iterator[tuple[str, NDArray[np.float32], str]]:
    """(GGUF's name, values, type) of each tensor."""
    config = checkpoint.config
    is_interleaved = ARCHITECTURES[ARCHITECTURE_OF[config.model_type]][1]
    heads = rotary_layout.heads(config) if is_interleaved else {}
    of_experts: set[str] = set()
    for layer in range(config.num_hidden_layers if config.num_experts else 0):
        router = config.router_name(layer)
        yield ROUTER.format(layer), _float32(checkpoint, router), "F32"
        of_experts.add(router)
        for stack, names in expert_stacks(config, layer):
            values = np.stack([_float32(checkpoint, name) for name in names])
            yield stack, values, _tensor_type(dtype, values, stack)
            of_experts.update(names)
    for name in config.tensor_shapes():
        if name in of_experts:
            continue
        values = _float32(checkpoint, name)
        projection = name.split(".")[-2]
        if projection in heads:
            values = np.ascontiguousarray(rotary_layout.interleave(values, heads[projection]))
        yield gguf_tensor_name(name), values, _tensor_type(dtype, values, name)
    if config.rope_scaling and config.rope_scaling.rope_type == "llama3":
        yield ROPE_FACTORS, _rope_factors(config), "F32"


def _float32(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    return np.ascontiguousarray(checkpoint.tensors[name], np.float32)


def _tensor_type(dtype: str, values: NDArray[np.float32], name: str) -> str:
    """The GGUF type of a tensor in a file whose matrices are of `dtype`."""
    type_name = "F32" if values.ndim == 1 else dtype.upper()
    if type_name == "Q4_0" and name in (EMBEDDING, HEAD):
        type_name = "Q8_0"  # as in llama.cpp: the embeddings keep more precision
    return "F16" if type_name.startswith("Q") and values.shape[-1] % QUANTIZED_BLOCK else type_name


def _rope_factors(config: ModelConfig) -> NDArray[np.float32]:
    """The divisor of each rotary frequency, [D/2]."""
    plain = [config.rope_theta ** (-2 * i / config.head_dim) for i in range(config.head_dim // 2)]
    factors = [frequency / scaled for frequency, scaled in zip(plain, config.rope_frequencies(), strict=True)]
    return np.array(factors, np.float32)
