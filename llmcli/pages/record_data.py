"""The facts about training that the page of a model shows: figures, plan, loss curve and samples."""

from typing import TYPE_CHECKING

from llmcli import units
from llmcli.analysis.inspect import parameters_by_dtype, tokenizer_facts
from llmcli.errors import LLMError
from llmcli.formats.metadata import Json
from llmcli.formats.training_record import TrainingRecord
from llmcli.pages.model_facts import Rows, expert_rows, record_rows, training_record
from llmcli.training.files.curve import Curve, probe_points, read_curve

if TYPE_CHECKING:
    from llmcli.formats.header import Header


def record_data(header: "Header") -> Json:
    """Collect the data. Raises LLMError for another program's training record."""
    record = training_record(header)
    try:
        curve = _curve_data(read_curve(record))
    except LLMError:  # the model was not trained by llmcli
        curve = None
    samples = [[str(step), text] for step, text in record.samples.texts]
    return {
        "rows": _rows(header, record),
        "verdict": list(record.verdict),
        "plan": _plan_rows(record.document),
        "probe": _probe_data(record),
        "curve": curve,
        "samples": samples,
        "prompt": record.samples.prompt if samples else "",
    }


def _rows(header: "Header", record: TrainingRecord) -> Rows:
    """List the (name, value) pairs shown next to the loss curve."""
    rows = [
        ("form", "a model of llmcli" if header.is_ours else header.form),
        ("types", ", ".join(parameters_by_dtype(header))),
        ("sha256", header.metadata.get("sha256") or "not in the file"),
    ]
    if tokenizer := tokenizer_facts(header):
        rows.append(("tokenizer", f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens"))
    if record.experts:
        for name, shape, corpus, bits in expert_rows(header, record):
            loss = f", {bits} bits per byte" if bits else ""
            rows.append((f"expert {name}", f"{shape}, trained on {corpus}{loss}"))
    elif record.document.keys() - {"imported"}:
        rows += record_rows(record)
    return rows


def _plan_rows(document: Json) -> list[list[str]]:
    """List the decisions of the plan as (name, value, reason); another program's record may contain
    anything."""
    plan = document.get("plan")
    rows = [row for row in plan if isinstance(row, dict)] if isinstance(plan, list) else []
    return [[str(row.get(key, "")) for key in ("name", "value", "reason")] for row in rows]


def _probe_data(record: TrainingRecord) -> Json | None:
    if not (record.probe and (points := probe_points(record))):
        return None
    return {"prompt": record.probe.prompt, "points": points}


def _curve_data(curve: Curve) -> Json:
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
