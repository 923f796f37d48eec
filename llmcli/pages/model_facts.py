"""The facts about a model file as data, for JSON, the terminal and the HTML page."""

from typing import TYPE_CHECKING

from llmcli import units
from llmcli.analysis.inspect import json_object, known_answer_facts, tokenizer_facts
from llmcli.config import Shape
from llmcli.errors import LLMError, OnNote, prefixed
from llmcli.evaluation.figures import NETWORK, Figures, as_json, known_text
from llmcli.formats.metadata import Json, parse_document
from llmcli.formats.training_record import Stage, TrainingRecord
from llmcli.training.files.curve import answer_counts, student_was_kept

if TYPE_CHECKING:
    from llmcli.formats.header import Header

Rows = list[tuple[str, str]]  # (name, value)
MAX_NAMES = 3  # corpus files listed
SHOWN_SETTINGS = ("seed", "batch_size", "dropout", "dtype", "threads")


def facts(header: "Header", on_note: OnNote) -> Json:
    """Return the output of `llm inspect --json`: sizes, tensors, and the documents in the metadata."""
    return {
        "file": str(header.path),
        "bytes": header.file_bytes,
        "parameters": header.parameters,
        "tensors": [
            {
                "name": tensor.name,
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "bytes": tensor.end - tensor.start,
            }
            for tensor in header.tensors.values()
        ],
        "config": json_object(header, "config.json", on_note),
        "tokenizer": tokenizer_facts(header),
        **({"known_answers": known} if (known := known_answer_facts(header)) else {}),
        "training": _with_figures(json_object(header, "training.json", on_note)),
        "sha256": header.metadata.get("sha256"),
        **({"problem": header.problem} if header.problem else {}),
    }


def _with_figures(document: Json) -> Json:
    """Add the figures under the names network and adapting to a readable record."""
    if not document.keys() & {"bits_per_byte", "bits_per_byte_before"}:
        return document
    try:
        record = TrainingRecord.from_json(document)
    except LLMError:  # a record by another program
        return document
    before = Figures.of_record(record, before=True)
    return document | as_json(Figures.of_record(record)) | (as_json(before, "_before") if before else {})


def training_record(header: "Header") -> TrainingRecord:
    """Return the training record, an empty one if there is none. Raises LLMError for another program's
    record."""
    with prefixed(header.path):
        return TrainingRecord.parse(header.metadata.get("training.json", "{}"))


def shape_text(shape: Shape) -> str:
    """(1000, 4) -> "1,000 x 4", () -> "scalar"."""
    return " x ".join(f"{n:,}" for n in shape) or "scalar"


def value_text(value: object) -> str:
    """Format a value of a config on one line."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def record_rows(record: TrainingRecord) -> Rows:
    """List the facts about a training run; an imported model has few, since its run is unknown."""
    experts = [
        (f"tokens per expert, layer {layer}", " ".join(f"{share:.1%}" for share in shares))
        for layer, shares in enumerate(record.expert_shares, 1)
    ]
    cache_rows = []
    if cache := record.ngram_cache:
        cache_rows = [("n-gram cache", f"contexts of up to {len(cache.weights)} tokens")]
    if not record.document.keys() & {"corpus", "train", "steps"}:
        adapter = [("adapter", record.adapter)] if record.adapter else []
        return [*adapter, *_stage_rows(record), *cache_rows, *experts]
    rows = [*_data_rows(record), *_run_rows(record), *cache_rows]
    if shares := record.memorised:
        share = f"{shares.share:.0%} of generated 30-character strings occur verbatim in the training text"
        baseline = shares.held_out_share
        held_out = "" if baseline is None else f" (held-out text itself: {baseline:.0%})"
        rows.append(("memorization", share + held_out))
    rows += experts
    if clock := record.clock:
        rows.append(("time", f"{units.duration(clock.seconds)}, {clock.tokens_per_second:,} tokens/s"))
    if settings := record.train and record.train.document:
        rows.append(
            ("settings", ", ".join(f"{key} {settings[key]}" for key in SHOWN_SETTINGS if key in settings))
        )
    if record.versions:
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())))
    return rows


def _data_rows(record: TrainingRecord) -> Rows:
    """List the training data of a model, and its answers to held-out conversations."""
    rows = [("corpus", _corpus(record)), *_stage_rows(record)]
    if not (conversations := record.conversations):
        return rows
    rows.append(
        ("conversations", f"{conversations.training:,} for training, {conversations.held_out:,} held out")
    )
    if counts := answer_counts(record):
        rows.append(("greedy answers", f"to {counts}"))
    if (plain_text := record.plain_text) and plain_text.after is not None:
        before = f"{units.bits_per_byte(plain_text.before)} before, " if plain_text.before else ""
        rows.append(
            ("plain text", (f"{NETWORK} {before}{units.bits_per_byte(plain_text.after)} bits per byte after"))
        )
    return rows


def _stage_rows(record: TrainingRecord) -> Rows:
    return [(stage.stage, f"{stage.file}: {_corpus(stage)}") for stage in record.earlier_stages]


def _corpus(stage: Stage) -> str:
    of = " of messages" if stage.corpus and not stage.texts else ""
    return f"{units.listed([*stage.sizes], MAX_NAMES)}, {sum(stage.sizes.values()):,} bytes{of}"


def _run_rows(record: TrainingRecord) -> Rows:
    """List the steps of a run, the validation data that selected its weights, and its held-out loss."""
    interrupted = ", interrupted" if record.interrupted else ""
    rows = [("steps", f"{record.steps:,} ({record.epochs:.2f} epochs){interrupted}")]
    if distillation := record.distillation:
        first = distillation.from_step
        bits = units.bits_per_byte(distillation.teacher_bits_per_byte)
        kept = "student" if student_was_kept(record) else "teacher"
        models = f"teacher until step {first:,} (validation loss {bits}), then student; kept: the {kept}"
        rows.append(("distillation", models))
    if "best_step" in record.document:  # a browser keeps the last weights
        rows.append(("best weights", f"step {record.best_step:,}"))
    if validation := record.validation:
        size = f"{validation.tokens:,} tokens of the training text"
        if validation.conversations is not None:
            size = f"{validation.conversations:,} of the training conversations"
        rows.append(("validation", f"{size}, not trained on"))
    figures = Figures.of_record(record)
    before = Figures.of_record(record, before=True)
    if figures is None:
        return [*rows, ("held-out", "not measured")]
    measured = record.held_out_measured
    of_answers = " of answers" if record.held_out.of == "answers" else ""
    at_end = f" at the end, on {measured.bytes:,} bytes, in float32" if measured else ""
    base = f"; {before.numbers} before fine-tuning" if before else ""
    known = known_text(record.held_out.known_share)
    return [*rows, ("held-out", f"{figures}{of_answers}{at_end}{base}{known and f'; {known}'}")]


def expert_rows(header: "Header", record: TrainingRecord) -> list[tuple[str, str, str, str]]:
    """List (name, shape, training text, held-out bits per byte) of an ensemble's models. Raises LLMError."""
    from llmcli.formats.ensemble_file import EnsembleConfig

    with prefixed(header.path):
        text = header.metadata.get("config.json", "{}")
        config: EnsembleConfig = parse_document(text, "its config.json", EnsembleConfig)
    rows = []
    for name, model, expert in zip(config.names, config.experts, record.experts, strict=False):
        layers = model.get("num_hidden_layers")
        noun = "layer" if layers == 1 else "layers"
        shape = f"{layers} {noun}, hidden size {model.get('hidden_size')}"
        corpus = ", ".join([*expert.sizes][:MAX_NAMES])
        figures = Figures.of_record(expert)
        rows.append((name, shape, corpus, figures.numbers if figures else ""))
    return rows
