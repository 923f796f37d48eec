"""The overview of a model file in `llm inspect`: parameters, config, tokenizer and training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.analysis.inspect import (
    json_object,
    known_answer_facts,
    parameter_tree,
    parameters_by_dtype,
    tokenizer_facts,
    walk,
)
from llmcli.cli.terminal import charts, console, tables
from llmcli.cli.terminal.text_layout import terminal_width
from llmcli.errors import prefixed, with_hub_names
from llmcli.formats.header import PEFT_CONFIG
from llmcli.formats.training_record import KNOWN_ANSWERS, TrainingRecord
from llmcli.pages.model_facts import expert_rows, record_rows, shape_text, training_record, value_text
from llmcli.training.files.curve import probe_points, read_curve

if TYPE_CHECKING:
    from llmcli.formats.header import Header

MIN_CURVE_WIDTH = 30  # columns
MAX_CURVE_WIDTH = 120
CURVE_HEIGHT = 12  # lines
MAX_ROWS = 20  # rows of metadata
MAX_LIKELIEST = 4  # likeliest tokens shown per step
# characters shown of metadata
MAX_KEY = 60
MAX_VALUE = 200
OWN_KEYS = (
    "format",
    "llmcli",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
    "sha256",
    KNOWN_ANSWERS,
)
CONFIG_KEYS = (
    "architectures",
    "model_type",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "sliding_window",
    "vocab_size",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
)
TOKENIZER_KINDS = {
    "bpe": "byte-level byte-pair encoding (BPE)",
    "spm": "SentencePiece byte-pair encoding (BPE)",
    "char": "one token per character; others as bytes",
    "?": "not supported",
}


def print_overview(header: "Header") -> None:
    """Print the overview. Raises LLMError after printing the rest if the training record is not valid."""
    config = json_object(header, "config.json", console.note)
    training = json_object(header, "training.json")
    imported = training.get("imported")
    origin = imported if isinstance(imported, dict) else {}
    _print_size(header, config, training, origin)
    console.heading("parameters")
    rows = []
    for depth, _, group in walk(parameter_tree(header)):
        shapes = " or ".join(shape_text(shape) for shape in list(group.shapes)[:2])
        copies = f" x {group.copies}" if group.children and group.copies > 1 else ""
        share = group.parameters / header.parameters if header.parameters else 0.0
        rows.append((depth, group.name + copies, shapes, f"{units.number(group.parameters)}  {share:6.1%}"))
    tables.tree(rows)
    sections = {
        "config": [(key, value_text(config[key])) for key in CONFIG_KEYS if config.get(key) is not None]
    }
    if tokenizer := tokenizer_facts(header):
        sections["tokenizer"] = [
            ("kind", TOKENIZER_KINDS[tokenizer["kind"]]),
            ("vocabulary", f"{tokenizer['vocab_size']:,} tokens"),
        ]
        if json_object(header, "tokenizer_config.json", console.note).get("chat_template"):
            sections["tokenizer"].append(("chat template", "in the file"))
    if known := known_answer_facts(header):
        held = units.count(known["questions"], "question") + " with their answers"
        sections["known answers"] = [
            ("in the file", held),
            ("minimum confidence", str(known["min_confidence"])),
        ]
    others = {key: text for key, text in header.metadata.items() if key not in OWN_KEYS}
    for heading, values in (("origin", origin), ("metadata", others)):
        shown = list(values.items())[:MAX_ROWS]
        sections[heading] = [(str(key)[:MAX_KEY], str(value)[:MAX_VALUE]) for key, value in shown]
    for heading, pairs in sections.items():
        if pairs:
            console.heading(heading)
            tables.pairs(pairs)
    record = training_record(header)
    if record.experts:
        console.heading("experts")
        columns = ("expert", "shape", "trained on", "held-out bits/byte")
        tables.table(columns, expert_rows(header, record), numbers=(3,))
    elif record.document.keys() - {"imported"}:
        _print_training(header, record)


def _print_size(
    header: "Header", config: Mapping[str, Any], training: Mapping[str, Any], origin: Mapping[str, Any]
) -> None:
    """Print the kind of file, its origin and size."""
    if PEFT_CONFIG in header.metadata:
        kind = "LoRA adapters made by llmcli"
    elif not header.is_ours:
        kind = f"a {header.form}" + (", not made by llmcli" if header.form == "safetensors file" else "")
    elif origin:
        verb = "fine-tuned" if training.get("train") else "imported"
        kind = f"a model {verb} by llmcli from a {origin.get('form')}"
    else:
        kind = "an ensemble made by llmcli" if "experts" in training else "a model made by llmcli"
    console.paragraph(with_hub_names(f"{header.path}: {kind}"))
    dtypes = ", ".join(parameters_by_dtype(header)) or "no values"
    console.paragraph(
        f"{units.number(header.parameters)} parameters ({header.parameters:,}) in {len(header.tensors):,} "
        f"tensors, {dtypes}, {units.size(header.file_bytes)}"
    )
    if header.problem:
        console.paragraph(f"llm can show it but not run it: {header.problem}")
    experts = config.get("num_experts", config.get("num_local_experts"))
    active = config.get("num_experts_per_tok")
    if isinstance(experts, int) and isinstance(active, int) and 0 < active <= experts:
        in_experts = sum(tensor.size for name, tensor in header.tensors.items() if ".experts." in name)
        used = units.number(header.parameters - in_experts // experts * (experts - active))
        console.paragraph(f"{used} of them are active per token: {active} of {experts} experts in each layer")


def _print_training(header: "Header", record: TrainingRecord) -> None:
    console.heading("training")
    tables.pairs(record_rows(record))
    if record.curve.step and terminal_width() >= MIN_CURVE_WIDTH:
        with prefixed(header.path):
            _print_curve(record)
    if texts := record.samples.texts:
        console.heading(f"samples during training, prompt {record.samples.prompt!r}")
        tables.pairs([(f"step {step:,}", " ".join(text.split())) for step, text in _spread(texts)])
    if record.probe and (points := probe_points(record)):
        console.heading(f"likeliest next words during training, prompt {record.probe.prompt!r}")
        steps = []
        for step, _, likeliest in _spread(points):
            words = (f"{text!r} {share:.0%}" for text, share in likeliest[:MAX_LIKELIEST])
            steps.append((f"step {step:,}", ", ".join(words)))
        tables.pairs(steps)
    if record.verdict:
        console.heading("summary")
        for sentence in record.verdict:
            console.paragraph(sentence, indent=2)


def _spread(values: Sequence[Any]) -> list[Any]:
    """Return the first and the last value and two between them."""
    last = len(values) - 1
    return [values[i] for i in dict.fromkeys((0, len(values) // 3, 2 * len(values) // 3, last))]


def _print_curve(record: TrainingRecord) -> None:
    """Print the loss curve. Raises LLMError if it cannot be read."""
    run = read_curve(record)
    console.heading("bits per byte by step (logarithmic scale)")
    width = min(terminal_width(), MAX_CURVE_WIDTH)
    legend = f"⠒⠒ training  {charts.MARK} {run.label}" if run.validation else ""
    for line in charts.curve(run, width, CURVE_HEIGHT, legend):
        console.result(line)
    console.caption(
        "Lower is better. Both losses were measured during training: the training loss on the batches, with "
        f"dropout if any, the {run.label} loss on text that the model was not trained on. If the training "
        f"loss falls and the {run.label} loss does not, the model overfits."
    )
