"""`llm models`: list the models on this machine."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.cli.options import ResultOptions
from llmcli.cli.terminal import tables
from llmcli.errors import LLMError
from llmcli.formats.open_file import model_files

if TYPE_CHECKING:
    from llmcli.formats.training_record import TrainingRecord

MAX_NAMES = 2  # maximum number of training files that are named
ADAPTERS = "LoRA adapters"  # in place of an architecture


def models(options: ResultOptions) -> None:
    """These are the ones in this directory and in the cache of the Hugging Face hub. Their names can be given
    to -m and --from. A model that you have trained is a file: remove it like any other file. To remove one
    from the cache: hf cache rm model/OWNER/NAME

    Example: llm models
    """
    from llmcli.formats.huggingface import hub

    cached = hub.models_in_cache()
    supported = [(name, path) for name, path in cached if not _is_unsupported(path)]
    descriptions = [_describe(name, path) for name, path in (*_models_here(), *supported)]
    if descriptions and not options.json:
        rows = [
            (model["name"], "", model["problem"], "", "", "")
            if "problem" in model
            else (
                model["name"],
                model["architecture"],
                model["origin"],
                units.size(model["bytes"]),
                model["license"],
                "chat" if model["chat"] else "text",
            )
            for model in descriptions
        ]
        tables.table(("model", "architecture", "origin", "size", "license", "kind"), rows, numbers=(3,))
    unreadable = sum("problem" in model for model in descriptions)
    adapters = sum(model.get("architecture") == ADAPTERS for model in descriptions)
    others = len(cached) - len(supported)
    count = len(descriptions) - unreadable - adapters
    sentence = f"{units.count(count, 'model')} here and in the hub's cache"
    if adapters:
        sentence += f"; {units.count(adapters, 'file')} of {ADAPTERS}"
    if unreadable:
        sentence += f"; {unreadable:,} cannot be read"
    if others:
        sentence += f"; {others:,} in the cache are of kinds that llm does not run"
    options.report({"models": descriptions, "unsupported": others}, sentence)


def _is_unsupported(path: Path) -> bool:
    """Return whether a model in the cache, which other programs also use, is of a kind that llm does not run,
    such as an image model."""
    from llmcli.config import ARCHITECTURES, REWRITTEN
    from llmcli.formats.metadata import parse_document
    from llmcli.formats.open_file import read_text

    with suppress(LLMError):
        if path.is_dir():
            config = parse_document(read_text(path / "config.json"), "")
            return config.get("model_type") not in [*ARCHITECTURES, *REWRITTEN]
    return False


def _models_here() -> Iterator[tuple[str, Path]]:
    directories = (path.parent for path in Path().glob("[!.]*/config.json"))  # no temporary directories
    yield from ((str(path), path) for path in sorted([*model_files(Path()), *directories]))


def _describe(name: str, path: Path) -> dict[str, Any]:
    """Return the facts in a model's header, or the reason why it cannot be read."""
    from llmcli.formats.checkpoint import holds_adapters
    from llmcli.formats.loading import read_header
    from llmcli.formats.metadata import parse_document
    from llmcli.formats.training_record import TrainingRecord

    try:
        header = read_header(path)
        if header.problem:
            raise LLMError(header.problem)
        config, tokenizer = (
            parse_document(header.metadata.get(key, "{}"), f"{name}: {key}")
            for key in ("config.json", "tokenizer_config.json")
        )
        record = TrainingRecord.parse(header.metadata.get("training.json", "{}"))
    except LLMError as error:
        return {"name": name, "problem": str(error)}
    origin = record.imported or {}
    architecture = origin.get("architecture") or config.get("model_type", "not a model")
    return {
        "name": name,
        "architecture": ADAPTERS if holds_adapters(header) else str(architecture),
        "origin": _origin(record, name),
        "bytes": header.file_bytes,
        "license": str(origin.get("license", "")),
        "chat": bool(tokenizer.get("chat_template")),
    }


def _origin(record: "TrainingRecord", name: str) -> str:
    """Describe a model's origin: its published base model (unless its name says it) and training files."""
    base = (record.imported or {}).get("name") or (record.base.file if record.base else "")
    files = dict.fromkeys(file.name for stage in record.stages for file in stage.corpus)
    parts = [str(base) if f":{base}" not in name else "", units.listed(list(files), MAX_NAMES)]
    return " + ".join(filter(None, parts))
