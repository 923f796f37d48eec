"""`llm models`: list the models on this machine, or remove one from the hub's cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmcli import units
from llmcli.cli.options import ResultOptions, option
from llmcli.cli.terminal import tables
from llmcli.errors import LLMError
from llmcli.formats.open_file import model_files


class _Options(ResultOptions):
    remove: str | None = option("hf:OWNER/NAME", "Remove this model from the hub's cache, in all revisions.")


def models(options: _Options) -> None:
    """List the models on this machine.

    These are the ones in this directory and in the cache of the Hugging Face hub. Their names can be given to -m and
    --from. A model that you have trained is a file: remove it like any other file.

    Example: llm models --remove hf:HuggingFaceTB/SmolLM2-135M
    """
    from llmcli.formats.hub import cache

    if options.remove is not None:
        size = cache.remove_from_cache(options.remove)
        record = {"removed": options.remove, "bytes": size}
        options.report(record, f"removed {options.remove} from the hub's cache ({units.size(size)})")
        return
    found = [_describe(name, path) for name, path in (*_models_here(), *cache.models_in_cache())]
    if found and not options.json:
        rows = [
            (one["name"], one["problem"], "", "", "") if "problem" in one else (
                one["name"], one["architecture"], units.size(one["bytes"]), one["license"],
                "chat" if one["chat"] else "text",
            )
            for one in found
        ]  # fmt: skip
        tables.table(("model", "architecture", "size", "license", "kind"), rows, numbers=(2,))
    options.report({"models": found}, f"{units.count(len(found), 'model')} here and in the hub's cache")


def _models_here() -> Iterator[tuple[str, Path]]:
    directories = (path.parent for path in Path().glob("*/config.json"))
    yield from ((str(path), path) for path in sorted([*model_files(Path()), *directories]))


def _describe(name: str, path: Path) -> dict[str, Any]:
    """Read what the header of a model says, or why it cannot be read."""
    from llmcli.formats.headers import read_header
    from llmcli.formats.metadata import parse_document

    try:
        header = read_header(path)
        config, tokenizer, record = (
            parse_document(header.metadata.get(key, "{}"), f"{name}: {key}")
            for key in ("config.json", "tokenizer_config.json", "training.json")
        )
    except LLMError as error:
        return {"name": name, "problem": str(error)}
    license_ = (record.get("imported") or {}).get("license", "")
    return {
        "name": name, "architecture": str(config.get("model_type", "not a model")), "bytes": header.file_bytes,
        "license": str(license_), "chat": bool(tokenizer.get("chat_template")),
    }  # fmt: skip
