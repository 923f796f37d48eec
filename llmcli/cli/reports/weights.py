"""Tensors in `llm inspect`: a list, and the statistics of one or of each group of the parameter tree."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.analysis.inspect import ParameterGroup, find_tensor, parameter_tree, tensor_statistics
from llmcli.cli.terminal import charts, console, tables
from llmcli.cli.terminal.text_layout import terminal_width
from llmcli.pages.model_facts import shape_text

if TYPE_CHECKING:
    from llmcli.formats.safetensors.file_header import Header

MAX_HISTOGRAM_WIDTH, HISTOGRAM_MARGIN = 100, 24  # columns; the margin is for the numbers beside the bars


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
    if statistics.not_finite:
        rows.append(("NaN or infinite", f"{statistics.not_finite:,}"))
    tables.pairs(rows)
    if statistics.histogram and statistics.min != statistics.max:
        width = min(terminal_width(), MAX_HISTOGRAM_WIDTH) - HISTOGRAM_MARGIN
        console.result()
        for line in charts.histogram(statistics.histogram, statistics.min, statistics.max, width):
            console.result(line)


# ---- all groups


def print_weights(header: "Header", *, json_: bool) -> None:
    """Print the parameter tree with the statistics of each leaf. Reads all tensors."""
    try:
        groups = [
            (depth, path, group, tensor_statistics(header, *group.tensors) if group.tensors else None)
            for depth, path, group in _groups(parameter_tree(header))
        ]
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


def _groups(group: ParameterGroup, depth: int = 0, path: str = "") -> Iterator[tuple[int, str, ParameterGroup]]:
    """Yield (depth, path, group) of all groups inside a group, parents first; show each as status meanwhile."""
    for child in group.children.values():
        child_path = f"{path}.{child.name}" if path else child.name
        console.status(child_path)
        yield depth, child_path, child
        yield from _groups(child, depth + 1, child_path)
