"""The weights in a page: their data type, and the block of bytes that live/model.js reads."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli import units
from llmcli.config import ModelConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError, usage
from llmcli.evaluation.evaluator import divergence
from llmcli.formats.checkpoint import Checkpoint, ComputedTensors, checked_finite
from llmcli.formats.metadata import Json
from llmcli.formats.quantization import MAX_FLOAT16, quantize_rows
from llmcli.models.numpy_runtime import NumpyRuntime

MAX_BYTES = 64_000_000  # maximum size of a page
BYTES_PER_WEIGHT = {"int8": 1, "f16": 2, "f32": 4}  # in matrices; vectors are float32
MAX_COST = 0.005  # maximum share by which int8 may raise the bits per byte; otherwise the weights are float16
BASE64 = 4 / 3  # bytes of the page per byte of weights


def choose_dtype(
    model: Checkpoint, tokenizer: Tokenizer, dtype: str | None, if_too_large: str | None = None
) -> tuple[str, str]:
    """Return (data type of the matrices, a note on its effect compared with the original weights).

    The default is int8 if it costs less than MAX_COST, otherwise float16. Raises LLMError if the weights are
    too large for a page.
    """
    if dtype not in (None, *BYTES_PER_WEIGHT):
        raise usage(f"`dtype` must be {', '.join(BYTES_PER_WEIGHT)} in a page, found {dtype}")
    check_size(model.config, dtype or "int8", page_bytes(model.config, dtype), if_too_large)
    if dtype in ("f16", "f32"):
        return dtype, {"f16": "float16", "f32": "float32"}[dtype]
    _, cost = divergence(NumpyRuntime(model), NumpyRuntime(with_page_values(model, "int8")), tokenizer)
    if dtype is None and cost > MAX_COST:
        return "f16", f"float16, as int8 weights would raise the bits per byte by {cost:.1%}"
    amount = f"about {cost:.2%}" if cost >= 1e-4 else "less than 0.01%"
    return (
        "int8",
        f"int8, one scale per row: the bits per byte are {amount} higher than those of the original weights",
    )


def page_bytes(config: ModelConfig, dtype: str | None = None) -> int:
    """Return the minimum size of a page with weights of this type."""
    return int(BASE64 * BYTES_PER_WEIGHT[dtype or "int8"] * config.parameters)


def check_size(config: ModelConfig, dtype: str, size: int, advice: str | None = None) -> None:
    """Raise LLMError for a page that is too large; without `advice`, it names an option of `llm export`."""
    if size <= MAX_BYTES:
        return
    smaller = [name for name, width in BYTES_PER_WEIGHT.items() if width < BYTES_PER_WEIGHT[dtype]]
    fitting = [
        name for name in smaller if 1.1 * BASE64 * BYTES_PER_WEIGHT[name] * config.parameters < MAX_BYTES
    ]
    advice = advice or (
        f"add --dtype {fitting[-1]}" if fitting else "for a model of this size: --to gguf or --to hf"
    )
    max_parameters = units.number(MAX_BYTES / BASE64 / BYTES_PER_WEIGHT[dtype])
    raise LLMError(
        f"the page would take {units.size(size)} with {dtype} weights; the limit is {units.size(MAX_BYTES)} "
        f"({max_parameters} parameters); {advice}"
    )


def with_page_values(model: Checkpoint, dtype: str) -> Checkpoint:
    """Return the model in float32, with the weights that a page of this dtype uses."""

    def compute(name: str) -> NDArray[Any]:
        stored, *scales = _stored(name, model.tensors[name], dtype)
        return stored * scales[0][:, None] if scales else stored.astype(np.float32)

    tensors = ComputedTensors(list(model.config.tensor_shapes()), compute)
    return replace(model, tensors=tensors, dtypes={}, quantization=None)


def _stored(name: str, values: NDArray[Any], dtype: str) -> list[NDArray[Any]]:
    """Return the arrays that a page has for a tensor: its values, or codes and a scale for each row. Vectors
    are float32. Raises LLMError for a value that is too large for float16."""
    if values.ndim < 2 or dtype == "f32":
        return [values.astype("<f4")]
    if dtype == "int8":
        codes, scales = quantize_rows(values)
        return [codes, scales.astype("<f4")]
    if (largest := float(np.abs(values).max(initial=0.0))) > MAX_FLOAT16:
        raise LLMError(
            f"{name} contains {largest:.6g}, the largest float16 is {MAX_FLOAT16:,.0f}"
            "; export with --dtype f32"
        )
    return [values.astype("<f2")]


def pack(model: Checkpoint, dtype: str) -> tuple[list[Json], bytes]:
    """Return (position of each tensor in a block of bytes, the block); see `readTensors` in live/model.js.
    Raises LLMError if a weight is too large for float16."""
    entries: list[Json] = []
    parts: list[bytes] = []
    offset = 0

    def put(array: NDArray[Any]) -> int:
        nonlocal offset
        start = offset
        data = array.tobytes()
        parts.append(data + bytes(-len(data) % 4))  # float32 values must be aligned
        offset += len(parts[-1])
        return start

    names = _page_names(model.config)
    for name in model.config.tensor_shapes():
        values = checked_finite(name, model.tensors[name])
        entry: Json = {
            "name": names.get(name, name),
            "shape": values.shape,
            "dtype": "f32" if values.ndim < 2 else dtype,
        }
        for key, array in zip(("offset", "scales"), _stored(name, values, dtype), strict=False):
            entry[key] = put(array)
        entries.append(entry)
    return entries, b"".join(parts)


def _page_names(config: ModelConfig) -> dict[str, str]:
    """Map names of routers and experts in a file to those in a page, which are Qwen3-MoE's for any
    architecture."""
    names = {}
    for layer in range(config.num_hidden_layers if config.num_experts else 0):
        start = f"model.layers.{layer}.mlp."
        names[config.router_name(layer)] = f"{start}gate.weight"
        for expert, matrices in enumerate(config.mlp_names(layer)):
            for kind, name in zip(("gate", "up", "down"), matrices, strict=True):
                names[name] = f"{start}experts.{expert}.{kind}_proj.weight"
    return names
