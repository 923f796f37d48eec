"""The output of `llm inspect --diff`: how two model files differ."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmcli.analysis.diff import Difference, TensorDistance, compare
from llmcli.analysis.inspect import finite_or_none
from llmcli.cli.reports import tokens as token_output
from llmcli.cli.terminal import console, tables
from llmcli.cli.terminal.text_layout import terminal_width, truncate
from llmcli.pages.model_facts import shape_text, value_text

if TYPE_CHECKING:
    from llmcli.formats.safetensors.file_header import Header

MAX_VALUE = 30  # columns of a value of a config
MAX_BAR, MIN_BAR = 60, 5  # columns
NUMBER_WIDTH = 26  # columns of a terminal beside tensor name, shape and bar
MAX_NAMES = 3  # of tensors that only one file has


def print_difference(first: "Header", other: "Header", *, json_: bool) -> None:
    """Compare two files and print the difference. Raises LLMError for a file that cannot be read."""
    try:
        difference = compare(first, other, lambda share: console.status(f"{share:4.0%}  tensors"))
    finally:
        console.status("")
    if json_:
        console.json_result({"file": str(first.path), "other": str(other.path), **_difference_json(difference)})
        return
    console.paragraph(f"{first.path} and {other.path}")
    columns = ("key", first.path.name, other.path.name)
    _print_values("config", columns, difference.config, "the same")
    _print_values("tokenizer", columns, difference.tokenizer, "the same kind and vocabulary size")
    if difference.shared_tokens is not None:
        console.paragraph(f"{difference.shared_tokens:,} tokens are in both vocabularies", indent=2)
    console.heading("tensors: norm of the difference / norm of the first")
    changed = [tensor for tensor in difference.tensors if tensor.distance != 0]
    if changed:
        _print_distances(changed)
    if equal := len(difference.tensors) - len(changed):
        console.result(f"  {equal:,} tensor{'s are' if equal > 1 else ' is'} equal")
    for name, shapes in difference.reshaped.items():
        console.paragraph(f"{name}: {' and '.join(map(shape_text, shapes))}", indent=2)
    for file, names in ((first.path, difference.only_first), (other.path, difference.only_other)):
        if names:
            more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
            console.paragraph(f"only in {file}: {', '.join(names[:MAX_NAMES])}{more}", indent=2)


def _difference_json(difference: Difference) -> dict[str, object]:
    return {
        "config": {key: list(values) for key, values in difference.config.items()},
        "tokenizer": {key: list(values) for key, values in difference.tokenizer.items()},
        "shared_tokens": difference.shared_tokens,
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "distance": finite_or_none(tensor.distance),
                "largest": finite_or_none(tensor.max_difference),
            }
            for tensor in difference.tensors
        ],
        "reshaped": {name: [list(shape) for shape in shapes] for name, shapes in difference.reshaped.items()},
        "only_first": list(difference.only_first),
        "only_other": list(difference.only_other),
    }


def _print_values(
    heading: str, columns: tuple[str, str, str], values: Mapping[str, tuple[object, object]], if_equal: str
) -> None:
    """Print the keys whose values differ, or `if_equal` if there are none."""
    console.heading(heading)
    if not values:
        console.paragraph(if_equal, indent=2)
        return
    rows = [(key, *(truncate(value_text(value), MAX_VALUE) for value in pair)) for key, pair in values.items()]
    tables.table(columns, rows)


def _print_distances(tensors: list[TensorDistance]) -> None:
    """Print a table of distances, with bars if the terminal is wide enough."""
    text_width = max(len(tensor.name) + len(shape_text(tensor.shape)) for tensor in tensors)
    bar_width = min(MAX_BAR, terminal_width() - text_width - NUMBER_WIDTH)
    has_bars = bar_width >= MIN_BAR
    largest = max((tensor.distance for tensor in tensors if math.isfinite(tensor.distance)), default=0.0) or 1.0
    rows = []
    for tensor in tensors:
        bars = [token_output.bar(tensor.distance / largest, bar_width)] if has_bars else []
        rows.append((tensor.name, shape_text(tensor.shape), f"{tensor.distance:.4f}", *bars))
    tables.table(("tensor", "shape", "distance", *[""] * has_bars), rows, numbers=(2,))
