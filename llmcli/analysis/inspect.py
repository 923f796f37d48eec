"""A header -> what is in the file. Works for any safetensors file, ours or not, without reading tensors.

Only `figures` reads values, a piece at a time.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmcli.errors import LLMError
from llmcli.formats.safetensors_file import Header, TensorInfo, read_values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HISTOGRAM_BINS = 15
DEEPEST = 20  # dots in a name that make levels of the tree
MOST_PARTS = 60  # names on one level of the tree before the rest is summed up


@dataclass
class Part:
    """A part of the model: all tensors whose names agree but for numbers, or a group of such parts."""

    name: str
    parameters: int = 0
    bytes: int = 0
    copies: int = 0  # tensors of one pattern, or blocks in a numbered group
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    parts: dict[str, "Part"] = field(default_factory=dict)
    tensors: list[TensorInfo] = field(default_factory=list)  # of one pattern; none in a group


@dataclass(frozen=True)
class TensorFigures:
    """What the values of a tensor, or of several, look like."""

    mean: float
    deviation: float
    low: float
    high: float
    zeros: int
    not_finite: int
    counts: list[int]  # in HISTOGRAM_BINS equal intervals from low to high


def parts(header: Header) -> Part:
    """The tensors as a tree along the dots in their names; numbered blocks (layers.0, layers.1, ...) are one part."""
    root = Part("")
    blocks: dict[int, set[str]] = {}
    for tensor in header.tensors.values():
        here = root
        _count(here, tensor)
        for step in _steps(tensor.name):
            key = "#" if step.isdecimal() else step
            here = here.parts.setdefault(key, Part(key))
            if key == "#":
                blocks.setdefault(id(here), set()).add(step)
            _count(here, tensor)
        here.copies += 1
        here.shapes[tensor.shape] += 1
        here.tensors.append(tensor)
    _merge_numbers(root, blocks)
    _join_chains(root)
    return root


def _steps(name: str) -> list[str]:
    return [step for step in name.split(".", DEEPEST) if step] or [name]


def _count(part: Part, tensor: TensorInfo) -> None:
    part.parameters += tensor.size
    part.bytes += tensor.end - tensor.start


def _merge_numbers(part: Part, blocks: dict[int, set[str]]) -> None:
    """A part whose only content is numbered blocks takes their content: layers.# becomes "layers", copies 80."""
    numbered = part.parts.get("#")
    if numbered is not None and numbered.parts:
        numbered.copies = len(blocks[id(numbered)])
        if len(part.parts) == 1:
            part.copies, part.parts = numbered.copies, numbered.parts
    for inner in part.parts.values():
        _merge_numbers(inner, blocks)


def _join_chains(part: Part) -> None:
    """A part that only holds one other is one with it: "q_proj" and its "weight" become "q_proj.weight"."""
    for key, inner in list(part.parts.items()):
        _join_chains(inner)
        if len(inner.parts) == 1 and not inner.copies:
            only = next(iter(inner.parts.values()))
            only.name = f"{inner.name}.{only.name}"
            part.parts[key] = only


def active_parameters(header: Header, config: dict[str, object]) -> int:
    """Parameters that a token meets where a router picks among experts; 0 where none does."""
    experts = config.get("num_experts", config.get("num_local_experts"))
    active = config.get("num_experts_per_tok")
    if not isinstance(experts, int) or not isinstance(active, int) or not 0 < active <= experts:
        return 0
    of_experts = sum(tensor.size for name, tensor in header.tensors.items() if ".experts." in name)
    return header.parameters - of_experts // experts * (experts - active)


def dtypes(header: Header) -> dict[str, int]:
    """Parameters by data type, most first."""
    counts: Counter[str] = Counter()
    for tensor in header.tensors.values():
        counts[tensor.dtype] += tensor.size
    return dict(counts.most_common())


def tensor_named(header: Header, name: str) -> TensorInfo:
    """The tensor of that name; raises LLMError with names like it when there is none."""
    if name in header.tensors:
        return header.tensors[name]
    import difflib

    close = difflib.get_close_matches(name, header.tensors, n=1) or [n for n in header.tensors if name in n][:1]
    hint = f"did you mean {close[0]}?" if close else f"list them with: llm inspect {header.path} --tensors"
    raise LLMError(f"{header.path} has no tensor {name}; {hint}")


def figures(header: Header, *tensors: TensorInfo) -> TensorFigures:
    """Mean, deviation, extremes, zeros and histogram of tensors of any size together, in three passes of bounded
    memory."""
    import numpy as np

    count, zeros, bad, low, high = 0, 0, 0, np.inf, -np.inf
    for finite, others in _finite(header, tensors):
        bad += others
        if len(finite):
            count, zeros = count + len(finite), zeros + int((finite == 0).sum())
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if count == 0:
        return TensorFigures(np.nan, np.nan, np.nan, np.nan, 0, bad, [])
    unit = max(abs(low), abs(high)) or 1.0  # sums are taken in units of the largest, so that none overflows
    mean = sum(float((finite / unit).sum()) for finite, _ in _finite(header, tensors)) / count
    squares, counts = 0.0, np.zeros(HISTOGRAM_BINS, np.int64)
    span = high / unit - low / unit
    for finite, _ in _finite(header, tensors):
        squares += float(((finite / unit - mean) ** 2).sum())
        place = (finite / unit - low / unit) / span if span else np.full(len(finite), 0.5)
        counts += np.bincount(
            np.minimum(place * HISTOGRAM_BINS, HISTOGRAM_BINS - 1).astype(int), minlength=HISTOGRAM_BINS
        )
    return TensorFigures(mean * unit, (squares / count) ** 0.5 * unit, low, high, zeros, bad, counts.tolist())


def _finite(header: Header, tensors: Sequence[TensorInfo]) -> "Iterator[tuple[NDArray[np.float64], int]]":
    """The finite numbers of tensors in pieces, and how many others were among them."""
    import numpy as np

    for tensor in tensors:
        for values in read_values(header, tensor):
            whole = values.astype(np.float64)
            finite = whole[np.isfinite(whole)]
            yield finite, len(whole) - len(finite)
