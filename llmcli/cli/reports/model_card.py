"""Metadata of an exported model, and the model card of a Hugging Face directory.

Other programs run the network without its n-gram cache, so all figures are for the network alone.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.cli.reports.model import TOKENIZER_KINDS
from llmcli.errors import command_line
from llmcli.evaluation.figures import NETWORK, Figures, known_text
from llmcli.formats import atomic_io, training_stages
from llmcli.formats.open_file import HUB_NAME
from llmcli.version import __version__

if TYPE_CHECKING:
    from llmcli.formats.checkpoint import Checkpoint
    from llmcli.formats.training_record import TrainingRecord

MAX_CORPUS_NAMES = 5  # files named in a description
_CACHE_NOTE = (
    "It was trained together with an n-gram cache of the text so far, which llmcli keeps in its own format. "
    "This format does not contain the cache; the figures here are for the network alone."
)


def metadata(model: "Checkpoint", path: Path, name: str | None, license_: str | None) -> dict[str, str]:
    """Return name, license, author and description of a model, under the keys of GGUF's general.*."""
    record = model.record
    origin = model.record.imported or {}
    values = {
        "type": "model",
        "name": name or _origin_name(origin) or Path(atomic_io.name_of(path.resolve())).stem,
        "license": license_ or origin.get("license"),
        "author": origin.get("author"),
        "organization": origin.get("organization"),
        "description": _description(record, origin),
    }
    texts = {key: value for key, value in values.items() if isinstance(value, str) and value}
    return {key: text.encode("utf-8", "replace").decode("utf-8") for key, text in texts.items()}


def model_card(model: "Checkpoint", values: dict[str, str], name: str) -> str:
    """Return the README.md of a Hugging Face directory. `name` is hf:OWNER/NAME, or a directory's name."""
    chats = "chat_template" in json.loads(model.tokenizer_config_json)
    body = [f"# {_plain(values['name'])}", _plain(values["description"]), _table(model)]
    if model.record.ngram_cache is not None:
        body.append(_CACHE_NOTE)
    text = "\n\n".join([_front_matter(model, values), *body, _usage(name, chats=chats)])
    return f"{text}\n\n{_mark(text)}\n"


def is_unedited(card: str) -> bool:
    """Return whether a model card is unchanged since `model_card` wrote it, by the hash in its last line."""
    text, _, mark = card.rstrip().rpartition("\n\n")
    return mark == _mark(text)


def _mark(text: str) -> str:
    return f"<!-- written by llmcli, {hashlib.sha256(text.encode('utf-8')).hexdigest()[:16]} -->"


def _origin_name(origin: dict[str, Any]) -> Any:
    """Return the name of an imported model; only the last part of a path, because the rest is private."""
    name = origin.get("name")
    return re.split(r"[/\\]", name)[-1] if isinstance(name, str) and re.match(r"[/\\.~]|\w:", name) else name


def _description(record: "TrainingRecord", origin: dict[str, Any]) -> str:
    """Describe the origin of a model in a few sentences."""
    bases = [stage for stage in record.stages if stage.stage == training_stages.BASE and stage.corpus]
    sentences = []
    if origin:
        sentences.append(f"Imported from {origin.get('file')} ({origin.get('form')}).")
    if record.corpus:
        verb = "Fine-tuned" if origin or record.base else "Trained"
        names = units.listed([*record.sizes], MAX_CORPUS_NAMES)
        sentences.append(f"{verb} by llmcli {__version__} on {names}.")
    for stage in bases:
        names = units.listed([*stage.sizes], MAX_CORPUS_NAMES)
        sentences.append(f"Its base model, {stage.file}, was trained on {names}.")
    if figures := Figures.of_record(record):
        known = known_text(record.held_out.known_share)
        sentences.append(
            f"Held-out {_held_out(record)}: {Figures(figures.network)}{known and f' ({known})'}."
        )
    return " ".join(sentences) or f"Written by llmcli {__version__}."


def _held_out(record: "TrainingRecord") -> str:
    return "answers" if record.held_out.of == "answers" else "text"


def _front_matter(model: "Checkpoint", values: dict[str, str]) -> str:
    """Return the metadata of the card, as YAML: JSON is YAML."""
    entries: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llmcli"],
    }
    if "license" in values:
        entries["license"] = values["license"]
    origin = model.record.imported or {}
    base = str(origin.get("name"))
    # opened by its name on the hub
    if re.fullmatch(HUB_NAME, base) and base.endswith(f"/{origin.get('file')}"):
        entries["base_model"] = base
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items())
    return "\n".join(["---", *lines, "---"])


def _table(model: "Checkpoint") -> str:
    """Return the facts about a model as a table."""
    from llmcli.data.tokenizers.tokenizer_json import describe

    config = model.config
    record = model.record
    tokenizer = describe(model.tokenizer_json)
    architecture = (record.imported or {}).get("architecture") or config.model_type
    rows = [
        ("parameters", f"{config.parameters:,}"),
        (
            "architecture",
            f"{architecture}: {units.count(config.num_hidden_layers, 'layer')}, width {config.hidden_size:,}",
        ),
        ("context", f"{config.max_position_embeddings:,} tokens"),
        ("tokenizer", f"{TOKENIZER_KINDS[tokenizer['kind']]}, {tokenizer['vocab_size']:,} tokens"),
    ]
    if (counts := record.conversations) is not None:
        rows.append(("conversations", f"{counts.training:,} for training, {counts.held_out:,} held out"))
    if record.steps:
        seconds = f", {units.duration(record.clock.seconds)}" if record.clock else ""
        rows.append(
            ("training", f"{units.count(record.steps, 'step')}, {units.epochs(record.epochs)}{seconds}")
        )
    if figures := Figures.of_record(record):
        before = Figures.of_record(record, before=True)
        base = f"; {units.bits_per_byte(before.network)} before fine-tuning" if before else ""
        known = known_text(record.held_out.known_share)
        bits = f"{NETWORK} {units.bits_per_byte(figures.network)} bits per byte{base}{known and f'; {known}'}"
        rows.append((f"held-out {_held_out(record)}", bits))
    if shares := record.memorised:
        strings = f"{shares.share:.0%} of generated 30-character strings occur verbatim in the training data"
        rows.append(("memorization", strings))
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {_plain(name)} | {_plain(value)} |" for name, value in rows)]
    )


def _plain(text: str) -> str:
    """Escape a text as one line of Markdown without markup."""
    return re.sub(r"([\\`*\[\]<|])", r"\\\1", " ".join(text.split()))


def _usage(name: str, *, chats: bool) -> str:
    """Show how to run the model in transformers and here."""
    place = json.dumps(name.removeprefix("hf:"), ensure_ascii=False)
    command = ["llm", "chat", "-m", name]
    inputs = (
        'tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True, '
        'return_tensors="pt", return_dict=True)'
    )
    if not chats:
        command[1:2] = ["generate", "Once upon a time"]
        inputs = 'tokenizer("Once upon a time", return_tensors="pt")'
    return f"""## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place})
model = AutoModelForCausalLM.from_pretrained({place})
inputs = {inputs}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

With [llmcli](https://github.com/llmcli/llmcli):

    {command_line(command, windows=False)}"""
