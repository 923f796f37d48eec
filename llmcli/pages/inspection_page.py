"""The page about a model file (`llm inspect --html`)."""

import html
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.analysis.inspect import OnNote, ParameterGroup, parameter_tree, parameters_by_dtype
from llmcli.errors import LLMError
from llmcli.formats.training_record import TrainingRecord
from llmcli.pages.model_facts import Rows, expert_rows, facts, record_rows, training_record
from llmcli.pages.template import fill, json_for_script
from llmcli.training.files.summary import Curve, read_curve

if TYPE_CHECKING:
    from llmcli.formats.safetensors.header import Header

PAGE_SCRIPTS = ("templates/shared.js", "templates/curve.js", "templates/inspect.js")


def inspection_page(header: "Header", on_note: OnNote) -> bytes:
    """Write the page about a model file. Raises LLMError for another program's training record."""
    data = inspection_data(header, on_note)
    summary = f"{data['parameters']:,} parameters in {data['tensors']:,} tensors, {data['bytes']:,} bytes."
    return fill(
        "templates/inspect.html", ["templates/page.css"], PAGE_SCRIPTS, str(header.path),
        summary=html.escape(summary), data=json_for_script(data),
    )  # fmt: skip


def inspection_data(header: "Header", on_note: OnNote) -> dict[str, Any]:
    """Collect the data for the page about a model file. Raises LLMError for another program's training record."""
    record, shown = training_record(header), facts(header, on_note)
    try:
        curve = _curve_data(read_curve(record))
    except LLMError:  # a model that was not trained by this program
        curve = None
    texts = [[str(step), text] for step, text in record.samples.texts]
    return {
        "prompt": record.samples.prompt if texts else "",
        "samples": texts,
        "parameters": shown["parameters"],
        "tensors": len(shown["tensors"]),
        "bytes": shown["bytes"],
        "tree": _tree_data(parameter_tree(header), ""),
        "curve": curve,
        "record": _rows(header, shown, record),
        "config": [(str(key), json.dumps(value, ensure_ascii=False)) for key, value in shown["config"].items()],
    }


def _rows(header: "Header", shown: Mapping[str, Any], record: TrainingRecord) -> Rows:
    """List the (name, value) pairs shown beside the parameter tree, loss curve and config."""
    tokenizer = shown["tokenizer"]
    rows = [
        ("form", "a model of llmcli" if header.is_ours else header.form),
        ("types", ", ".join(parameters_by_dtype(header))),
        ("sha256", str(shown["sha256"] or "not in the file")),
    ]
    if header.problem:
        rows.append(("not run here", header.problem))
    if tokenizer:
        rows.append(("tokenizer", f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens"))
    if record.experts:
        for name, shape, corpus, bits in expert_rows(header, record):
            loss = f", {bits} bits per byte" if bits else ""
            rows.append((f"expert {name}", f"{shape}, trained on {corpus}{loss}"))
        return rows
    if record.document.keys() - {"imported"}:
        rows += record_rows(record)
    return [*rows, *(("summary", sentence) for sentence in record.verdict)]


def _curve_data(curve: Curve) -> dict[str, object]:
    first, last = (units.bits_per_byte(bits) for bits in (curve.training[0], curve.training[-1]))
    summary = f"The training loss went from {first} to {last} bits per byte by step {curve.steps[-1]:,}"
    if curve.validation:
        summary += f"; the lowest {curve.label} loss was {units.bits_per_byte(min(curve.validation))}"
    return {
        "steps": curve.steps,
        "training": [round(bits, 4) for bits in curve.training],
        "validation_steps": curve.validation_steps,
        "validation": [round(bits, units.BITS_PER_BYTE_DIGITS) for bits in curve.validation],
        "label": curve.label,
        "summary": f"{summary}.",
    }


def _tree_data(group: ParameterGroup, parent: str) -> dict[str, object]:
    path = f"{parent}.{group.name}" if parent else group.name
    shape = " or ".join(" × ".join(map(str, shape)) or "scalar" for shape in list(group.shapes)[:2])
    return {
        "name": group.name, "path": path, "parameters": group.parameters, "copies": group.copies, "shape": shape,
        "children": [_tree_data(child, path) for child in group.children.values()],
    }  # fmt: skip
