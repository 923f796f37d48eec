"""The differences between two model files: config, tokenizer, and the relative distance of each tensor.

The distance is the Frobenius norm of the difference divided by the norm of the first file's tensor: 0 for equal
tensors, about 1.4 for independent random ones of similar size. One tensor of each file is in memory at a time.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmcli.analysis.inspect import json_object, tokenizer_facts
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import from_header
from llmcli.formats.safetensors.file import read_values
from llmcli.formats.safetensors.header import Header

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorDistance:
    """The distance between two tensors of the same name and shape."""

    name: str
    shape: Shape
    distance: float  # relative; inf if only the first tensor is all zeros, NaN if any value is NaN
    largest: float  # largest difference of a single value


@dataclass(frozen=True)
class Difference:
    """The difference between two model files."""

    config: dict[str, tuple[object, object]]  # key -> (first, other) if they differ; None if a file lacks the key
    tokenizer: dict[str, tuple[object, object]]  # likewise: kind and vocabulary size
    shared_tokens: int | None  # tokens in both vocabularies; None if a tokenizer cannot be read
    tensors: tuple[TensorDistance, ...]  # the most distant first
    reshaped: dict[str, tuple[Shape, Shape]]
    only_first: tuple[str, ...]  # names of tensors
    only_other: tuple[str, ...]


def compare(first: Header, other: Header, on_progress: Callable[[float], None] = lambda share: None) -> Difference:
    """Compare two files; `on_progress` receives the share of tensors done. Raises LLMError for an unreadable file."""
    (shapes, read), (other_shapes, read_other) = _tensors(first), _tensors(other)
    common = [name for name in shapes if name in other_shapes]
    same_shape = [name for name in common if shapes[name] == other_shapes[name]]
    distances, headers = [], (first, other)
    for done, name in enumerate(same_shape, 1):
        distances.append(_distance(name, shapes[name], read(name), read_other(name)))
        on_progress(done / len(same_shape))
    distances.sort(key=lambda tensor: (-math.inf if math.isnan(tensor.distance) else -tensor.distance, tensor.name))
    return Difference(
        config=_unequal(*(json_object(header, "config.json") for header in headers)),
        tokenizer=_unequal(*map(tokenizer_facts, headers)),
        shared_tokens=_shared_tokens(first, other),
        tensors=tuple(distances),
        reshaped={name: (shapes[name], other_shapes[name]) for name in common if name not in same_shape},
        only_first=tuple(name for name in shapes if name not in other_shapes),
        only_other=tuple(name for name in other_shapes if name not in shapes),
    )


def _tensors(header: Header) -> tuple[Mapping[str, Shape], Callable[[str], NDArray[np.floating]]]:
    """Return (shape by name, function that reads a tensor): a model's dequantized weights, or any file's stored
    tensors."""
    try:
        model = from_header(header)
    except LLMError:
        return {tensor.name: tensor.shape for tensor in header.tensors.values()}, lambda name: np.concatenate(
            [np.zeros(0), *read_values(header, header.tensors[name])]
        )
    return model.config.tensor_shapes(), lambda name: model.tensors[name].reshape(-1)


def _distance(name: str, shape: Shape, first: NDArray[np.floating], other: NDArray[np.floating]) -> TensorDistance:
    a, b = np.asarray(first, np.float64).reshape(-1), np.asarray(other, np.float64).reshape(-1)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = b - a
        norm, first_norm = float(np.linalg.norm(difference)), float(np.linalg.norm(a))
        largest = float(np.abs(difference).max(initial=0.0))
    distance = norm / first_norm if first_norm else (math.inf if norm else 0.0)
    return TensorDistance(name, shape, distance, largest)


def _unequal(first: Mapping[str, object], other: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    keys = dict.fromkeys([*first, *other])
    return {key: (first.get(key), other.get(key)) for key in keys if first.get(key) != other.get(key)}


def _shared_tokens(first: Header, other: Header) -> int | None:
    """Count the tokens that spell the same bytes in both vocabularies; None without two readable tokenizers."""
    try:
        texts = [header.metadata["tokenizer.json"] for header in (first, other)]
        left, right = (set(Tokenizer.from_json(text, max_vocab_size=1 << 30).token_bytes) for text in texts)
    except (LLMError, KeyError):
        return None
    return len((left & right) - {b""})
