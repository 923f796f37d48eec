"""What `llm inspect` says of a model file, as data: for JSON, for the terminal and for the HTML page."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.errors import LLMError
from llmcli.evaluation.figures import NETWORK, Figures, as_json
from llmcli.formats.json_schema import parse_json
from llmcli.formats.metadata import parse_document
from llmcli.training.files.summary import Record, answer_counts, student_was_kept

if TYPE_CHECKING:
    from llmcli.formats.safetensors.file_header import Header

OnNote = Callable[[str], None]  # receives what a user should know
MAX_NAMES = 3  # of corpus files that are listed
SHOWN_SETTINGS = ("seed", "batch_size", "dropout", "dtype", "threads")


def facts(header: "Header", on_note: OnNote) -> dict[str, Any]:
    """What --json prints: sizes, tensors, and the documents of the metadata."""
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
        "training": _with_figures(json_object(header, "training.json", on_note)),
        "sha256": header.metadata.get("sha256"),
        **({"problem": header.problem} if header.problem else {}),
    }


def json_object(header: "Header", key: str, on_note: OnNote) -> dict[str, Any]:
    """A JSON document of the metadata, as it stands; {} if it is missing or not an object. Notes if it is not JSON."""
    try:
        value = parse_json(header.metadata.get(key, "{}"))
    except ValueError:
        on_note(f"its {key} is not JSON and is left out here")
        return {}
    return value if isinstance(value, dict) else {}


def _with_figures(record: dict[str, Any]) -> dict[str, Any]:
    """A record that says which of its figures is of the network alone, if they can be read."""
    if not record.keys() & {"bits_per_byte", "bits_per_byte_before"}:
        return record
    try:
        found = [as_json(Figures.of_record(record, when), when) for when in ("", "_before")]
    except TypeError:  # not numbers
        return record
    return record | found[0] | ({} if Figures.of_record(record, "_before") is None else found[1])


def tokenizer_facts(header: "Header") -> dict[str, Any]:
    """{"kind", "vocab_size"} of its tokenizer; {} if it has none."""
    if "tokenizer.json" not in header.metadata:
        return {}
    from llmcli.data.tokenizers.tokenizer_json import describe

    return describe(header.metadata["tokenizer.json"])


def training_record(header: "Header") -> dict[str, Any]:
    """The training record with the types of its values checked; {} if there is none. Raises LLMError for one that this
    program did not write."""
    try:
        return parse_document(header.metadata.get("training.json", "{}"), "training.json")
    except LLMError as error:
        raise LLMError(f"{header.path}: {error}") from error


def shape_text(shape: tuple[int, ...]) -> str:
    """
    >>> shape_text((1000, 4)), shape_text(())
    ('1,000 x 4', 'scalar')
    """
    return " x ".join(f"{n:,}" for n in shape) or "scalar"


def value_text(value: object) -> str:
    """A value of a config on one line.

    >>> value_text(["a", "b"]), value_text(None)
    ('a, b', 'None')
    """
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# ---- the training record as (name, value) pairs


def record_rows(record: Record) -> list[tuple[str, str]]:
    """The facts of a training run, by name; those of an imported model are few, as nothing is known of its run."""
    if not record.keys() & {"corpus", "train", "steps"}:
        adapter = [("adapter", str(record["adapter"]))] if "adapter" in record else []
        return [*adapter, *_cache(record), *_experts(record)]
    return [
        ("corpus", _corpus(record)),
        *((str(stage.get("stage")), _earlier(stage)) for stage in record.get("earlier_stages", [])),
        *_conversations(record),
        ("steps", _steps(record)),
        *_distillation(record),
        ("best weights", f"step {record.get('best_step', 0):,}"),
        *_validation(record),
        ("held-out", _held_out_loss(record)),
        *_cache(record),
        *_memorization(record),
        *_experts(record),
        *_environment(record),
    ]


def _cache(record: Record) -> list[tuple[str, str]]:
    cache = record.get("ngram_cache")
    weights = cache.get("weights") if isinstance(cache, dict) else None
    return [("n-gram cache", f"contexts of up to {len(weights)} tokens")] if isinstance(weights, list) else []


def _corpus(record: Record) -> str:
    documents = record.get("corpus", [])
    names = ", ".join(str(document.get("name")) for document in documents[:MAX_NAMES])
    more = f" and {len(documents) - MAX_NAMES} more" if len(documents) > MAX_NAMES else ""
    return f"{names}{more}, {sum(document.get('bytes', 0) for document in documents):,} bytes"


def _earlier(stage: Record) -> str:
    """What was trained on in an earlier stage."""
    return f"{stage.get('file')}: {_corpus(stage)}"


def _conversations(record: Record) -> list[tuple[str, str]]:
    """The conversations that a model was trained on, and how it answers those held out."""
    found = record.get("conversations")
    if not found:
        return []
    rows = [("conversations", f"{found.get('training', 0):,} for training, {found.get('held_out', 0):,} held out")]
    if counts := answer_counts(record):
        rows.append(("greedy answers", f"to {counts}"))
    plain_text = record.get("plain_text", {})
    if "after" in plain_text:
        before = plain_text.get("before")
        change = f"{units.bits_per_byte(before)} before, " if before else ""
        after = f"{units.bits_per_byte(plain_text['after'])} bits per byte after"
        rows.append(("plain text", f"{NETWORK} {change}{after}"))
    return rows


def _steps(record: Record) -> str:
    interrupted = ", interrupted" if record.get("interrupted") else ""
    return f"{record.get('steps', 0):,} ({record.get('epochs', 0):.2f} epochs){interrupted}"


def _distillation(record: Record) -> list[tuple[str, str]]:
    """Of a run that trained two models."""
    found = record.get("distillation")
    if not found:
        return []
    first, bits = found.get("from_step", 0), units.bits_per_byte(found.get("teacher_bits_per_byte", 0.0))
    kept = "student" if student_was_kept(record) else "teacher"
    return [("distillation", f"teacher until step {first:,} (validation loss {bits}), then student; kept: the {kept}")]


def _validation(record: Record) -> list[tuple[str, str]]:
    """The part of the training data that chose the weights."""
    size = record.get("validation", {})
    if "conversations" in size:
        return [("validation", f"{size['conversations']:,} of the training conversations, not trained on")]
    return [("validation", f"{size['tokens']:,} tokens of the training text, not trained on")] if size else []


def _held_out_loss(record: Record) -> str:
    """The loss at the end of a run, and how it was measured."""
    figures, before = Figures.of_record(record), Figures.of_record(record, "_before")
    if figures is None:
        return "not measured"
    measured = record.get("held_out_measured")
    of_answers = " of answers" if record.get("held_out", {}).get("of") == "answers" else ""
    at_end = f"{of_answers} at the end, on {measured['bytes']:,} bytes, in float32" if measured else of_answers
    base = f"; {before.numbers} before fine-tuning" if before else ""
    return f"{figures}{at_end}{base}"


def _memorization(record: Record) -> list[tuple[str, str]]:
    shares = record.get("memorised")
    if not shares:
        return []
    baseline = shares["held_out_share"]
    held_out = "" if baseline is None else f" (held-out text itself: {baseline:.0%})"
    share = f"{shares['share']:.0%} of generated 30-character strings occur verbatim in the training text"
    return [("memorization", share + held_out)]


def _experts(record: Record) -> list[tuple[str, str]]:
    """The share of tokens that each expert gets, by layer from 1."""
    return [
        (f"tokens per expert, layer {layer}", " ".join(f"{share:.1%}" for share in shares))
        for layer, shares in enumerate(record.get("expert_shares", []), 1)
    ]


def _environment(record: Record) -> list[tuple[str, str]]:
    """How long the run took, with which settings and versions."""
    rows = []
    if clock := record.get("clock"):
        rows.append(("time", f"{units.duration(clock['seconds'])}, {clock['tokens_per_second']:,} tokens/s"))
    if settings := record.get("train"):
        shown = ", ".join(f"{key} {settings[key]}" for key in SHOWN_SETTINGS if key in settings)
        rows.append(("settings", shown))
    if versions := record.get("versions"):
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return rows


# ---- ensembles


def expert_rows(header: "Header", record: Record) -> list[tuple[str, str, str, str]]:
    """(name, shape, training text, held-out bits per byte) of each model of an ensemble. Raises LLMError if its config
    is damaged."""
    try:
        text = header.metadata.get("config.json", "{}")
        config = parse_document(text, "config.json of an ensemble", "its config.json")
    except LLMError as error:
        raise LLMError(f"{header.path}: {error}") from error
    return [
        _expert_row(str(name), expert_config, expert_record)
        for name, expert_config, expert_record in zip(
            config["names"], config["experts"], record["experts"], strict=False
        )
    ]


def _expert_row(name: str, config: Mapping[str, Any], record: Record) -> tuple[str, str, str, str]:
    shape = f"{config.get('num_hidden_layers')} layers, hidden size {config.get('hidden_size')}"
    corpus = ", ".join(str(document.get("name")) for document in record.get("corpus", [])[:MAX_NAMES])
    figures = Figures.of_record(record)
    return name, shape, corpus, figures.numbers if figures else ""


# ---- the HTML page


def page_rows(header: "Header", facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The (name, value) pairs of the page, beside parameter tree, loss curve and config. In `facts` the types of the
    training record are checked."""
    from llmcli.analysis.inspect import parameters_by_dtype

    record, tokenizer = facts["training"], facts["tokenizer"]
    rows = [
        ("form", "a model of llmcli" if header.is_ours else header.form),
        ("types", ", ".join(parameters_by_dtype(header))),
        ("sha256", str(facts["sha256"] or "not in the file")),
    ]
    if header.problem:
        rows.append(("not run here", header.problem))
    if tokenizer:
        rows.append(("tokenizer", f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens"))
    if "experts" in record:
        for name, shape, corpus, bits in expert_rows(header, record):
            loss = f", {bits} bits per byte" if bits else ""
            rows.append((f"expert {name}", f"{shape}, trained on {corpus}{loss}"))
        return rows
    if record.keys() - {"imported"}:
        rows += record_rows(record)
    return [*rows, *(("summary", sentence) for sentence in record.get("verdict", ()))]
