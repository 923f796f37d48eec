"""Ensemble files: several models with one tokenizer. Their predictions are mixed (models/ensemble.py).

The tensors of each model are under `experts.0.`, `experts.1.`, ...; config.json lists their configs,
training.json their records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from llmcli.errors import LLMError
from llmcli.formats import checkpoint
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.header import Header, TensorInfo
from llmcli.formats.metadata import JsonObject, parse_document
from llmcli.formats.training_record import TrainingRecord

MODEL_TYPE = "llmcli_mixture"  # `model_type` in config.json
MAX_EXPERTS = 256
MAX_NAME_CHARACTERS = 60


class EnsembleConfig(JsonObject):
    """The config.json of an ensemble."""

    experts: tuple[dict[str, Any], ...]
    names: tuple[str, ...]


class Ensemble(NamedTuple):
    """Models with the same tokenizer, context length and dtype. Their predictions are mixed."""

    experts: tuple[Checkpoint, ...]
    names: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return sum(expert.parameters for expert in self.experts)

    @property
    def shared(self) -> Checkpoint:
        """The first model, for the tokenizer and context length, which all models share."""
        return self.experts[0]

    @property
    def by_prefix(self) -> dict[str, Checkpoint]:
        """Each model by the prefix of its tensors in a file."""
        return {_prefix(i): expert for i, expert in enumerate(self.experts)}

    @property
    def stored(self) -> list[str]:
        """Names of the tensors in a file."""
        return [prefix + name for prefix, expert in self.by_prefix.items() for name in expert.stored]

    @property
    def records(self) -> list[TrainingRecord]:
        """Training record of each model."""
        return [expert.record for expert in self.experts]


def _prefix(number: int) -> str:
    return f"experts.{number}."


def combine(models: Mapping[str, Checkpoint]) -> Ensemble:
    """Combine models, by name, into an ensemble. Raises LLMError if their predictions cannot be mixed."""
    (first_name, first), *others = models.items()
    for name, model in models.items():
        if model.quantization:
            raise LLMError(f"{name} has quantized weights; mix models before they are quantized")
    hint = f"train it with --like {first_name}"
    for name, model in others:
        texts = model.tokenizer_json, first.tokenizer_json
        if texts[0] != texts[1] and json.loads(texts[0]) != json.loads(texts[1]):
            raise LLMError(f"{name} has a different tokenizer from {first_name}; {hint}")
        for key, template in (
            ("vocab_size", "embeddings of {:,} tokens"),
            ("max_position_embeddings", "a context length of {:,} tokens"),
        ):
            own = getattr(model.config, key)
            expected = getattr(first.config, key)
            if own != expected:
                raise LLMError(f"{name} has {template.format(own)}, {first_name} of {expected:,}; {hint}")
        own, expected = (" and ".join(sorted(m.weight_dtypes)) for m in (model, first))
        if own != expected:
            raise LLMError(f"{name} has weights in {own}, {first_name} in {expected}; they must be the same")
    return Ensemble(tuple(models.values()), tuple(models))


def with_short_names(ensemble: Ensemble, names: Sequence[str]) -> Ensemble:
    """Return the ensemble with renamed models: names are cut to MAX_NAME_CHARACTERS, and equal names are
    numbered."""
    unique: list[str] = []
    for name in (name[:MAX_NAME_CHARACTERS] for name in names):
        numbered = (f"{name[: MAX_NAME_CHARACTERS - 4]}-{n}" for n in range(2, MAX_EXPERTS + 2))
        unique.append(
            name if name not in unique else next(other for other in numbered if other not in unique)
        )
    return ensemble._replace(names=tuple(unique))


def from_header(header: Header) -> Ensemble:
    """Open the ensemble that a header describes; tensors stay on disk. Raises LLMError if the file is
    damaged."""
    checkpoint.check_version(header)
    try:
        config: EnsembleConfig = parse_document(
            header.metadata["config.json"], "its config.json", EnsembleConfig
        )
        records = TrainingRecord.parse(header.metadata["training.json"]).experts
        configs, names = config.experts, config.names
        if not 2 <= len(configs) == len(names) == len(records) <= MAX_EXPERTS:
            raise ValueError(f"it has {len(configs)} experts, {len(names)} names and {len(records)} records")
        if not all(0 < len(name) <= MAX_NAME_CHARACTERS for name in names):
            raise ValueError(f"the names of its experts must have 1 to {MAX_NAME_CHARACTERS} characters")
    except (KeyError, ValueError, LLMError) as error:
        raise LLMError(
            f"{header.path} is an ensemble whose config.json or training.json is damaged: {error}"
        ) from error
    tensors: dict[str, dict[str, TensorInfo]] = {_prefix(i): {} for i in range(len(configs))}
    for name, tensor in header.tensors.items():
        start, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        own = tensors.get(f"{start}.{number}.")
        if own is None:
            raise LLMError(
                f"{header.path}: tensor {name[:100]!r} belongs to none of its {len(configs)} experts"
            )
        own[inner] = tensor._replace(name=inner)
    shared_keys = header.metadata.keys() & {"tokenizer.json", "tokenizer_config.json"}
    shared = {key: header.metadata[key] for key in shared_keys}
    experts = []
    for own_tensors, own_config, record in zip(tensors.values(), configs, records, strict=True):
        own_documents = {"config.json": own_config, "training.json": record.to_json()}
        metadata = shared | {key: json.dumps(value) for key, value in own_documents.items()}
        expert = replace(header, tensors=own_tensors, metadata=metadata, form="expert of an ensemble")
        experts.append(checkpoint.from_header(expert))
    return combine(dict(zip(names, experts, strict=True)))


def save(path: Path, ensemble: Ensemble) -> None:
    """Write an ensemble; the bytes depend only on the ensemble. Raises LLMError if the disk is full or
    fails."""
    first = ensemble.shared
    configs = [json.loads(expert.config_json) for expert in ensemble.experts]
    config = {"model_type": MODEL_TYPE, "names": list(ensemble.names), "experts": configs}
    metadata = {
        "llmcli": str(checkpoint.FORMAT_VERSION),
        "config.json": json.dumps(config, indent=2),
        "tokenizer.json": first.tokenizer_json,
        "tokenizer_config.json": first.tokenizer_config_json,
        "training.json": json.dumps(
            {"experts": [record.to_json() for record in ensemble.records]}, ensure_ascii=False
        ),
    }
    checkpoint.write_tensors(path, ensemble.by_prefix, metadata)
