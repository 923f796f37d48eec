"""Two model files -> in what they differ: config, tokenizer, and each tensor by its distance.

A distance is relative: the Frobenius norm of the difference over that of the first file's tensor. 0 is the same, 1 as
far as zero is, about 1.4 what two unrelated tensors of one size are apart. One tensor of each is held at a time.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.data.tokenizer import Tokenizer
from llmcli.data.tokenizer_json import describe
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import opened
from llmcli.formats.metadata import parsed
from llmcli.formats.safetensors_file import Header, read_values

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorDistance:
    """A tensor that both files have in one shape."""

    name: str
    shape: Shape
    distance: float  # relative; inf where the first is all zeros and the other is not, NaN where a number is none
    largest: float  # of the differences of single numbers


@dataclass(frozen=True)
class Difference:
    """What two files do not have in common."""

    config: dict[str, tuple[Any, Any]]  # key -> (first, other); None where one has none
    tokenizer: dict[str, tuple[Any, Any]]  # what of its description differs
    shared_tokens: int | None  # that both can write; None where a tokenizer cannot be read
    tensors: tuple[TensorDistance, ...]  # the farthest first
    reshaped: dict[str, tuple[Shape, Shape]]
    only_first: tuple[str, ...]
    only_other: tuple[str, ...]


def difference(first: Header, other: Header, tell: Callable[[float], None] = lambda share: None) -> Difference:
    """Compare two files. `tell` hears which share of the tensors is done. Raises LLMError for what cannot be read."""
    (shapes, read), (other_shapes, read_other) = _tensors(first), _tensors(other)
    common = [name for name in shapes if name in other_shapes]
    alike = [name for name in common if shapes[name] == other_shapes[name]]
    found = []
    for done, name in enumerate(alike):
        found.append(_distance(name, shapes[name], read(name), read_other(name)))
        tell((done + 1) / len(alike))
    found.sort(key=lambda tensor: (-math.inf if math.isnan(tensor.distance) else -tensor.distance, tensor.name))
    tokenizers = [_description(header) for header in (first, other)]
    return Difference(
        config=_unlike(*(_config(header) for header in (first, other))),
        tokenizer=_unlike(*tokenizers),
        shared_tokens=_shared(first, other),
        tensors=tuple(found),
        reshaped={name: (shapes[name], other_shapes[name]) for name in common if name not in alike},
        only_first=tuple(name for name in shapes if name not in other_shapes),
        only_other=tuple(name for name in other_shapes if name not in shapes),
    )


def _tensors(header: Header) -> tuple[Mapping[str, Shape], Callable[[str], NDArray[Any]]]:
    """(shapes, how to read one): of a model what its graph uses, whatever the file keeps it as; else what is there."""
    try:
        model = opened(header)
    except LLMError:
        return {t.name: t.shape for t in header.tensors.values()}, lambda name: np.concatenate(
            [np.zeros(0), *read_values(header, header.tensors[name])]
        )
    return model.config.tensor_shapes(), lambda name: model.tensors[name].reshape(-1)


def _distance(name: str, shape: Shape, first: NDArray[Any], other: NDArray[Any]) -> TensorDistance:
    a, b = np.asarray(first, np.float64).reshape(-1), np.asarray(other, np.float64).reshape(-1)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = b - a
        norm, size = float(np.linalg.norm(apart)), float(np.linalg.norm(a))
        largest = float(np.abs(apart).max(initial=0.0))
    distance = norm / size if size else (math.inf if norm else 0.0)
    return TensorDistance(name, shape, distance, largest)


def _config(header: Header) -> dict[str, Any]:
    try:
        found = parsed(header.metadata.get("config.json", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _description(header: Header) -> dict[str, Any]:
    return describe(header.metadata["tokenizer.json"]) if "tokenizer.json" in header.metadata else {}


def _unlike(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = dict.fromkeys([*first, *other])
    return {key: (first.get(key), other.get(key)) for key in keys if first.get(key) != other.get(key)}


def _shared(first: Header, other: Header) -> int | None:
    try:
        a, b = (
            set(Tokenizer.from_json(header.metadata["tokenizer.json"], max_vocab_size=1 << 30).token_bytes)
            for header in (first, other)
        )
    except (LLMError, KeyError):
        return None
    return len((a & b) - {b""})
