"""The output of `llm inspect --diff`: how two model files differ."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmcli.analysis.diff import compare
from llmcli.cli.terminal import console, tables
from llmcli.cli.terminal.text_layout import truncate
from llmcli.pages.model_facts import shape_text, value_text

if TYPE_CHECKING:
    from llmcli.formats.safetensors.file_header import Header

MAX_VALUE = 30  # columns of a value of a config
MAX_NAMES = 3  # of tensors that only one file has


def print_difference(first: "Header", other: "Header", *, json_: bool) -> None:
    """Compare two files and print the difference. Raises LLMError for a file that cannot be read."""
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
            more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
            console.paragraph(f"only in {file}: {', '.join(names[:MAX_NAMES])}{more}", indent=2)


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
