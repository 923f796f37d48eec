"""Tensors in `llm inspect`: a list, and statistics of one tensor or of each group."""

from typing import TYPE_CHECKING

from llmcli import units
from llmcli.analysis.inspect import find_tensor, parameter_tree, tensor_statistics, walk
from llmcli.cli.terminal import charts, console, tables
from llmcli.pages.model_facts import shape_text

if TYPE_CHECKING:
    from llmcli.formats.header import Header


def print_tensors(header: "Header") -> None:
    """Print a table of all tensors."""
    rows = [(t.name, t.dtype, shape_text(t.shape), f"{t.size:,}") for t in header.tensors.values()]
    tables.table(("tensor", "type", "shape", "parameters"), rows, numbers=(3,))


def print_tensor(header: "Header", name: str, *, json_: bool) -> None:
    """Print the statistics of one tensor. Raises LLMError if it does not exist or its dtype cannot be
    read."""
    tensor = find_tensor(header, name)
    statistics = tensor_statistics(header, tensor)
    if json_:
        description = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
        console.json_result(description | statistics._asdict())
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
    rows = []
    parts = []
    try:
        for depth, path, group in walk(parameter_tree(header)):
            console.status(path)
            shown = ""
            if group.tensors:
                statistics = tensor_statistics(header, *group.tensors)
                part = {"name": path, "parameters": group.parameters, "tensors": len(group.tensors)}
                parts.append(part | statistics._asdict())
                histogram = charts.sparkline(statistics.histogram)
                shown = f"{histogram}  {statistics.deviation:.3g}" if histogram else "no finite value"
            copies = f" x {group.copies}" if group.copies > 1 else ""
            rows.append((depth, group.name + copies, units.number(group.parameters), shown))
    finally:
        console.status("")
    if json_:
        console.json_result({"file": str(header.path), "parts": parts})
        return
    console.paragraph("histogram of the weights, standard deviation")
    tables.tree(rows)
    console.caption(
        "Each row of blocks is a histogram of a group's weights from the minimum to the maximum; the number "
        "is their standard deviation."
    )
