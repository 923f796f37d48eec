"""Low-rank adapters (LoRA: arXiv:2106.09685, section 4.1) in PEFT's format: writing, reading, merging into a
model."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmcli.config import HEAD, LORA_SCALE, ModelConfig
from llmcli.errors import LLMError, brief, prefixed
from llmcli.formats import atomic_io, training_stages
from llmcli.formats.checkpoint import ADAPTER_PREFIX, Checkpoint, ComputedTensors
from llmcli.formats.header import PEFT_CONFIG, Header, TensorInfo
from llmcli.formats.metadata import PositiveNumber, parse_document, read_as
from llmcli.formats.open_file import read_text
from llmcli.formats.safetensors.file import read_tensor, write_tensors
from llmcli.formats.training_record import Base, TrainingRecord, seen_bytes

PEFT_FILE = "adapter_model.safetensors"  # in a PEFT directory, beside its config
# keys in PEFT's config that change an adapter's computation
_UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "use_qalora",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "modules_to_save",
)
# initializations that subtract the initial adapter from the base weights
_CHANGES_BASE = (
    "pissa",
    "olora",
    "corda",
    "loftq",
)
_ADVICE = (
    "only plain LoRA of matrices is supported; for most other kinds, save the model that PEFT's "
    "merge_and_unload() returns, and import that directory"
)


def save(path: Path, adapters: Mapping[str, NDArray[np.float32]], base: Checkpoint) -> None:
    """Write adapters: `x.adapter.lora_A` [rank, inputs] and `x.adapter.lora_B` [outputs, rank] for each
    matrix x.

    The metadata contains PEFT's adapter_config.json and the training record of `base`. If the file has the
    name that PEFT expects, the config is also written as a file next to it, so that PEFT can open the
    directory.
    """
    tensors = {
        ADAPTER_PREFIX + name.replace(".adapter.", ".") + ".weight": array for name, array in adapters.items()
    }
    rank = min(array.shape[0] for name, array in adapters.items() if name.endswith("lora_A"))
    config = {
        "base_model_name_or_path": base.record.base and base.record.base.file,
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
        "training.json": json.dumps(base.record.to_json(), ensure_ascii=False),
    }
    write_tensors(path, tensors, metadata)
    if path.name == PEFT_FILE:
        atomic_io.write(path.with_name(PEFT_CONFIG), metadata[PEFT_CONFIG].encode("utf-8"))


def parameter_count(config: ModelConfig, rank: int) -> int:
    """Count the parameters of adapters for each matrix in the layers, except experts and routers."""
    return sum(
        rank * sum(shape)
        for name, shape in config.tensor_shapes().items()
        if ".layers." in name
        and len(shape) == 2
        and ".experts." not in name
        and not name.endswith(".mlp.gate.weight")
    )


def find_file(path: Path) -> Path:
    """Return the adapter file at a path, which may be a PEFT directory. Raises LLMError if there is none."""
    file = path / PEFT_FILE if path.is_dir() else path
    if not file.exists():
        raise LLMError(
            f"there is no file {file}; adapters are a .safetensors file, or a directory with {PEFT_FILE}"
        )
    return file


def base_of(header: Header) -> tuple[str, list[str]]:
    """Return (name, hashes) of the adapters' base model; the hashes are its own and that of the model from
    which it was imported."""
    base = _record_of(header).base or Base()
    return base.file, [sha256 for sha256 in (base.sha256, base.source_sha256) if sha256]


def merged_record(base: Checkpoint, name: str, header: Header) -> TrainingRecord:
    """Return the record of model `name` with merged adapters: the record of the run that trained them, with
    earlier stages. The training text of adapters from other programs is unknown: the model's own record is
    then returned without "seen_bytes"."""
    adapters_record = _record_of(header)
    if adapters_record.train is None:
        return base.record.without("seen_bytes")
    own_stages = training_stages.as_earlier(base.record, training_stages.BASE, name)
    seen = seen_bytes([base.record, adapters_record])
    return adapters_record.without("seen_bytes", "earlier_stages") | {
        **({} if base.record.imported is None else {"imported": base.record.imported}),
        **training_stages.joined(own_stages, (stage.document for stage in adapters_record.earlier_stages)),
        **({"seen_bytes": seen.hex()} if seen else {}),
    }


def _record_of(header: Header) -> TrainingRecord:
    """Return the training record in an adapter file; an empty one if it is missing or damaged."""
    try:
        return TrainingRecord.parse(header.metadata.get("training.json", "{}"))
    except LLMError:
        return TrainingRecord()


def merged_tensors(base: Checkpoint, header: Header) -> Mapping[str, NDArray[np.float32]]:
    """Merge adapters into the tensors of a model. Raises LLMError for adapters that do not fit."""
    path = header.path
    scale = np.float32(_read_scale(header))
    factors = _factors(base, header)
    pairs: dict[str, tuple[TensorInfo, TensorInfo]] = {}  # matrix -> its A and B
    shapes = base.config.tensor_shapes()
    for name, a in header.tensors.items():
        if name.endswith((".lora_B.weight", ".base_layer.weight")):  # base_layer is the base model's weight
            continue
        matrix = name.removeprefix(ADAPTER_PREFIX).removesuffix(".lora_A.weight")
        b = header.tensors.get(f"{ADAPTER_PREFIX}{matrix}.lora_B.weight")
        if not name.endswith(".lora_A.weight") or b is None:
            raise LLMError(f"{path} has {name.removeprefix(ADAPTER_PREFIX)[:100]}; {_ADVICE}")
        if f"{matrix}.weight" == HEAD and base.config.tie_word_embeddings:
            raise LLMError(f"{path} adapts lm_head, which this model shares with its embeddings; {_ADVICE}")
        is_pair = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1]
        if not is_pair or shapes.get(f"{matrix}.weight") != (b.shape[0], a.shape[1]):
            own_base, _ = base_of(header)
            hint = f"; it was trained on {own_base}" if own_base else ""
            raise LLMError(f"{path}: its adapter of {matrix[:100]} does not fit the model{hint}")
        pairs[f"{matrix}.weight"] = a, b

    def compute(name: str) -> NDArray[np.float32]:
        weights = base.tensors[name]
        if name in pairs:
            a, b = (read_tensor(header, tensor).astype(np.float32) for tensor in pairs[name])
            weights = weights + scale * factors.get(name, 1.0) * (b @ a)
        return weights

    return ComputedTensors(shapes, compute)


def _factors(base: Checkpoint, header: Header) -> dict[str, float]:
    """Return the factors by which a model's tensors are scaled when they are read, for adapters that another
    program trained on the unscaled tensors. Raises LLMError if the model was converted earlier."""
    architecture = (base.record.imported or {}).get("architecture")
    if architecture is None or _record_of(header).train is not None:
        return {}
    if base.header is None or base.header.is_ours:
        raise LLMError(
            f"{header.path}: "
            f"its adapters are of a {brief(architecture)} model, which was converted to "
            f"{base.config.model_type}; name its directory instead: "
            f"llm import DIRECTORY --adapter {header.path}"
        )
    return {name: tensor.factor for name, tensor in base.header.tensors.items()}


def _read_scale(header: Header) -> float:
    """Read the factor on the adapters from PEFT's config, in the metadata or in the file next to it. Raises
    LLMError for anything except plain LoRA."""
    text = header.metadata.get(PEFT_CONFIG)
    beside = header.path.with_name(PEFT_CONFIG)
    if text is None and not beside.exists():
        missing = f"has no {PEFT_CONFIG} in its metadata or next to it"
        is_model = "is a model, not adapters; llm train --lora 8 --adapter-only writes adapters"
        raise LLMError(f"{header.path} {is_model if header.is_ours else missing}")
    label = f"its {PEFT_CONFIG}"
    with prefixed(header.path):
        document = parse_document(read_text(beside) if text is None else text, label)
        if (kind := document.get("peft_type")) != "LORA":
            raise LLMError(f"{label} is of type {brief(kind)}; {_ADVICE}")
        changed = {key: document[key] for key in _UNSUPPORTED if document.get(key)}
        if str(document.get("init_lora_weights")).startswith(_CHANGES_BASE):
            changed["init_lora_weights"] = document["init_lora_weights"]
        for key, value in changed.items():
            raise LLMError(f"{label} sets {key} to {brief(value)}; {_ADVICE}")
        with prefixed(f"{label} is not valid"):
            alpha, rank = (read_as(PositiveNumber, document.get(key), key) for key in ("lora_alpha", "r"))
            return float(alpha / rank)
