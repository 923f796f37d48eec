"""Files that a chat needs: conversations that were saved, and model files that can chat.

A conversation is a line of JSON Lines, {"messages": [{"role": ..., "content": ...}]}, which `llm train` reads.
"""

import json
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from llmcli import units
from llmcli.config import DEFAULT_MODEL
from llmcli.data.conversations.files import read_conversations
from llmcli.data.conversations.messages import Conversation, Message
from llmcli.errors import LLMError, command_line, usage
from llmcli.formats import atomic_io
from llmcli.formats.headers import read_header
from llmcli.formats.metadata import parse_document
from llmcli.formats.open_file import model_files

MAX_SEARCHED, MAX_LISTED = 100, 3  # model files whose headers are read, and that a message names
_TRAINING_FILE = "(FILE: a table of questions and answers, or conversations as JSON Lines)"
_OTHER_LINE_ENDS = re.compile("[\x85\u2028\u2029]")  # JSON does not escape them, and many programs end a line there


def save(path: Path, messages: Sequence[Message], saved: bytes = b"") -> bytes:
    """Write a conversation to a new file, or to one that still holds `saved`, the conversation as it was. Returns the
    bytes that were written.

    Raises LLMError for any other file that exists, and where the file cannot be written.
    """
    if not any(message.role == "assistant" for message in messages):
        raise usage("there is nothing to save yet: the conversation has no answer")
    if path.exists() and not (saved and path.is_file() and path.read_bytes() == saved):
        raise LLMError(f"{path} already exists; give another name: /save OTHER.jsonl")
    atomic_io.check_writable(path, force=True, by=" after /save", example="chat.jsonl")
    data = as_line(messages)
    atomic_io.write(path, [data])
    return data


def as_line(messages: Sequence[Message]) -> bytes:
    """A conversation as `save` writes it."""
    record = {"messages": [{"role": message.role, "content": message.content} for message in messages]}
    line = json.dumps(record, ensure_ascii=False)
    line = _OTHER_LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", line)
    return (line + "\n").encode("utf-8")


def load(path: Path, number: int = 1) -> tuple[Conversation, int]:
    """(a conversation of a file, counted from 1; how many the file has). Any file of conversations that `llm train`
    reads. Raises LLMError."""
    if not path.is_file():
        raise LLMError(f"there is no file {path}; give the name of a file that /save wrote")
    read = read_conversations(str(path), path)
    if read is None or not read.conversations:
        raise LLMError(f'{path} holds no conversations; expected JSON Lines with "messages", as /save writes them')
    count = len(read.conversations)
    if not 1 <= number <= count:
        raise usage(
            f"{path} holds {units.count(count, 'conversation')}, found number {number:,}; give one from 1 to {count:,}"
        )
    return read.conversations[number - 1], count


def _has_template(path: Path) -> bool:
    try:
        metadata = read_header(path).metadata
        config = parse_document(metadata["tokenizer_config.json"], "tokenizer_config.json")
    except (LLMError, OSError, KeyError):  # damaged, or no model
        return False
    return bool(config.get("chat_template"))


def _chat_models(directory: Path) -> list[Path]:
    """The first few model files with a chat template, by name."""
    return list(islice(filter(_has_template, model_files(directory)[:MAX_SEARCHED]), MAX_LISTED))


def no_template(path: Path | None) -> LLMError:
    """The error for a model that has no chat template."""
    name = str(path or "MODEL")
    others = _chat_models(path.parent) if path else []
    train = f"{command_line(['llm', 'train', 'FILE', '--from', name])} {_TRAINING_FILE}"
    generate = command_line(["llm", "generate", "Once upon a time", "-m", name])
    return LLMError(
        f"{name} has no chat template: it continues text, and was not trained on conversations; "
        + (f"beside it, {_named(others)}" if others else f"to train it on conversations: {train}")
        + f"; to continue a text: {generate}"
    )


def no_model() -> LLMError:
    """The error if no model is named and the default one does not exist."""
    others = _chat_models(Path())
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
