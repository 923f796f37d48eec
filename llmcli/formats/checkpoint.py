"""The file: a standard safetensors file that holds weights, config, tokenizer and the record of training.

`load` opens one, and makes sure that it is one of ours and whole. Knows numpy, not torch. Does not interpret the
tokenizer, which travels as text.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.config import QUANTIZATIONS, ModelConfig
from llmcli.errors import LLMError
from llmcli.formats import quantization
from llmcli.formats.hf_config import dump_config, parse_config
from llmcli.formats.metadata import document
from llmcli.formats.quantization import Blocks
from llmcli.formats.safetensors_file import TORCH_NAMES, Header, digest, read_header, read_into, read_tensor, write

FORMAT_VERSION = 1
HASHED_ON_LOAD = 1 << 24  # bytes of a file whose hash is checked whenever it is opened: that takes 10 ms at most


def seen_bytes(records: Iterable[dict[str, Any]]) -> bytes | None:
    """The byte values of the text that any of several models was trained on; None where a record does not tell."""
    found: set[int] = set()
    for record in records:
        try:
            found |= set(bytes.fromhex(record["seen_bytes"]))
        except (KeyError, TypeError, ValueError):
            return None
    return bytes(sorted(found)) or None


@dataclass
class Checkpoint:
    """A model: config, tokenizer (the text of tokenizer.json), tensors and the record of its training.

    `read` fills a given array with a tensor, so that nothing is held twice in memory.
    """

    config: ModelConfig
    tokenizer_json: str
    tensors: Mapping[str, NDArray[np.float32]]
    record: dict[str, Any] = field(default_factory=dict)
    tokenizer_config_json: str = "{}"
    dtypes: Mapping[str, str] = field(default_factory=dict)  # F16 or BF16 where a tensor is kept so; else F32
    quantization: str | None = None  # "int8" or "int4" where the file keeps its matrices so
    path: Path | None = None  # where it was read from

    @property
    def parameters(self) -> int:
        return self.config.parameters

    @property
    def kinds(self) -> set[str]:
        """The types of its tensors, as a file names them."""
        return {self.dtypes.get(name, "F32") for name in self.config.tensor_shapes()}

    @property
    def torch_dtype(self) -> str:
        """Of its weights, as config.json names it; float32 where there are several."""
        kinds = self.kinds
        return TORCH_NAMES[kinds.pop()] if len(kinds) == 1 else "float32"

    @property
    def shared(self) -> "Checkpoint":
        """What has the tokenizer and the context: itself, where a mixture has several of the same."""
        return self

    @property
    def records(self) -> list[dict[str, Any]]:
        """Of its training: one, where a mixture has several."""
        return [self.record]

    @property
    def seen_bytes(self) -> bytes | None:
        """The byte values of the text that it was trained on; None where the record does not tell."""
        return seen_bytes(self.records)

    def blocks(self, name: str, kind: str | None) -> Blocks | None:
        """A matrix in few bits: as the file has it, or quantized now; None if that kind keeps it as it is."""
        bits = quantization.bits_of(name, self.config.tensor_shapes()[name], kind)
        if not bits:
            return None
        found = self.tensors.blocks(name) if isinstance(self.tensors, TensorsOnDisk) else None
        if found is not None and found.bits == bits:
            return found
        return quantization.quantize(self.tensors[name], bits)

    def rounded(self, kind: str) -> "Checkpoint":
        """The same model with the values that few bits can hold."""
        return replace(self, tensors=_Rounded(self, kind), dtypes={})

    def read(self, name: str, out: NDArray[np.float32]) -> None:
        """Copy tensor `name` into `out`, which has its shape."""
        if isinstance(self.tensors, TensorsOnDisk):
            self.tensors.read(name, out)
        else:
            out[...] = self.tensors[name]


class _Rounded(Mapping[str, NDArray[np.float32]]):
    """The tensors of a model as few bits hold them, each made when it is asked for."""

    def __init__(self, model: Checkpoint, kind: str) -> None:
        self._model, self._kind = model, kind

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        found = self._model.blocks(name, self._kind)
        return self._model.tensors[name] if found is None else found.matrix()

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.tensors)

    def __len__(self) -> int:
        return len(self._model.tensors)


class TensorsOnDisk(Mapping[str, NDArray[np.float32]]):
    """The tensors of a file as float32 arrays, each read when it is asked for."""

    def __init__(self, header: Header, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._header, self._shapes = header, shapes

    def blocks(self, name: str) -> Blocks | None:
        """A matrix that the file keeps in few bits; None if it keeps it in others."""
        if name + quantization.CODES not in self._header.tensors:
            return None
        codes, scales = (self._stored(name + part) for part in (quantization.CODES, quantization.SCALES))
        return Blocks(codes, scales, self._shapes[name][1])

    def _stored(self, name: str) -> NDArray[Any]:
        return read_tensor(self._header, self._header.tensors[name])

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        found = self.blocks(name)
        if found is not None:
            return found.matrix()
        out = np.empty(self._header.tensors[name].shape, np.float32)
        self.read(name, out)
        return out

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def read(self, name: str, out: NDArray[np.float32]) -> None:
        if name not in self._header.tensors or not out.flags.c_contiguous:
            out[...] = self[name]
            return
        read_into(self._header, self._header.tensors[name], out)


# ---- reading


def load(path: str | Path) -> Checkpoint:
    """Open a model of ours. Tensors stay on disk until they are asked for.

    Raises LLMError when the file is damaged, not ours, of a later format, or its tensors are not those that its
    config demands. The hash of a large file is not checked here (see `safetensors_file.digest`).
    """
    header = read_header(path)
    if any(name.startswith("base_model.model.") for name in header.tensors):
        raise LLMError(
            f"{path} holds adapters, not a model; merge them: llm import MODEL --adapter {path} -o merged.safetensors"
        )
    if not header.is_ours:
        raise LLMError(
            f"{path} is a safetensors file but not a model made by this program (no llmcli in its metadata); "
            f"look into it with: llm inspect {path}, or name the directory with its config.json"
        )
    return opened(header)


def opened(header: Header) -> Checkpoint:
    """The model that a header describes. Raises LLMError as `load` does."""
    path, metadata = header.path, header.metadata
    if header.problem:
        raise LLMError(f"{path}: {header.problem}")
    check_version(header)
    missing = [key for key in ("config.json", "tokenizer.json", "training.json") if key not in metadata]
    if missing:
        raise LLMError(f"{path} has no {missing[0]} in its metadata; it is damaged")
    try:
        config = parse_config(metadata["config.json"])
        record = document(metadata["training.json"], "training.json")
        document(metadata.get("tokenizer_config.json", "{}"), "tokenizer_config.json")
    except LLMError as error:
        raise LLMError(f"{path}: {error}") from error
    kind = metadata.get("quantization")
    if kind is not None and kind not in QUANTIZATIONS:
        raise LLMError(f"{path}: it is quantized as {kind[:20]!r}; {', '.join(QUANTIZATIONS)} are supported")
    _check_tensors(header, config, kind)
    check_hash(header)
    return Checkpoint(
        config,
        metadata["tokenizer.json"],
        TensorsOnDisk(header, config.tensor_shapes()),
        record,
        metadata.get("tokenizer_config.json", "{}"),
        {name: t.dtype for name, t in header.tensors.items() if t.dtype in ("F16", "BF16") and kind is None},
        kind,
        path,
    )


def check_version(header: Header) -> None:
    """Raises LLMError for a file of a later program."""
    version = header.metadata.get("llmcli", str(FORMAT_VERSION))
    if not version.isdecimal() or len(version) > 9 or int(version) > FORMAT_VERSION:
        raise LLMError(
            f"{header.path} has format version {version[:20]!r}, this program reads up to {FORMAT_VERSION}; "
            f"upgrade it: pip install --upgrade llmcli"
        )


def check_hash(header: Header) -> None:
    """Raises LLMError for a file of ours that is not what was written; that of a large one is not looked at."""
    if not header.is_ours or header.file_bytes > HASHED_ON_LOAD:
        return
    if header.metadata.get("sha256") not in (None, digest(header)):
        raise LLMError(
            f"{header.path} is damaged, or another program changed it: its hash is not the one in its metadata; get it "
            "again"
        )


def _check_tensors(header: Header, config: ModelConfig, kind: str | None = None) -> None:
    """The file must hold exactly the tensors that its config demands."""
    if config.swiglus > len(header.tensors):  # before the names of a billion layers or experts are listed
        experts = f" of {config.num_experts:,} experts" if config.num_experts else ""
        raise LLMError(
            f"{header.path}: its config wants {config.num_hidden_layers:,} layers{experts}, the file has fewer tensors"
        )
    wanted = quantization.stored_shapes(config, kind)
    for name, (dtype, shape) in wanted.items():
        if name not in header.tensors:
            raise LLMError(f"{header.path}: tensor {name} is missing; the file is damaged")
        found = header.tensors[name]
        if found.shape != shape:
            raise LLMError(
                f"{header.path}: tensor {name} has shape {list(found.shape)}, its config wants {list(shape)}"
            )
        allowed, said = (("F32", "F16", "BF16"), "F32, F16 or BF16") if dtype == "F32" else ((dtype,), dtype)
        if found.dtype not in allowed and not header.decode:
            raise LLMError(f"{header.path}: tensor {name} is {found.dtype}; {said} is wanted")
    extra = header.tensors.keys() - wanted.keys()
    if extra:
        raise LLMError(f"{header.path}: tensor {min(extra)[:100]!r} is not part of the graph that its config describes")


# ---- writing


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a model; its bytes are a function of the checkpoint alone. Raises LLMError when the disk refuses.

    One whose `quantization` is set is written in few bits.
    """
    shapes = checkpoint.config.tensor_shapes()
    metadata = {
        "format": "pt",
        "llmcli": str(FORMAT_VERSION),
        "config.json": dump_config(checkpoint.config, checkpoint.torch_dtype),
        "tokenizer.json": checkpoint.tokenizer_json,
        "tokenizer_config.json": checkpoint.tokenizer_config_json,
        "training.json": json.dumps(checkpoint.record, ensure_ascii=False),
    }
    if checkpoint.quantization:
        stored = quantization.stored_shapes(checkpoint.config, checkpoint.quantization)
        write(
            path, _Stored(checkpoint), {name: shape for name, (_, shape) in stored.items()},
            {name: dtype for name, (dtype, _) in stored.items()}, metadata | {"quantization": checkpoint.quantization},
        )  # fmt: skip
        return
    write(path, checkpoint.tensors, shapes, {name: checkpoint.dtypes.get(name, "F32") for name in shapes}, metadata)


def save_joined(path: str | Path, models: Mapping[str, Checkpoint], metadata: Mapping[str, str]) -> None:
    """Write several models into one file, the tensors of each under a name's beginning of its own."""
    shapes, dtypes, places = {}, {}, {}
    for start, model in models.items():
        for name, shape in model.config.tensor_shapes().items():
            shapes[start + name], dtypes[start + name] = shape, model.dtypes.get(name, "F32")
            places[start + name] = model, name
    joined = {"format": "pt", "llmcli": str(FORMAT_VERSION), **metadata}
    write(path, _Joined(places), shapes, dtypes, joined)


class _Joined:
    """The tensors of several models, each made when it is asked for."""

    def __init__(self, places: Mapping[str, tuple[Checkpoint, str]]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> NDArray[Any]:
        model, inner = self._places[name]
        return model.tensors[inner]


class _Stored:
    """The tensors of a quantized file, each made when it is asked for; codes and scales come one after the other."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._last: tuple[str, Blocks] | None = None

    def __getitem__(self, name: str) -> NDArray[Any]:
        matrix, dot, part = name.rpartition(".")
        if dot + part not in (quantization.CODES, quantization.SCALES):
            return self._checkpoint.tensors[name]
        if self._last is None or self._last[0] != matrix:
            blocks = self._checkpoint.blocks(matrix, self._checkpoint.quantization)
            assert blocks is not None
            self._last = matrix, blocks
        found = self._last[1]
        return found.codes if dot + part == quantization.CODES else found.scales


def save_weights(path: str | Path, checkpoint: Checkpoint, told: Mapping[str, str]) -> None:
    """Write the tensors alone, as a Hugging Face directory has them; `told` goes into the metadata."""
    shapes = checkpoint.config.tensor_shapes()
    dtypes = {name: checkpoint.dtypes.get(name, "F32") for name in shapes}
    write(path, checkpoint.tensors, shapes, dtypes, {"format": "pt", **told})
