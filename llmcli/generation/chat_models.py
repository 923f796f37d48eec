"""Which model files of a directory can chat, and the errors that name them in place of one that cannot."""

from itertools import islice
from pathlib import Path

from llmcli.config import DEFAULT_MODEL
from llmcli.errors import LLMError, command_line
from llmcli.formats.headers import read_header
from llmcli.formats.metadata import parse_document
from llmcli.formats.open_file import model_files

MAX_SEARCHED, MAX_LISTED = 100, 3  # files whose headers are read, and that a message names
_TRAINING_FILE = "(FILE: a table of questions and answers, or conversations as JSON Lines)"


def chat_models(directory: Path) -> list[Path]:
    """The first few model files with a chat template, by name."""
    return list(islice(filter(_has_template, model_files(directory)[:MAX_SEARCHED]), MAX_LISTED))


def _has_template(path: Path) -> bool:
    try:
        metadata = read_header(path).metadata
        config = parse_document(metadata["tokenizer_config.json"], "tokenizer_config.json")
    except (LLMError, OSError, KeyError):  # damaged, or no model
        return False
    return bool(config.get("chat_template"))


def no_template(path: Path | None) -> LLMError:
    """The error for a model that has no chat template."""
    name = str(path or "MODEL")
    others = chat_models(path.parent) if path else []
    train = f"{command_line(['llm', 'train', 'FILE', '--from', name])} {_TRAINING_FILE}"
    generate = command_line(["llm", "generate", "Once upon a time", "-m", name])
    return LLMError(
        f"{name} has no chat template: it continues text, and was not trained on conversations; "
        + (f"beside it, {_named(others)}" if others else f"to train it on conversations: {train}")
        + f"; to continue a text: {generate}"
    )


def no_model() -> LLMError:
    """The error if no model is named and the default one does not exist."""
    others = chat_models(Path())
    return LLMError(
        f"there is no {DEFAULT_MODEL} here; "
        + (
            _named(others)
            if others
            else f"train a model that can chat: llm train FILE {_TRAINING_FILE}, or name one with -m FILE"
        )
    )


def _named(models: list[Path]) -> str:
    return f"{', '.join(map(str, models))} can chat: {command_line(['llm', 'chat', '-m', str(models[0])])}"
