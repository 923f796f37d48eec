"""Writing GGUF files for llama.cpp, Ollama and LM Studio, with the `gguf` package."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmcli.config import EMBEDDING, HEAD, POSITIONS, ModelConfig, Shape, as_record
from llmcli.errors import LLMError, usage
from llmcli.formats import atomic_io, training_stages
from llmcli.formats.checkpoint import Checkpoint, checked_finite
from llmcli.formats.gguf import conventions
from llmcli.formats.gguf import tokenizer as gguf_tokenizer
from llmcli.formats.gguf.reader import import_gguf
from llmcli.formats.metadata import Json, parse_document
from llmcli.formats.tensor_names import GGUF_ROUTER, GGUF_STACK, in_gguf

DTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
QUANTIZED_BLOCK = 32  # elements per block in Q8_0 and Q4_0
_FIELDS = {  # GGUF's key without the prefix of the architecture -> field of ModelConfig
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.dimension_count": "head_dim",
}
# names in gguf.GGUFValueType
_VALUE_TYPES = {str: "STRING", bool: "BOOL", int: "UINT32", float: "FLOAT32", list: "ARRAY"}


def write(path: Path, checkpoint: Checkpoint, dtype: str, general: Mapping[str, str]) -> None:
    """Write a model, with one tensor in memory at a time. Matrices become `dtype`, norms and biases float32;
    a matrix whose rows do not divide into quantized blocks becomes float16. `general` has the values of
    GGUF's fields general.*, such as name.

    Raises LLMError for a model or tokenizer that llama.cpp does not support, and if the disk is full or
    fails.
    """
    if dtype not in DTYPES:
        raise usage(f"`dtype` must be {', '.join(DTYPES)}, found {dtype}")
    gguf = import_gguf("writing a GGUF file")
    config = checkpoint.config
    architecture = _architecture(config)
    tokenizer = gguf_tokenizer.to_fields(json.loads(checkpoint.tokenizer_json), config)
    file_type = "ALL_F32" if dtype == "f32" else f"MOSTLY_{dtype.upper()}"
    is_quantized = dtype.startswith("q")
    tokenizer_config = parse_document(checkpoint.tokenizer_config_json, "its tokenizer_config.json")
    template = tokenizer_config.get("chat_template")
    fields = {
        **{f"general.{key}": value for key, value in general.items()},
        **training_stages.to_metadata(checkpoint.record, general.get("name", "")),
        "general.file_type": int(gguf.LlamaFileType[file_type]),
        **({"general.quantization_version": gguf.GGML_QUANT_VERSION} if is_quantized else {}),
        **_config_fields(config, architecture),
        **{f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()},
        "tokenizer.chat_template": template if isinstance(template, str) else "",
    }

    def write_file(temporary: Path) -> None:
        writer = gguf.GGUFWriter(temporary, architecture)
        for key, value in fields.items():
            if value not in ("", []):
                writer.add_key_value(key, value, gguf.GGUFValueType[_VALUE_TYPES[type(value)]])
        size = len(checkpoint.tokenizer_json)
        lazy = gguf.LazyNumpyTensor  # computed when it is written
        for name, shape, type_name, compute in _tensors(checkpoint, dtype):
            quantization_type = gguf.GGMLQuantizationType[type_name]
            values = lazy(meta=lazy.meta_with_dtype_and_shape(np.float32, shape), func=compute)
            data = gguf.quants.quantize(values, quantization_type)
            writer.add_tensor(name, data, raw_dtype=quantization_type)
            size += data.nbytes
        atomic_io.check_space(path, size)  # gguf's own error would not mention that the disk is full
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    atomic_io.write_with(path, write_file)


def _architecture(config: ModelConfig) -> str:
    """Return GGUF's name of a model's architecture. Raises LLMError if llama.cpp would run the model
    differently."""
    architecture = config.architecture.gguf
    if not architecture:
        raise LLMError(f"models of type {config.model_type} are not written as GGUF; use `to` hf instead")
    if not config.norm_topk_prob:
        raise LLMError(
            "the weights of this model's active experts do not sum to 1, which llama.cpp does not support"
        )
    if config.hidden_act != config.architecture.activation:
        raise LLMError(
            f"llama.cpp does not support models of type {config.model_type} with {config.hidden_act}"
        )
    pattern = conventions.layer_types(_layer_pattern(config), config.num_hidden_layers)
    if config.layer_types not in ((), pattern):
        raise LLMError(
            "llama.cpp supports layers of type full_attention only at a regular interval among layers of "
            "type sliding_attention"
        )
    problem = ""
    if config.rope_scaling and config.rope_scaling.rope_type == "llama3" and architecture != "llama":
        problem = f"Llama 3's RoPE scaling only in models of type llama, not {config.model_type}"
    if config.no_rope_layers != conventions.rope_layers(config.model_type, config.num_hidden_layers):
        problem = f"smollm3 only if every {conventions.ROPE_LAYER_INTERVAL}th layer has no RoPE"
    if problem:
        raise LLMError(f"llama.cpp supports {problem}; use `to` hf instead")
    return architecture


def _config_fields(config: ModelConfig, architecture: str) -> Json:
    """Return the fields that describe a model."""
    values = as_record(config)
    fields = {key: values[name] for key, name in _FIELDS.items() if config.num_experts or "expert" not in key}
    fields |= {
        "rope.freq_base": float(config.rope_theta),
        conventions.epsilon_key(config.model_type): float(config.rms_norm_eps),
    }
    if config.layer_types:
        fields |= {
            "attention.sliding_window": config.sliding_window,
            "attention.sliding_window_pattern": _layer_pattern(config),
            "rope.freq_base_swa": float(config.rope_local_base_freq),
        }
    scaling = config.rope_scaling
    if scaling and scaling.rope_type == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    named = {f"{architecture}.{key}": value for key, value in fields.items()}
    if scaling and scaling.rope_type == "llama3":
        named[conventions.ROPE_SCALING_KEY] = json.dumps(as_record(scaling))
    return named


def _layer_pattern(config: ModelConfig) -> int:
    """Return the number of the first layer of type full_attention, counted from 1; 0 if there is none."""
    return next((i for i, kind in enumerate(config.layer_types, 1) if kind == "full_attention"), 0)


def _tensors(
    checkpoint: Checkpoint, dtype: str
) -> Iterator[tuple[str, Shape, str, Callable[[], NDArray[np.float32]]]]:
    """Yield (GGUF's name, shape, type, function that computes the values) of each tensor."""
    config = checkpoint.config
    shapes = config.tensor_shapes()
    architecture = config.architecture.gguf
    heads = conventions.interleaved_heads(config, architecture)

    def values(name: str) -> NDArray[np.float32]:
        values = np.ascontiguousarray(checked_finite(name, checkpoint.tensors[name]), np.float32)
        projection = name.split(".")[-2]
        if projection in heads:
            values = conventions.reorder_rows(values, heads[projection], interleave=True)
        if config.is_gemma and projection == "q_norm":
            values = values * np.float32(config.attention_scale * math.sqrt(conventions.query_scalar(config)))
        return values

    def joined(names: list[str], is_stack: bool) -> NDArray[np.float32]:
        return (np.stack if is_stack else np.concatenate)([values(name) for name in names])

    single: dict[str, str] = {}
    for theirs, ours in in_gguf(config, architecture):
        is_stack = theirs.endswith(GGUF_STACK)
        if len(ours) == 1 and not is_stack and not theirs.endswith(GGUF_ROUTER):
            single[ours[0]] = theirs
            continue
        rows, *columns = shapes[ours[0]]
        shape = (len(ours), rows, *columns) if is_stack else (len(ours) * rows, *columns)
        type_name = _tensor_type(dtype, shape, theirs) if len(ours) > 1 else "F32"  # F32: a router
        yield theirs, shape, type_name, partial(joined, ours, is_stack)
    for name, shape in shapes.items():
        if name in single:
            yield single[name], shape, _tensor_type(dtype, shape, name), partial(values, name)
    if config.rope_scaling and config.rope_scaling.rope_type == "llama3":
        plain = [config.rope_theta ** (-2 * i / config.head_dim) for i in range(config.head_dim // 2)]
        divisors = [
            frequency / scaled for frequency, scaled in zip(plain, config.rope_frequencies(), strict=True)
        ]
        yield conventions.ROPE_FACTORS, (len(divisors),), "F32", partial(np.array, divisors, np.float32)


def _tensor_type(dtype: str, shape: Shape, name: str) -> str:
    """Return the GGUF type of a tensor in a file with matrices of `dtype`."""
    type_name = "F32" if len(shape) == 1 or name == POSITIONS else dtype.upper()
    if type_name == "Q4_0" and name in (EMBEDDING, HEAD):
        type_name = "Q8_0"  # as in llama.cpp: the embeddings keep more precision
    return "F16" if type_name.startswith("Q") and shape[-1] % QUANTIZED_BLOCK else type_name
