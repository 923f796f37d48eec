"""Two model files -> how they differ: config, tokenizer, and each tensor by its distance.

The distance is relative: the Frobenius norm of the difference divided by that of the first file's tensor. It is 0 for
equal tensors, 1 if the other tensor is zero, and about 1.4 for two independent random tensors of one size. Only one
tensor of each file is in memory at a time.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokenizers.tokenizer_json import describe
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import from_header
from llmcli.formats.json_schema import parse_json
from llmcli.formats.safetensors.file import read_values
from llmcli.formats.safetensors.file_header import Header

Shape = tuple[int, ...]
ReadTensor = Callable[[str], NDArray[np.floating]]


@dataclass(frozen=True)
class TensorDistance:
    """How far a tensor that both files have, in the same shape, has moved."""

    name: str
    shape: Shape
    distance: float  # relative; inf if only the first is all zeros, NaN if a value is NaN
    max_difference: float  # of a single value


@dataclass(frozen=True)
class Difference:
    """How two files differ. `first` and `other` are the files in the order of the comparison."""

    config: dict[str, tuple[object, object]]  # key -> (first, other) where they differ; None where a file lacks the key
    tokenizer: dict[str, tuple[object, object]]  # likewise, of the description of the tokenizer
    shared_tokens: int | None  # tokens in both vocabularies; None if a tokenizer cannot be read
    tensors: tuple[TensorDistance, ...]  # the most distant first
    reshaped: dict[str, tuple[Shape, Shape]]
    only_first: tuple[str, ...]  # names of tensors
    only_other: tuple[str, ...]


def compare(first: Header, other: Header, on_progress: Callable[[float], None] = lambda share: None) -> Difference:
    """Compare two files. `on_progress` receives the share of tensors that are done, 0 to 1. Raises LLMError for a file
    that cannot be read."""
    (shapes, read), (other_shapes, read_other) = _tensors(first), _tensors(other)
    common = [name for name in shapes if name in other_shapes]
    same_shape = [name for name in common if shapes[name] == other_shapes[name]]
    distances = []
    for done, name in enumerate(same_shape, 1):
        distances.append(_distance(name, shapes[name], read(name), read_other(name)))
        on_progress(done / len(same_shape))
    distances.sort(key=lambda tensor: (-math.inf if math.isnan(tensor.distance) else -tensor.distance, tensor.name))
    return Difference(
        config=_unequal(_config(first), _config(other)),
        tokenizer=_unequal(_tokenizer(first), _tokenizer(other)),
        shared_tokens=_shared_tokens(first, other),
        tensors=tuple(distances),
        reshaped={name: (shapes[name], other_shapes[name]) for name in common if name not in same_shape},
        only_first=tuple(name for name in shapes if name not in other_shapes),
        only_other=tuple(name for name in other_shapes if name not in shapes),
    )


def _tensors(header: Header) -> tuple[Mapping[str, Shape], ReadTensor]:
    """(shape by name, function that reads a tensor as [values]). Of a model: the weights that it runs with, dequantized
    and under the usual names. Of another file: the tensors as stored."""
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
        max_difference = float(np.abs(difference).max(initial=0.0))
    distance = norm / first_norm if first_norm else (math.inf if norm else 0.0)
    return TensorDistance(name, shape, distance, max_difference)


def _config(header: Header) -> dict[str, object]:
    try:
        config = parse_json(header.metadata.get("config.json", "{}"))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _tokenizer(header: Header) -> dict[str, object]:
    return describe(header.metadata["tokenizer.json"]) if "tokenizer.json" in header.metadata else {}


def _unequal(first: Mapping[str, object], other: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    keys = dict.fromkeys([*first, *other])
    return {key: (first.get(key), other.get(key)) for key in keys if first.get(key) != other.get(key)}


def _shared_tokens(first: Header, other: Header) -> int | None:
    try:
        vocabularies = [_vocabulary(header) for header in (first, other)]
    except (LLMError, KeyError):
        return None
    return len(vocabularies[0] & vocabularies[1])


def _vocabulary(header: Header) -> set[bytes]:
    """The tokens that stand for bytes. Raises KeyError or LLMError without a readable tokenizer."""
    tokenizer = Tokenizer.from_json(header.metadata["tokenizer.json"], max_vocab_size=1 << 30)
    return set(tokenizer.token_bytes) - {b""}
