"""Several models in one file, that answer together: read and written.

A safetensors file with each model's tensors under `experts.0.`, `experts.1.`, ...; its config.json lists theirs, its
training.json their records. All share one tokenizer. mixture.py says how they answer.

Knows numpy, not torch.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.errors import LLMError
from llmcli.formats import atomic_io, checkpoint
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.hf_config import dump_config
from llmcli.formats.metadata import document
from llmcli.formats.safetensors_file import Header, TensorInfo

MODEL_TYPE = "llmcli_mixture"  # in its config.json
MOST_EXPERTS = 256
LONGEST_NAME = 60  # characters


@dataclass(frozen=True)
class Ensemble:
    """Models of one tokenizer, one context and one type of weights."""

    experts: tuple[Checkpoint, ...]
    names: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return sum(expert.parameters for expert in self.experts)

    @property
    def shared(self) -> Checkpoint:
        """One of them: what it has of tokenizer and context, all have."""
        return self.experts[0]

    @property
    def records(self) -> list[dict[str, Any]]:
        """Of each model's training."""
        return [expert.record for expert in self.experts]

    @property
    def seen_bytes(self) -> bytes | None:
        """The byte values of the text that any of them was trained on; None where that is not known of all."""
        return checkpoint.seen_bytes(self.records)


def mixed(models: Mapping[str, Checkpoint]) -> Ensemble:
    """Models by name as one mixture. Raises LLMError when they cannot answer together."""
    (first_name, first), *others = models.items()
    for name, model in models.items():
        if model.quantization:
            raise LLMError(f"{name} is in few bits; mix models as they were before")
    hint = f"train it with --like {first_name}"
    for name, model in others:
        if not _same_tokenizer(first, model):
            raise LLMError(
                f"{name} has another tokenizer than {first_name}: their tokens are not the same text; {hint}"
            )
        rows = model.config.vocab_size, first.config.vocab_size
        if rows[0] != rows[1]:
            raise LLMError(f"{name} has {rows[0]:,} rows for tokens, {first_name} {rows[1]:,}; {hint}")
        contexts = model.config.max_position_embeddings, first.config.max_position_embeddings
        if contexts[0] != contexts[1]:
            raise LLMError(f"{name} sees {contexts[0]:,} tokens at once, {first_name} {contexts[1]:,}; {hint}")
        kinds = [" and ".join(sorted(m.kinds)) for m in (model, first)]
        if kinds[0] != kinds[1]:
            raise LLMError(f"{name} has weights in {kinds[0]}, {first_name} in {kinds[1]}; one type is wanted")
    return Ensemble(tuple(models.values()), tuple(models))


def _same_tokenizer(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two texts of a tokenizer.json say the same."""
    return one.tokenizer_json == other.tokenizer_json or json.loads(one.tokenizer_json) == json.loads(
        other.tokenizer_json
    )


class Averaged(Mapping[str, NDArray[np.float32]]):
    """The mean of the weights of models of one shape, each tensor made when it is asked for (arXiv:2203.05482)."""

    def __init__(self, models: Mapping[str, Checkpoint]) -> None:
        """Raises LLMError when their shapes differ."""
        (first_name, first), *others = models.items()
        self._models = list(models.values())
        for name, model in others:
            if replace(model.config, eos_token_id=0) != replace(first.config, eos_token_id=0):
                raise LLMError(
                    f"{name} has another shape than {first_name}; weights are averaged of models that came from one: "
                    f"llm train TEXT --from {first_name}"
                )

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        total = np.zeros(self._models[0].config.tensor_shapes()[name], np.float64)
        for model in self._models:
            total += model.tensors[name]
        return (total / len(self._models)).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._models[0].config.tensor_shapes())

    def __len__(self) -> int:
        return len(self._models[0].config.tensor_shapes())


def averaged(models: Mapping[str, Checkpoint]) -> Checkpoint:
    """One model whose weights are the mean of theirs, and which tells of all that they learned from. Raises LLMError
    when their shapes differ."""
    tensors, first = Averaged(models), next(iter(models.values()))
    corpora = [document for model in models.values() for document in model.record.get("corpus", [])]
    record: dict[str, Any] = {"average_of": [atomic_io.name_of(name) for name in models], "corpus": corpora}
    if seen := checkpoint.seen_bytes(model.record for model in models.values()):
        record["seen_bytes"] = seen.hex()
    for model in models.values():
        record |= {key: model.record[key] for key in ("imported",) if key in model.record}
    return replace(first, tensors=tensors, record=record)


def named(mixture: Ensemble, names: Sequence[str]) -> Ensemble:
    """The same under short names; of two alike the second gets a number."""
    found: list[str] = []
    for name in (name[:LONGEST_NAME] for name in names):
        others = (f"{name[: LONGEST_NAME - 4]}-{n}" for n in range(2, MOST_EXPERTS + 2))
        found.append(name if name not in found else next(other for other in others if other not in found))
    return replace(mixture, names=tuple(found))


# ---- the file


def is_ensemble(header: Header) -> bool:
    return MODEL_TYPE in header.metadata.get("config.json", "")[:200]


def opened(header: Header) -> Ensemble:
    """The mixture that a header describes; tensors stay on disk. Raises LLMError when it is damaged."""
    path, metadata = header.path, header.metadata
    checkpoint.check_version(header)
    try:
        config = document(metadata["config.json"], "config.json of a mixture", "its config.json")
        record = document(metadata["training.json"], "training.json of a mixture", "its training.json")
        configs, names, records = config["experts"], config["names"], record["experts"]
        if not 2 <= len(configs) == len(names) == len(records) <= MOST_EXPERTS:
            raise ValueError("its experts, their names and their records are not as many")
        if not all(0 < len(name) <= LONGEST_NAME for name in names):
            raise ValueError("the names of its experts are none")
    except (KeyError, ValueError, LLMError) as error:
        raise LLMError(f"{path} is a mixture whose config.json or training.json is damaged: {error}") from error
    parts: list[dict[str, TensorInfo]] = [{} for _ in configs]
    for name, tensor in header.tensors.items():
        start, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        if start != "experts" or not number.isdecimal() or len(number) > 3 or int(number) >= len(parts):
            raise LLMError(f"{path}: tensor {name[:100]!r} belongs to no expert")
        parts[int(number)][inner] = replace(tensor, name=inner)
    experts = []
    shared = {key: metadata[key] for key in ("tokenizer.json", "tokenizer_config.json") if key in metadata}
    for tensors, own, told in zip(parts, configs, records, strict=True):
        texts = {"config.json": json.dumps(own), "training.json": json.dumps(told)}
        experts.append(checkpoint.opened(replace(header, tensors=tensors, metadata=shared | texts)))
    checkpoint.check_hash(header)
    return mixed(dict(zip(names, experts, strict=True)))


def save(path: Path, mixture: Ensemble) -> None:
    """Write it; its bytes are a function of the mixture alone. Raises LLMError when the disk refuses."""
    first = mixture.shared
    configs = [json.loads(dump_config(expert.config, expert.torch_dtype)) for expert in mixture.experts]
    metadata = {
        "config.json": json.dumps(
            {"model_type": MODEL_TYPE, "names": list(mixture.names), "experts": configs}, indent=2
        ),
        "tokenizer.json": first.tokenizer_json,
        "tokenizer_config.json": first.tokenizer_config_json,
        "training.json": json.dumps({"experts": mixture.records}, ensure_ascii=False),
    }
    checkpoint.save_joined(path, {f"experts.{i}.": expert for i, expert in enumerate(mixture.experts)}, metadata)
