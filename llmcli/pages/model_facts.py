"""The facts about a model file as data, for JSON, the terminal and the HTML page."""

from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.analysis.inspect import OnNote, json_object, tokenizer_facts
from llmcli.errors import LLMError
from llmcli.evaluation.figures import NETWORK, Figures, as_json
from llmcli.formats.metadata import parse_document
from llmcli.training.files.summary import Record, answer_counts, student_was_kept

if TYPE_CHECKING:
    from llmcli.formats.safetensors.header import Header

Rows = list[tuple[str, str]]  # (name, value)
MAX_NAMES = 3  # corpus files listed
SHOWN_SETTINGS = ("seed", "batch_size", "dropout", "dtype", "threads")


def facts(header: "Header", on_note: OnNote) -> dict[str, Any]:
    """Return the output of `llm inspect --json`: sizes, tensors, and the documents in the metadata."""
    return {
        "file": str(header.path),
        "bytes": header.file_bytes,
        "parameters": header.parameters,
        "tensors": [
            {"name": one.name, "dtype": one.dtype, "shape": list(one.shape), "bytes": one.end - one.start}
            for one in header.tensors.values()
        ],
        "config": json_object(header, "config.json", on_note),
        "tokenizer": tokenizer_facts(header),
        "training": _with_figures(json_object(header, "training.json", on_note)),
        "sha256": header.metadata.get("sha256"),
        **({"problem": header.problem} if header.problem else {}),
    }


def _with_figures(record: dict[str, Any]) -> dict[str, Any]:
    """Add to a record the figures under their own names (network, adapting), if they can be read."""
    if not record.keys() & {"bits_per_byte", "bits_per_byte_before"}:
        return record
    try:
        found = [as_json(Figures.of_record(record, when), when) for when in ("", "_before")]
    except TypeError:  # not numbers
        return record
    return record | found[0] | ({} if Figures.of_record(record, "_before") is None else found[1])


def training_record(header: "Header") -> dict[str, Any]:
    """Return the training record; {} if there is none. Raises LLMError for another program's record."""
    return _checked(header, "training.json", "training.json")


def _checked(header: "Header", key: str, schema: str) -> dict[str, Any]:
    try:
        return parse_document(header.metadata.get(key, "{}"), schema, f"its {key}")
    except LLMError as error:
        raise LLMError(f"{header.path}: {error}") from error


def shape_text(shape: tuple[int, ...]) -> str:
    """(1000, 4) -> "1,000 x 4", () -> "scalar"."""
    return " x ".join(f"{n:,}" for n in shape) or "scalar"


def value_text(value: object) -> str:
    """Format a value of a config on one line."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def record_rows(record: Record) -> Rows:
    """List the facts about a training run; an imported model has few, since nothing is known about its run."""
    experts = [
        (f"tokens per expert, layer {layer}", " ".join(f"{share:.1%}" for share in shares))
        for layer, shares in enumerate(record.get("expert_shares", []), 1)
    ]
    cache = record.get("ngram_cache")
    weights = cache.get("weights") if isinstance(cache, dict) else None
    cache_rows = [("n-gram cache", f"contexts of up to {len(weights)} tokens")] if isinstance(weights, list) else []
    if not record.keys() & {"corpus", "train", "steps"}:
        adapter = [("adapter", str(record["adapter"]))] if "adapter" in record else []
        return [*adapter, *cache_rows, *experts]
    rows = [*_data_rows(record), *_run_rows(record), *cache_rows]
    if shares := record.get("memorised"):
        share = f"{shares['share']:.0%} of generated 30-character strings occur verbatim in the training text"
        baseline = shares["held_out_share"]
        held_out = "" if baseline is None else f" (held-out text itself: {baseline:.0%})"
        rows.append(("memorization", share + held_out))
    rows += experts
    if clock := record.get("clock"):
        rows.append(("time", f"{units.duration(clock['seconds'])}, {clock['tokens_per_second']:,} tokens/s"))
    if settings := record.get("train"):
        rows.append(("settings", ", ".join(f"{key} {settings[key]}" for key in SHOWN_SETTINGS if key in settings)))
    if versions := record.get("versions"):
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return rows


def _data_rows(record: Record) -> Rows:
    """List the training data of a model, and its answers to held-out conversations."""
    rows = [("corpus", _corpus(record))]
    rows += [(str(one.get("stage")), f"{one.get('file')}: {_corpus(one)}") for one in record.get("earlier_stages", [])]
    found = record.get("conversations")
    if not found:
        return rows
    rows.append(("conversations", f"{found.get('training', 0):,} for training, {found.get('held_out', 0):,} held out"))
    if counts := answer_counts(record):
        rows.append(("greedy answers", f"to {counts}"))
    plain_text = record.get("plain_text", {})
    if "after" in plain_text:
        before = f"{units.bits_per_byte(plain_text['before'])} before, " if plain_text.get("before") else ""
        after = f"{units.bits_per_byte(plain_text['after'])} bits per byte after"
        rows.append(("plain text", f"{NETWORK} {before}{after}"))
    return rows


def _corpus(record: Record) -> str:
    documents = record.get("corpus", [])
    names = units.some([str(document.get("name")) for document in documents], MAX_NAMES)
    return f"{names}, {sum(document.get('bytes', 0) for document in documents):,} bytes"


def _run_rows(record: Record) -> Rows:
    """List the steps of a run, the validation data that chose its weights, and its held-out loss."""
    interrupted = ", interrupted" if record.get("interrupted") else ""
    rows = [("steps", f"{record.get('steps', 0):,} ({record.get('epochs', 0):.2f} epochs){interrupted}")]
    if found := record.get("distillation"):
        first, bits = found.get("from_step", 0), units.bits_per_byte(found.get("teacher_bits_per_byte", 0.0))
        kept = "student" if student_was_kept(record) else "teacher"
        models = f"teacher until step {first:,} (validation loss {bits}), then student; kept: the {kept}"
        rows.append(("distillation", models))
    rows.append(("best weights", f"step {record.get('best_step', 0):,}"))
    if validation := record.get("validation"):
        is_text = "conversations" not in validation
        size = f"{validation['tokens']:,} tokens" if is_text else f"{validation['conversations']:,}"
        of = "text" if is_text else "conversations"
        rows.append(("validation", f"{size} of the training {of}, not trained on"))
    figures, before = Figures.of_record(record), Figures.of_record(record, "_before")
    if figures is None:
        return [*rows, ("held-out", "not measured")]
    measured = record.get("held_out_measured")
    of_answers = " of answers" if record.get("held_out", {}).get("of") == "answers" else ""
    at_end = f" at the end, on {measured['bytes']:,} bytes, in float32" if measured else ""
    base = f"; {before.numbers} before fine-tuning" if before else ""
    return [*rows, ("held-out", f"{figures}{of_answers}{at_end}{base}")]


def expert_rows(header: "Header", record: Record) -> list[tuple[str, str, str, str]]:
    """List (name, shape, training text, held-out bits per byte) of an ensemble's models. Raises LLMError."""
    config = _checked(header, "config.json", "config.json of an ensemble")
    rows = []
    for name, model, expert in zip(config["names"], config["experts"], record["experts"], strict=False):
        shape = f"{model.get('num_hidden_layers')} layers, hidden size {model.get('hidden_size')}"
        corpus = ", ".join(str(document.get("name")) for document in expert.get("corpus", [])[:MAX_NAMES])
        figures = Figures.of_record(expert)
        rows.append((str(name), shape, corpus, figures.numbers if figures else ""))
    return rows
