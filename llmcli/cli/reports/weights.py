"""Tensors in `llm inspect`: a list, and the statistics of one or of each group of the parameter tree."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmcli import units
from llmcli.analysis.inspect import ParameterGroup, TensorStatistics, find_tensor, parameter_tree, tensor_statistics
from llmcli.cli.terminal import charts, console, tables
from llmcli.cli.terminal.text_layout import terminal_width
from llmcli.pages.model_facts import shape_text

if TYPE_CHECKING:
    from llmcli.formats.safetensors.file_header import Header

RANGE_WIDTH = 110  # columns of a terminal in which the tree of groups also has minimum and maximum
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
        console.json_result(description | statistics.as_json())
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


@dataclass(frozen=True)
class _Row:
    """A group of the parameter tree."""

    depth: int
    path: str  # names from the root to the group
    group: ParameterGroup
    statistics: TensorStatistics | None  # of a leaf


def print_weights(header: "Header", *, json_: bool) -> None:
    """Print the parameter tree with the statistics of each leaf. Reads all tensors."""
    try:
        rows = list(_rows(header, parameter_tree(header)))
    finally:
        console.status("")
    if json_:
        console.json_result({"file": str(header.path), "parts": [_row_json(row) for row in rows if row.statistics]})
        return
    with_range = terminal_width() >= RANGE_WIDTH
    console.paragraph("histogram of the weights, standard deviation" + (", minimum to maximum" if with_range else ""))
    tables.tree([_tree_row(row, with_range) for row in rows])
    console.caption(
        "Each row of blocks is a histogram of a group's weights from the minimum to the maximum; the number is their "
        "standard deviation."
    )


def _rows(header: "Header", group: ParameterGroup, depth: int = 0, path: str = "") -> Iterator[_Row]:
    """Yield all groups inside a group, parents first. Each name is shown as status while its tensors are read."""
    for child in group.children.values():
        child_path = f"{path}.{child.name}" if path else child.name
        console.status(child_path)
        yield _Row(depth, child_path, child, tensor_statistics(header, *child.tensors) if child.tensors else None)
        yield from _rows(header, child, depth + 1, child_path)


def _row_json(row: _Row) -> dict[str, object]:
    assert row.statistics
    description = {"name": row.path, "parameters": row.group.parameters, "tensors": len(row.group.tensors)}
    return description | row.statistics.as_json()


def _tree_row(row: _Row, with_range: bool) -> tuple[int, str, str, str]:
    """Return a row of `tables.tree`."""
    statistics, text = row.statistics, ""
    if statistics and statistics.histogram:
        text = f"{charts.sparkline(statistics.histogram)}  {statistics.deviation:<8.3g}"
        text += f"  {statistics.min:+.3g} to {statistics.max:+.3g}" if with_range else ""
    elif statistics:
        text = "no finite value"
    copies = f" x {row.group.copies}" if row.group.copies > 1 else ""
    return row.depth, row.group.name + copies, units.number(row.group.parameters), text
