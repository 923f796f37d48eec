"""The model file: a standard safetensors file with weights, config, tokenizer and training record.

The tokenizer is kept as text and not interpreted here. numpy is imported when a tensor is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.config import QUANTIZATIONS, ModelConfig, Shape
from llmcli.errors import DAMAGED, LLMError, as_argument, command_line, prefixed
from llmcli.formats import quantization
from llmcli.formats.header import Header
from llmcli.formats.huggingface.config import dump_config, parse_config
from llmcli.formats.metadata import Json, JsonObject, parse_document
from llmcli.formats.quantization import QuantizedMatrix
from llmcli.formats.safetensors.dtypes import TORCH_NAMES, WEIGHT_DTYPES, stored_bytes
from llmcli.formats.safetensors.file import digest, read_into, read_tensor, write
from llmcli.formats.training_record import KNOWN_ANSWERS, KnownAnswers, TrainingRecord

if TYPE_CHECKING:
    from llmcli.formats.safetensors.dtypes import Array, Values

FORMAT_VERSION = 1
MAX_HASHED_BYTES = 1 << 24  # largest file whose hash is checked on every open, in up to 10 ms
ADAPTER_PREFIX = "base_model.model."  # in PEFT's tensor names


class _TokenizerConfig(JsonObject):
    chat_template: str | tuple[Json, ...] | None = None


@dataclass
class Checkpoint:
    """A model: config, weights, tokenizer and training record."""

    config: ModelConfig
    tokenizer_source: str | Json  # tokenizer.json, as text or parsed
    tensors: Mapping[str, Array]
    record: TrainingRecord = field(default_factory=TrainingRecord)
    tokenizer_config_json: str = "{}"
    # dtypes of tensors stored as F16 or BF16; all others are F32
    dtypes: Mapping[str, str] = field(default_factory=dict)
    quantization: str | None = None  # "int8" or "int4" if the file has quantized matrices
    path: Path | None = None  # file that it was read from
    known_answers: KnownAnswers | None = None

    @property
    def tokenizer_json(self) -> str:
        """Return the text of tokenizer.json."""
        source = self.tokenizer_source
        return source if isinstance(source, str) else json.dumps(source, ensure_ascii=False)

    @property
    def parameters(self) -> int:
        return self.config.parameters

    @property
    def weight_dtypes(self) -> set[str]:
        """The dtypes of the tensors, under their names in a file."""
        return {self.dtypes.get(name, "F32") for name in self.config.tensor_shapes()}

    @property
    def config_json(self) -> str:
        """Return the text of config.json; its dtype is float32 if the tensors have several."""
        names = self.weight_dtypes
        return dump_config(self.config, TORCH_NAMES[names.pop()] if len(names) == 1 else "float32")

    @property
    def header(self) -> Header | None:
        """The header of the file with the tensors; None if they were computed."""
        return self.tensors.header if isinstance(self.tensors, TensorsOnDisk) else None

    @property
    def shared(self) -> Checkpoint:
        """See `Ensemble.shared`."""
        return self

    @property
    def records(self) -> list[TrainingRecord]:
        """See `Ensemble.records`."""
        return [self.record]

    def close(self) -> None:
        """Close the files of the tensors until one is read again, because Windows cannot replace open
        files."""
        if self.header:
            self.header.open_files.clear()

    def quantized(self, name: str, scheme: str | None) -> QuantizedMatrix | None:
        """Quantize a matrix, or return it as stored if possible; None if the scheme does not quantize it."""
        bits = quantization.bits_of(name, self.config.tensor_shapes()[name], scheme)
        if not bits:
            return None
        stored = self.tensors.quantized(name) if isinstance(self.tensors, TensorsOnDisk) else None
        if stored is not None and stored.bits == bits:
            return stored
        return quantization.quantize(self.tensors[name], bits)

    def with_quantized_values(self, scheme: str) -> Checkpoint:
        """Return this model in float32, after quantizing and dequantizing its weights."""

        def compute(name: str) -> Array:
            matrix = self.quantized(name, scheme)
            return self.tensors[name] if matrix is None else matrix.dequantize()

        return replace(self, tensors=ComputedTensors(self.tensors, compute), dtypes={})

    @property
    def stored(self) -> dict[str, tuple[str, Shape]]:
        """Dtype and shape of each tensor in a file, by name."""
        dtypes = {} if self.quantization else self.dtypes
        tensors = quantization.stored_tensors(self.config, self.quantization).items()
        return {name: (dtypes.get(name, dtype), shape) for name, (dtype, shape) in tensors}

    @property
    def stored_bytes(self) -> int:
        """Size of the tensors in a file."""
        return stored_bytes(self.stored.values())

    def stacked(self, names: Sequence[str], memory: Array | None = None) -> Array:
        """Stack tensors along their first dimension in float32, each read directly into its place. The result
        is the beginning of `memory` [N], or new memory."""
        import numpy as np

        shapes = [self.config.tensor_shapes()[name] for name in names]
        shape = sum(shape[0] for shape in shapes), *shapes[0][1:]
        memory = np.empty(math.prod(shape), np.float32) if memory is None else memory[: math.prod(shape)]
        stacked = memory.reshape(shape)
        start = 0
        header = self.header
        for name, shape in zip(names, shapes, strict=True):
            place = stacked[start : start + shape[0]]
            if header and name in header.tensors:
                read_into(header, header.tensors[name], place)
            else:
                place[...] = self.tensors[name]
            start += shape[0]
        return stacked


# ---- tensors read or computed on access


class ComputedTensors(Mapping[str, "Values"]):
    """Tensors by name, computed on access."""

    def __init__(self, names: Collection[str], compute: Callable[[str], Values]) -> None:
        self._names = names
        self._compute = compute

    def __getitem__(self, name: str) -> Values:
        return self._compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class TensorsOnDisk(ComputedTensors):
    """The tensors in a file as float32 arrays, read on access."""

    def __init__(self, header: Header, shapes: Mapping[str, Shape]) -> None:
        super().__init__(shapes, self._load)
        self.header = header
        self._shapes = shapes

    def _load(self, name: str) -> Array:
        matrix = self.quantized(name)
        if matrix is not None:
            return matrix.dequantize()
        return read_tensor(self.header, self.header.tensors[name]).astype("float32", copy=False)

    def quantized(self, name: str) -> QuantizedMatrix | None:
        """Return a matrix that is stored quantized; None for other tensors."""
        if name + quantization.CODES not in self.header.tensors:
            return None
        codes, scales = (
            read_tensor(self.header, self.header.tensors[name + suffix])
            for suffix in (quantization.CODES, quantization.SCALES)
        )
        return QuantizedMatrix(codes, scales, self._shapes[name][1])


# ---- reading


def from_header(header: Header) -> Checkpoint:
    """Open the model that a header describes. Raises LLMError if it is damaged, not supported, from a later
    version, or a safetensors file that this program did not write."""
    path, metadata = header.path, header.metadata
    if header.form == "safetensors file":
        _check_is_ours(header)
    if header.problem:
        raise LLMError(f"{path}: {header.problem}")
    check_version(header)
    for key in ("config.json", "tokenizer.json", "training.json"):
        if key not in metadata:
            raise LLMError(f"{path} has no {key} in its metadata; it is damaged")
    tokenizer_config = metadata.get("tokenizer_config.json", "{}")
    scheme = metadata.get("quantization")
    with prefixed(path):
        config = parse_config(metadata["config.json"])
        record = TrainingRecord.parse(metadata["training.json"])
        parse_document(tokenizer_config, "its tokenizer_config.json", _TokenizerConfig)
        known = KnownAnswers.parse(metadata[KNOWN_ANSWERS]) if KNOWN_ANSWERS in metadata else None
        if scheme is not None and scheme not in QUANTIZATIONS:
            raise LLMError(f"it is quantized as {scheme[:20]!r}; {' and '.join(QUANTIZATIONS)} are supported")
        _check_tensors(header, config, scheme)
    if config.is_gemma:  # it stores the gains of norms minus 1
        norms = {name: t for name, t in header.tensors.items() if len(t.shape) == 1}
        gains = {name: tensor._replace(offset=tensor.offset + 1) for name, tensor in norms.items()}
        header = replace(header, tensors=header.tensors | gains)
    tensors = TensorsOnDisk(header, config.tensor_shapes())
    halves = [(name, t) for name, t in header.tensors.items() if t.dtype in ("F16", "BF16") and t.factor == 1]
    dtypes = {name: tensor.dtype for name, tensor in halves if scheme is None}
    return Checkpoint(
        config, metadata["tokenizer.json"], tensors, record, tokenizer_config, dtypes, scheme, path, known
    )


def holds_adapters(header: Header) -> bool:
    return any(name.startswith(ADAPTER_PREFIX) for name in header.tensors)


def _check_is_ours(header: Header) -> None:
    """Raise LLMError unless this program wrote the model in a safetensors file."""
    path = header.path
    if holds_adapters(header):
        raise LLMError(
            f"{path} holds adapters, not a model; merge them: "
            f"llm import MODEL --adapter {path} -o merged.safetensors"
        )
    if not header.is_ours:
        raise LLMError(
            f"{path} is not a model of this program (no llmcli in its metadata); "
            f"inspect it: llm inspect {path}, or name the directory with its config.json"
        )


def check_version(header: Header) -> None:
    """Raise LLMError for a file from a later version of this program."""
    version = header.metadata.get("llmcli", str(FORMAT_VERSION))
    if not version.isdecimal() or len(version) > 9 or int(version) > FORMAT_VERSION:
        raise LLMError(
            f"{header.path} "
            f"has format version {version[:20]!r}, this program reads up to {FORMAT_VERSION}"
            "; upgrade it: pip install --upgrade llmcli"
        )


def check_hash(header: Header, names: Iterable[str]) -> None:
    """Raise LLMError if `is_changed`. Large files are not checked."""
    if header.file_bytes > MAX_HASHED_BYTES or not is_changed(header, names):
        return
    keys = list(header.metadata)
    # the order of keys in this version and in earlier versions
    as_written = keys == sorted(keys) or (keys[0], keys[-1]) == (
        "format",
        "sha256",
    )
    cause = "is damaged, or it was changed" if as_written else "was changed by another program"
    output = f"{header.path.stem}-imported.safetensors"
    command = command_line(["llm", "import", as_argument(header.path), "-o", output])
    raise LLMError(
        f"{header.path} "
        f"{cause} after it was written: its content does not match the sha256 in its metadata"
        f"; get the original again, or import the changed model: {command}"
    )


def is_changed(header: Header, names: Iterable[str]) -> bool:
    """Return whether the content of a model's file differs from what this program wrote. The order of the
    tensors in the header, given as `names`, does not matter, since other programs change it when they save
    the same tensors and metadata."""
    recorded = header.metadata.get("sha256")
    if recorded is None or not header.is_ours:
        return False
    return recorded != digest(header) and recorded != digest(header, names)


def _check_tensors(header: Header, config: ModelConfig, scheme: str | None) -> None:
    """Raise LLMError unless the file has exactly the tensors of its config."""
    # check this first, since a damaged config may claim a billion layers or experts
    if config.mlps > len(header.tensors):
        experts = f" of {config.num_experts:,} experts" if config.num_experts else ""
        raise LLMError(
            f"its config has {config.num_hidden_layers:,} layers{experts}, but the file has fewer tensors"
        )
    expected = quantization.stored_tensors(config, scheme)
    for name, (dtype, shape) in expected.items():
        if name not in header.tensors:
            raise LLMError(f"tensor {name} is missing; the file is damaged")
        tensor = header.tensors[name]
        if tensor.shape != shape:
            raise LLMError(f"tensor {name} has shape {list(tensor.shape)}; its config requires {list(shape)}")
        allowed = WEIGHT_DTYPES if dtype == "F32" else (dtype,)
        if tensor.dtype not in allowed and not header.decode:
            raise LLMError(f"tensor {name} is {tensor.dtype}; expected {' or '.join(allowed)}")
    if extra := header.tensors.keys() - expected.keys():
        raise LLMError(f"tensor {min(extra)[:100]!r} is not part of the model described by its config")


# ---- writing


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a model, quantized if `quantization` is set. Raises LLMError if the disk is full or fails."""
    metadata = {
        "llmcli": str(FORMAT_VERSION),
        "config.json": checkpoint.config_json,
        "tokenizer.json": checkpoint.tokenizer_json,
        "tokenizer_config.json": checkpoint.tokenizer_config_json,
        "training.json": json.dumps(checkpoint.record.to_json(), ensure_ascii=False),
    }
    if checkpoint.quantization:
        metadata["quantization"] = checkpoint.quantization
    if checkpoint.known_answers:
        metadata[KNOWN_ANSWERS] = json.dumps(checkpoint.known_answers.to_json(), ensure_ascii=False)
    write_tensors(path, {"": checkpoint}, metadata)


def write_tensors(path: str | Path, models: Mapping[str, Checkpoint], metadata: Mapping[str, str]) -> None:
    """Write the tensors of models to one file; the key of each model is the prefix of its tensors. Raises
    LLMError."""
    stored: dict[str, tuple[str, Shape]] = {}
    sources: dict[str, tuple[Checkpoint, str]] = {}
    for prefix, model in models.items():
        for name, entry in model.stored.items():
            stored[prefix + name] = entry
            sources[prefix + name] = (model, name)

    @lru_cache(maxsize=1)  # the scales of a matrix follow its codes in the file
    def quantized(name: str) -> QuantizedMatrix | None:
        model, codes = sources[name + quantization.CODES]
        return model.quantized(codes.removesuffix(quantization.CODES), model.quantization)

    def values(name: str) -> Values:
        matrix_name, _, part = name.rpartition(".")
        if part in ("codes", "scales"):  # parts of a QuantizedMatrix
            return getattr(quantized(matrix_name), part)
        model, inner = sources[name]
        values = model.tensors[inner]
        return values - 1 if model.config.is_gemma and values.ndim == 1 else values

    entries = {"format": "pt", "sha256": "", **metadata}
    tensors = ComputedTensors(stored, lambda name: checked_finite(name, values(name)))
    write(path, tensors, stored, dict(sorted(entries.items())))


def checked_finite(name: str, values: Values) -> Values:
    """Return a tensor that is to be written. Raises LLMError if it has NaN or infinite values."""
    import numpy as np

    if not np.isfinite(values).all():
        raise LLMError(f"{name} has NaN or infinite values: {DAMAGED}")
    return values
