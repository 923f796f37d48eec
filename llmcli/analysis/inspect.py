"""A model file's parameters as a tree and by dtype, its JSON documents, and tensor statistics."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from llmcli.errors import LLMError, OnNote
from llmcli.formats.header import Header, TensorInfo
from llmcli.formats.metadata import Json, parse_json
from llmcli.formats.training_record import KNOWN_ANSWERS

if TYPE_CHECKING:
    from llmcli.models.runtime import Doubles

HISTOGRAM_BINS = 15
MAX_DEPTH = 20  # levels of the tree; the rest of a name is not split further


@dataclass
class ParameterGroup:
    """A node of the parameter tree. The tensors of a leaf differ only in the numbers in their names."""

    name: str
    parameters: int = 0
    # number of tensors in a leaf; number of merged blocks (layers, experts) in another node, or 0
    copies: int = 0
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)  # shapes of the tensors in a leaf
    children: dict[str, "ParameterGroup"] = field(default_factory=dict)
    tensors: list[TensorInfo] = field(default_factory=list)  # empty except in a leaf


class TensorStatistics(NamedTuple):
    """Statistics of the values in one or more tensors. If no value is finite, they are NaN and the histogram
    is empty."""

    mean: float
    deviation: float  # standard deviation
    min: float
    max: float
    zeros: int
    not_finite: int  # NaN and infinite values, which the other statistics exclude
    histogram: list[int]  # counts in HISTOGRAM_BINS equal intervals from min to max


def json_object(header: Header, key: str, on_note: OnNote = lambda note: None) -> Json:
    """Parse a JSON document in the metadata; {} if it is missing or not an object. Notes invalid JSON."""
    try:
        value = parse_json(header.metadata.get(key, "{}"))
    except ValueError:
        on_note(f"left out its {key}, which is not valid JSON")
        return {}
    return value if isinstance(value, dict) else {}


def tokenizer_facts(header: Header) -> Json:
    """Return {"kind", "vocab_size"} of the tokenizer; {} if there is none."""
    if "tokenizer.json" not in header.metadata:
        return {}
    from llmcli.data.tokenizers.tokenizer_json import describe

    return describe(header.metadata["tokenizer.json"])


def known_answer_facts(header: Header) -> Json:
    """Return {"questions", "min_confidence"} of the known answers in the file; {} if there are none."""
    document = json_object(header, KNOWN_ANSWERS)
    pairs = document.get("pairs")
    return (
        {"questions": len(pairs), "min_confidence": document.get("min_confidence")}
        if isinstance(pairs, list)
        else {}
    )


def parameter_tree(header: Header) -> ParameterGroup:
    """Group the tensors by the dots in their names; numbered blocks (layers.0, layers.1, ...) are merged into
    one."""
    root = ParameterGroup("", header.parameters)
    block_numbers: dict[int, set[str]] = {}  # id of the merged node -> numbers of its blocks
    for tensor in header.tensors.values():
        node = root
        for part in [part for part in tensor.name.split(".", MAX_DEPTH) if part] or [tensor.name]:
            key = "#" if part.isdecimal() else part
            node = node.children.setdefault(key, ParameterGroup(key))
            if key == "#":
                block_numbers.setdefault(id(node), set()).add(part)
            node.parameters += tensor.size
        node.copies += 1
        node.shapes[tensor.shape] += 1
        node.tensors.append(tensor)
    _simplify(root, block_numbers)
    return root


def walk(group: ParameterGroup, depth: int = 0, path: str = "") -> Iterator[tuple[int, str, ParameterGroup]]:
    """Yield (depth, path, group) of all groups inside a group, parents first."""
    for child in group.children.values():
        child_path = f"{path}.{child.name}" if path else child.name
        yield depth, child_path, child
        yield from walk(child, depth + 1, child_path)


def _simplify(node: ParameterGroup, block_numbers: dict[int, set[str]]) -> None:
    """Merge numbered blocks into a parent without other children: layers.# becomes "layers" with 80 copies.
    Then join each node with its only child: "q_proj" and its "weight" become "q_proj.weight"."""
    blocks = node.children.get("#")
    if blocks is not None and blocks.children:
        blocks.copies = len(block_numbers[id(blocks)])
        if len(node.children) == 1:
            node.copies = blocks.copies
            node.children = blocks.children
    for key, child in list(node.children.items()):
        _simplify(child, block_numbers)
        if len(child.children) == 1 and not child.copies:
            only = next(iter(child.children.values()))
            only.name = f"{child.name}.{only.name}"
            node.children[key] = only


def parameters_by_dtype(header: Header) -> dict[str, int]:
    """Count the parameters of each dtype, most frequent first."""
    counts: Counter[str] = Counter()
    for tensor in header.tensors.values():
        counts[tensor.dtype] += tensor.size
    return dict(counts.most_common())


def find_tensor(header: Header, name: str) -> TensorInfo:
    """Find a tensor by name. Raises LLMError with a similar name if there is none."""
    if name in header.tensors:
        return header.tensors[name]
    import difflib

    similar = (
        difflib.get_close_matches(name, header.tensors, n=1) or [n for n in header.tensors if name in n][:1]
    )
    hint = (
        f"did you mean {similar[0]}?" if similar else f"list them with: llm inspect {header.path} --tensors"
    )
    raise LLMError(f"{header.path} has no tensor {name}; {hint}")


def tensor_statistics(header: Header, *tensors: TensorInfo) -> TensorStatistics:
    """Compute statistics of the values in all tensors, in three passes. Raises LLMError for an unreadable
    dtype."""
    import numpy as np

    count = zeros = not_finite = 0
    low = np.inf
    high = -np.inf
    for values, excluded in _finite_values(header, tensors):
        not_finite += excluded
        if len(values):
            count += len(values)
            zeros += int((values == 0).sum())
            low = min(low, float(values.min()))
            high = max(high, float(values.max()))
    if count == 0:
        return TensorStatistics(np.nan, np.nan, np.nan, np.nan, 0, not_finite, [])
    scale = max(abs(low), abs(high)) or 1.0  # values are divided by it to avoid overflow
    mean = sum(float((values / scale).sum()) for values, _ in _finite_values(header, tensors)) / count
    squares = 0.0
    histogram = np.zeros(HISTOGRAM_BINS, np.int64)
    span = high / scale - low / scale
    for values, _ in _finite_values(header, tensors):
        squares += float(((values / scale - mean) ** 2).sum())
        position = (values / scale - low / scale) / span if span else np.full(len(values), 0.5)  # 0 to 1
        bins = np.minimum(position * HISTOGRAM_BINS, HISTOGRAM_BINS - 1).astype(int)
        histogram += np.bincount(bins, minlength=HISTOGRAM_BINS)
    deviation = (squares / count) ** 0.5 * scale
    return TensorStatistics(mean * scale, deviation, low, high, zeros, not_finite, histogram.tolist())


def _finite_values(header: Header, tensors: tuple[TensorInfo, ...]) -> "Iterator[tuple[Doubles, int]]":
    """Yield (finite values, number of other values) for each chunk of the tensors."""
    import numpy as np

    from llmcli.formats.safetensors.file import read_values

    for tensor in tensors:
        for chunk in read_values(header, tensor):
            values = chunk.astype(np.float64)
            finite = values[np.isfinite(values)]
            yield finite, len(values) - len(finite)
