"""Reading GGUF files, the format of llama.cpp, Ollama and LM Studio. Tensors and keys get Hugging Face's
names."""

import io
import json
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from llmcli.config import REWRITTEN, ModelConfig
from llmcli.errors import LLMError, missing_extra, prefixed
from llmcli.formats import atomic_io, tensor_names, training_stages
from llmcli.formats.gguf import blocks, conventions
from llmcli.formats.gguf import config as gguf_config
from llmcli.formats.gguf import header as gguf_header
from llmcli.formats.gguf import tokenizer as gguf_tokenizer
from llmcli.formats.gguf.conventions import CONFIG_KEYS, ROPE_FACTORS
from llmcli.formats.header import Header, TensorInfo
from llmcli.formats.huggingface.config import dump_config
from llmcli.formats.huggingface.conversion import granite_epsilon, scale_granite
from llmcli.formats.metadata import Json
from llmcli.formats.open_file import open_for_reading
from llmcli.formats.safetensors import dtypes
from llmcli.formats.safetensors.file import BLOCK_VALUES, cut_off_error

MAX_ROPE_FACTORS = 1 << 16
_PROVENANCE_KEYS = (  # without "general."
    "name",
    "author",
    "organization",
    "license",
    "license.link",
    "description",
    "url",
    "source.url",
    "basename",
    "finetune",
    "size_label",
)


def import_gguf(what: str) -> ModuleType:
    """Import the gguf package, which `what` needs. Raises LLMError if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise missing_extra(what, "gguf", "gguf") from error
    return gguf


def parse_header(path: Path, file: io.BufferedReader) -> Header:
    """Read the header of an open GGUF file. For an unsupported model, the header keeps GGUF's names, and
    `problem` is the reason. Raises LLMError if the file is damaged."""
    try:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise LLMError(f"cannot read {path}: {error}") from error
    with mapped:
        try:
            with prefixed(path):
                header = replace(gguf_header.parse(path, mapped), decode=partial(_decode, path))
        except (ValueError, struct.error) as error:
            raise LLMError(f"{path} is not a complete GGUF file: {error}") from error
        try:
            return _translated(header, mapped)
        except LLMError as error:
            return replace(header, metadata=_untranslated_metadata(header), problem=str(error))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
            raise LLMError(f"{path} has an invalid header: {error}") from error


def _translated(header: Header, mapped: mmap.mmap) -> Header:
    """Convert a header to Hugging Face's names. Raises LLMError if the model is not supported."""
    fields = header.metadata
    tensors = dict(header.tensors)
    gguf_config.check_architecture(fields)
    for name, tensor in tensors.items():
        if tensor.dtype not in gguf_header.SUPPORTED_TYPES:
            raise gguf_header.unsupported_type(name, tensor.dtype)
    factors = None
    divisors = tensors.pop(ROPE_FACTORS, None)
    if divisors:
        if divisors.dtype != "F32" or divisors.size > MAX_ROPE_FACTORS:
            raise LLMError(
                f"its {ROPE_FACTORS} has {divisors.size:,} numbers of type {divisors.dtype}"
                "; expected F32, half as many as the head size"
            )
        factors = np.frombuffer(mapped, "<f4", divisors.size, divisors.start).tolist()
    config = gguf_config.parse_config(fields, tensors, factors)
    named = _translated_tensors(tensors, config, fields["general.architecture"])
    if fields["general.architecture"] == "granite":
        keys = gguf_config.granite_keys(fields, config)
        named = scale_granite(keys, config.head_dim, named)
        config = replace(config, rms_norm_eps=granite_epsilon(keys))
    tokenizer, bos_token = gguf_tokenizer.to_document(fields)
    tokenizer_config = gguf_tokenizer.to_config(fields, config, bos_token)
    metadata = {
        "config.json": dump_config(config),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": json.dumps(tokenizer_config, ensure_ascii=False, indent=2),
        "training.json": _training_json(header),
    }
    return replace(header, tensors=named, metadata=metadata)


def _translated_tensors(
    tensors: Mapping[str, TensorInfo], config: ModelConfig, architecture: str
) -> dict[str, TensorInfo]:
    """Give tensors Hugging Face's names, rows and offsets, and split stacked ones."""
    names = dict(tensor_names.in_gguf(config, architecture))
    heads = conventions.interleaved_heads(config, architecture)
    shapes = config.tensor_shapes()
    translated: dict[str, TensorInfo] = {}
    for theirs, tensor in tensors.items():
        ours = names.get(theirs, [theirs])
        is_stack = theirs in names and theirs.endswith(tensor_names.GGUF_STACK)
        if len(ours) == 1 and not is_stack:
            translated[ours[0]] = tensor
            continue
        sizes = [1 if is_stack else shapes[name][0] for name in ours]
        if tensor.shape[:1] != (sum(sizes),) or (is_stack and len(tensor.shape) != 3):
            wanted = f"{len(ours)} matrices" if is_stack else f"{sum(sizes)} rows"
            raise LLMError(f"its {theirs} has shape {list(tensor.shape)}; expected {wanted}")
        first = 0
        for name, size in zip(ours, sizes, strict=True):
            part = tensor.rows(first, first + size)
            translated[name] = part._replace(shape=part.shape[is_stack:], view=None)
            first += size
    named: dict[str, TensorInfo] = {}
    for name, tensor in translated.items():
        count = heads.get(name.split(".")[-2]) if tensor.shape == shapes.get(name) else None
        named[name] = tensor._replace(
            name=name,
            view=partial(conventions.reorder_rows, heads=count, interleave=False) if count else None,
            # Hugging Face's files store the gains of Gemma's norms minus 1
            offset=-1.0 if config.is_gemma and len(tensor.shape) == 1 else 0.0,
        )
    return named


def _untranslated_metadata(header: Header) -> Json:
    """Return the metadata of an unsupported model, with GGUF's own names of most fields."""
    fields = header.metadata
    architecture = str(fields.get("general.architecture", "not named"))
    known = {f"{architecture}.{gguf_key}": hf_key for gguf_key, hf_key in CONFIG_KEYS.items()}
    config = {"model_type": architecture} | {
        hf_key: fields[key] for key, hf_key in known.items() if key in fields
    }
    tokens = fields.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        config["vocab_size"] = len(tokens)
    others = {
        key: f"{len(value):,} entries" if isinstance(value, list) else str(value)
        for key, value in fields.items()
        # leave out fields that could be mistaken for metadata of files written by llmcli
        if key not in known and not key.startswith("general.") and "." in key and not key.endswith(".json")
    }
    return others | {"config.json": json.dumps(config), "training.json": _training_json(header)}


def _training_json(header: Header) -> str:
    """Return a training record with the origin of the model."""
    fields = header.metadata
    origin = {
        key: value for key in _PROVENANCE_KEYS if isinstance(value := fields.get(f"general.{key}"), str)
    }
    if fields.get("general.architecture") in list(REWRITTEN):
        origin["architecture"] = fields["general.architecture"]
    imported = {"file": atomic_io.name_of(header.path), "form": "GGUF", **origin}
    stages = training_stages.from_metadata(fields.get(training_stages.METADATA_KEY))
    return json.dumps({"imported": imported, **stages}, ensure_ascii=False)


def _decode(path: Path, tensor: TensorInfo) -> Iterator[NDArray[np.float32]]:
    """Read the flat float32 values of a tensor, in blocks of rows; one with reordered rows as a whole."""
    with open_for_reading(path) as file:
        file.seek(tensor.start)
        for block in [tensor] if tensor.view else _row_blocks(tensor):
            data = file.read(block.end - block.start)
            if len(data) != block.end - block.start:
                raise cut_off_error(path, tensor)
            values = _dequantize(data, block).reshape(block.shape)
            if not tensor.is_raw:
                values = values * tensor.factor + tensor.offset
            if tensor.view:
                values = tensor.view(values)
            yield values.reshape(-1)


def _row_blocks(tensor: TensorInfo) -> Iterator[TensorInfo]:
    """Yield blocks of rows of a tensor, so that a large tensor, such as the embeddings of Gemma, is never in
    memory twice."""
    if len(tensor.shape) < 2 or tensor.size <= BLOCK_VALUES:
        yield tensor
        return
    rows = tensor.shape[0]
    step = max(1, BLOCK_VALUES // (tensor.size // rows))
    for first in range(0, rows, step):
        yield tensor.rows(first, min(rows, first + step))


def _dequantize(data: bytes, tensor: TensorInfo) -> NDArray[np.float32]:
    """Decode the values of a tensor, or of some rows."""
    if dtypes.is_readable(tensor.dtype):
        return np.frombuffer(data, dtypes.numpy_dtype(tensor.dtype)).astype(np.float32)
    if blocks.is_decodable(tensor.dtype):
        return blocks.decode(data, tensor.dtype)
    gguf = import_gguf(f"reading {tensor.dtype}")
    row = np.frombuffer(data, np.uint8).reshape(1, -1)
    try:
        with np.errstate(all="ignore"):  # a damaged scale causes infinities and NaN
            return gguf.quants.dequantize(row, gguf.GGMLQuantizationType[tensor.dtype])
    except NotImplementedError as error:
        raise LLMError(f"{tensor.name[:100]} is of type {tensor.dtype}, which is not supported") from error
