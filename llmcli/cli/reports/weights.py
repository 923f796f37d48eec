"""Tensors in `llm inspect`: a list, statistics of one tensor or of each group, and differences from another file."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.analysis.inspect import find_tensor, parameter_tree, tensor_statistics, walk
from llmcli.cli.terminal import charts, console, tables
from llmcli.cli.terminal.text_layout import truncate
from llmcli.pages.model_facts import shape_text, value_text

if TYPE_CHECKING:
    from llmcli.formats.safetensors.header import Header

MAX_VALUE = 30  # columns of a config value
MAX_NAMES = 3  # listed tensors that only one file has


def print_tensors(header: "Header") -> None:
    """Print a table of all tensors."""
    rows = [(t.name, t.dtype, shape_text(t.shape), f"{t.size:,}") for t in header.tensors.values()]
    tables.table(("tensor", "type", "shape", "parameters"), rows, numbers=(3,))


def print_tensor(header: "Header", name: str, *, json_: bool) -> None:
    """Print the statistics of one tensor. Raises LLMError if it does not exist or its dtype cannot be read."""
    tensor = find_tensor(header, name)
    statistics = tensor_statistics(header, tensor)
    if json_:
        description = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
        console.json_result(description | asdict(statistics))
        return
    console.paragraph(f"{tensor.name}: {shape_text(tensor.shape)}, {tensor.dtype}, {tensor.size:,} values")
    rows = [
        ("mean", f"{statistics.mean:+.6g}"),
        ("standard deviation", f"{statistics.deviation:.6g}"),
        ("range", f"{statistics.min:+.6g} to {statistics.max:+.6g}"),
        ("zeros", f"{statistics.zeros:,}"),
    ]
    if statistics.histogram:
        rows.append(("histogram", charts.sparkline(statistics.histogram)))
    if statistics.not_finite:
        rows.append(("NaN or infinite", f"{statistics.not_finite:,}"))
    tables.pairs(rows)


def print_weights(header: "Header", *, json_: bool) -> None:
    """Print the parameter tree with the statistics of each leaf. Reads all tensors."""
    try:
        groups = []
        for depth, path, group in walk(parameter_tree(header)):
            console.status(path)
            statistics = tensor_statistics(header, *group.tensors) if group.tensors else None
            groups.append((depth, path, group, statistics))
    finally:
        console.status("")
    if json_:
        parts = [
            {"name": path, "parameters": group.parameters, "tensors": len(group.tensors)} | asdict(statistics)
            for _, path, group, statistics in groups
            if statistics
        ]
        console.json_result({"file": str(header.path), "parts": parts})
        return
    console.paragraph("histogram of the weights, standard deviation")
    rows = []
    for depth, _, group, statistics in groups:
        text = "no finite value" if statistics else ""
        if statistics and statistics.histogram:
            text = f"{charts.sparkline(statistics.histogram)}  {statistics.deviation:.3g}"
        copies = f" x {group.copies}" if group.copies > 1 else ""
        rows.append((depth, group.name + copies, units.number(group.parameters), text))
    tables.tree(rows)
    console.caption(
        "Each row of blocks is a histogram of a group's weights from the minimum to the maximum; the number is their "
        "standard deviation."
    )


def print_difference(first: "Header", other: "Header", *, json_: bool) -> None:
    """Compare two files and print the differences. Raises LLMError for an unreadable file."""
    from llmcli.analysis.diff import compare

    try:
        difference = compare(first, other, lambda share: console.status(f"{share:4.0%}  tensors"))
    finally:
        console.status("")
    if json_:
        console.json_result({"file": str(first.path), "other": str(other.path), **asdict(difference)})
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
        rows = [(tensor.name, shape_text(tensor.shape), f"{tensor.distance:.4f}") for tensor in changed]
        tables.table(("tensor", "shape", "distance"), rows, numbers=(2,))
    if equal := len(difference.tensors) - len(changed):
        console.result(f"  {equal:,} tensor{'s are' if equal > 1 else ' is'} equal")
    for name, shapes in difference.reshaped.items():
        console.paragraph(f"{name}: {' and '.join(map(shape_text, shapes))}", indent=2)
    for file, names in ((first.path, difference.only_first), (other.path, difference.only_other)):
        if names:
            console.paragraph(f"only in {file}: {units.some(names, MAX_NAMES)}", indent=2)


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
