"""Conversations in files: a line of JSON Lines each, {"messages": [{"role": ..., "content": ...}]}."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from llmcli import units
from llmcli.data.conversations.files import read_conversations
from llmcli.data.conversations.messages import Conversation, Message
from llmcli.errors import LLMError, usage
from llmcli.formats import atomic_io

_OTHER_LINE_ENDS = re.compile("[\x85\u2028\u2029]")  # JSON does not escape them, and many programs end a line there


def save(path: Path, messages: Sequence[Message], saved: bytes = b"") -> bytes:
    """Write a conversation to a new file, or to one that still holds `saved`, the conversation as it was. Returns the
    bytes that were written. Raises LLMError for any other file that exists, and where the file cannot be written."""
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
    """(a conversation of a file that `llm train` reads, counted from 1; how many the file has). Raises LLMError."""
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
