"""Low-rank adapters as a file of their own, in the naming of the PEFT library: written, read, and merged into a model.

Knows numpy, not torch. LoRA: arXiv:2106.09685, section 4.1.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.config import LORA_SCALE, ModelConfig
from llmcli.errors import LLMError
from llmcli.formats import atomic_io
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.metadata import document
from llmcli.formats.safetensors_file import Header, read_header, read_tensor, write_tensors

_PREFIX = "base_model.model."  # PEFT's, before the name of a matrix
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # in a directory of PEFT's
# keys of PEFT's config that change what an adapter adds
_UNSUPPORTED = (
    "use_dora", "use_rslora", "use_qalora", "rank_pattern", "alpha_pattern", "layer_replication",
    "alora_invocation_tokens", "trainable_token_indices",
)  # fmt: skip
_INTO_THE_BASE = ("pissa", "olora", "corda", "loftq")  # initial weights that PEFT takes out of the base


def save(path: Path, adapters: Mapping[str, NDArray[np.float32]], base: Checkpoint) -> None:
    """Write what a model learned in its adapters, `x.adapter.lora_A` [rank, inputs] and `x.adapter.lora_B` [outputs,
    rank] for each matrix x; beside them, in the metadata, PEFT's adapter_config.json and the record. A file of the name
    that PEFT gives it gets that config as a file beside it too, so that PEFT opens the directory."""
    named = {_PREFIX + name.replace(".adapter.", ".") + ".weight": array for name, array in adapters.items()}
    rank = min(array.shape[0] for name, array in adapters.items() if name.endswith("lora_A"))
    config = {
        "base_model_name_or_path": base.record.get("base", {}).get("file"),
        "bias": "none",
        "lora_alpha": rank * LORA_SCALE,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted({name.split(".")[-3] for name in adapters}),
        "task_type": "CAUSAL_LM",
    }
    metadata = {
        "format": "pt",
        PEFT_CONFIG: json.dumps(config, indent=2),
        "training.json": json.dumps(base.record, ensure_ascii=False),
    }
    write_tensors(path, named, metadata)
    if path.name == PEFT_FILE:
        atomic_io.write(path.with_name(PEFT_CONFIG), [metadata[PEFT_CONFIG].encode("utf-8")])


def parameter_count(config: ModelConfig, rank: int) -> int:
    """Parameters of the adapters of all matrices in the layers; an upper bound with experts, which have none."""
    shapes = (shape for name, shape in config.tensor_shapes().items() if ".layers." in name and len(shape) == 2)
    return sum(rank * (outputs + inputs) for outputs, inputs in shapes)


def is_adapter(header: Header) -> bool:
    return any(name.startswith(_PREFIX) for name in header.tensors)


def file_of(path: Path) -> Path:
    """The file of adapters that is meant: PEFT saves them in a directory. Raises LLMError when there is none."""
    file = path / PEFT_FILE if path.is_dir() else path
    if not file.exists():
        raise LLMError(f"there is no file {file}; adapters are a .safetensors file, or a directory with {PEFT_FILE}")
    return file


def learned_on(path: Path) -> tuple[str, list[str]]:
    """(name, hashes) of the model that adapters of ours were learned on, as their record tells: its own, and that of
    what it was imported from. No hash if none is told."""
    try:
        base = document(read_header(path).metadata.get("training.json", "{}"), "training.json")["base"]
        return str(base.get("file")), [base[key] for key in ("sha256", "source_sha256") if key in base]
    except (LLMError, KeyError):
        return "", []


class Merged(Mapping[str, NDArray[np.float32]]):
    """The tensors of a model with what adapters learned in them, each made when it is asked for."""

    def __init__(self, base: Checkpoint, path: Path) -> None:
        """Raises LLMError when the file holds no adapters of such a model."""
        self._base, self._header = base, read_header(path)
        config = _config(self._header)
        self._scale = config["lora_alpha"] / config["r"]
        self._pairs: dict[str, tuple[str, str]] = {}
        shapes = base.config.tensor_shapes()
        for name in self._header.tensors:
            matrix = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            if name.endswith(".lora_B.weight"):
                continue
            pair = name, f"{_PREFIX}{matrix}.lora_B.weight"
            if not name.endswith(".lora_A.weight") or pair[1] not in self._header.tensors:
                raise LLMError(f"{path}: {name[:100]} is no part of a low-rank adapter")
            a, b = (self._header.tensors[part].shape for part in pair)
            if len(a) != 2 or len(b) != 2 or a[0] != b[1] or shapes.get(f"{matrix}.weight") != (b[0], a[1]):
                raise LLMError(f"{path}: its adapter of {matrix[:100]} does not fit the model")
            self._pairs[f"{matrix}.weight"] = pair

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        found = self._base.tensors[name]
        if name in self._pairs:
            a, b = (self._array(part) for part in self._pairs[name])
            found = found + np.float32(self._scale) * (b @ a)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._base.tensors)

    def __len__(self) -> int:
        return len(self._base.tensors)

    def _array(self, name: str) -> NDArray[np.float32]:
        return read_tensor(self._header, self._header.tensors[name]).astype(np.float32)


def _config(header: Header) -> dict[str, Any]:
    """PEFT's adapter_config.json, from the metadata or from beside the file."""
    text = header.metadata.get("adapter_config.json")
    beside = header.path.with_name("adapter_config.json")
    try:
        if text is None and beside.exists() and not beside.is_file():
            raise LLMError(f"{beside} is not a regular file")
        found = document(beside.read_text("utf-8") if text is None else text, "adapter_config.json")
    except FileNotFoundError as error:
        raise LLMError(f"{header.path} has no adapter_config.json, in its metadata or beside it") from error
    except LLMError as error:
        raise LLMError(f"{header.path}: {error}") from error
    except (OSError, ValueError) as error:
        raise LLMError(f"{header.path}: its adapter_config.json cannot be read: {error}") from error
    unsupported = [key for key in _UNSUPPORTED if found.get(key)]
    if str(found.get("init_lora_weights")).startswith(_INTO_THE_BASE):
        unsupported.append("init_lora_weights")
    if found["peft_type"] != "LORA" or unsupported:
        raise LLMError(f"{header.path}: its adapter_config.json asks for more than plain LoRA {unsupported}")
    return found
