"""Conversations: messages of a user and an assistant. A prompt with its answer is the shortest conversation.

`from_record` reads a conversation from a JSON object in the formats of OpenAI, TRL, mlx-lm, Alpaca and
ShareGPT.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from llmcli.data.text.templates import fill
from llmcli.errors import LLMError, brief_json, prefixed

ROLES = ("system", "user", "assistant")

Record: TypeAlias = Mapping[str, object]
Span: TypeAlias = tuple[int, int]  # first character, one past the last

_ROLE_NAMES = (
    {role: role for role in ROLES}
    | {"developer": "system", "human": "user"}
    | dict.fromkeys(("gpt", "model", "bot", "ai", "chatgpt", "bard"), "assistant")
)
_MESSAGE_EXAMPLE = '{"role": "user", "content": "text"}'


@dataclass(frozen=True, slots=True)  # there may be millions
class Message:
    """One turn of a conversation."""

    role: str  # one of ROLES
    content: str
    is_learned: bool = field(default=True, repr=False)  # False for an answer that is context only


Messages: TypeAlias = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order. `source` is the file and line, for error messages."""

    messages: tuple[Message, ...]
    source: str = ""

    @property
    def text_bytes(self) -> int:
        return sum(len(message.content.encode("utf-8")) for message in self.messages)


def learned_answers(messages: Messages) -> list[int]:
    """Return the indices of the answers that are trained on."""
    return [i for i, message in enumerate(messages) if message.role == "assistant" and message.is_learned]


_TURN_START = "<|im_start|>"
_TURN_END = "<|im_end|>"
_RENDERED = "ChatML in a text"
PAIRS = {  # keys of the prompt and the answer -> key of optional text appended to the prompt
    ("prompt", "completion"): "",
    ("prompt", "response"): "",
    ("instruction", "output"): "input",
    ("instruction", "response"): "context",
    **dict.fromkeys(
        [
            ("question", "answer"),
            ("source", "target"),
            ("input", "output"),
            ("user", "assistant"),
            ("human", "assistant"),
            ("human", "gpt"),
            ("front", "back"),
            ("q", "a"),
            ("質問", "回答"),
            ("問", "答"),
        ],
        "",
    ),
}


@dataclass(frozen=True)
class RecordShape:
    """The keys of a record that hold a conversation (a list of messages, or a prompt and an answer) or plain
    text."""

    name: str  # name for users
    keys: tuple[str, ...]  # the list; or the prompt and the answer; or plain text
    context_key: str = ""  # optional text appended to the prompt after a blank line
    is_text: bool = False  # the keys hold plain text, not a conversation
    # the column was chosen because no other holds prose
    is_only_prose: bool = field(default=False, repr=False)
    template: str = field(default="", repr=False)  # joins several keys to plain text

    @property
    def used_keys(self) -> frozenset[str]:
        """Keys whose values are read, including an optional "system" key with a system message."""
        return frozenset((*self.keys, self.context_key, "system"))


def normalized(key: object) -> str:
    """Normalize the name of a column for comparison."""
    return str(key).strip().lower()


def record_shape(record: object) -> RecordShape | None:
    """Return the shape of a record, judged by its keys; None if it holds neither a conversation nor a text. A
    list of messages counts as a record.

    >>> record_shape({"Question": "Who?", "answer": "Me.", "id": 1})
    RecordShape(name='question/answer', keys=('Question', 'answer'), context_key='', is_text=False)
    >>> record_shape({"text": "Once upon a time"})
    RecordShape(name='text', keys=('text',), context_key='', is_text=True)
    """
    record = _with_key(record)
    if not isinstance(record, Mapping):
        return None
    spelled = {normalized(key): str(key) for key in record}
    present = {key for key in spelled if record[spelled[key]] is not None}
    for key, name in (("messages", "messages"), ("conversations", "ShareGPT"), ("conversation", "ShareGPT")):
        if key in present:
            return RecordShape(name, (spelled[key],))
    text = record[spelled["text"]] if "text" in present else None
    if str(text).startswith(_TURN_START):
        return RecordShape(_RENDERED, (spelled["text"],))
    for pair, context in PAIRS.items():
        if present >= {*pair}:
            return RecordShape(
                "/".join(pair), tuple(map(spelled.__getitem__, pair)), spelled.get(context, context)
            )
    return RecordShape("text", (spelled["text"],), is_text=True) if isinstance(text, str) else None


def _with_key(record: object) -> object:
    return {"messages": record} if is_list_of_messages(record) else record


def is_list_of_messages(value: object) -> bool:
    """Return whether a value is a list with at least one message; other items may be malformed."""
    return isinstance(value, list) and any(
        isinstance(item, Mapping) and item.keys() & {"role", "from"} for item in value
    )


def from_record(record: object, source: str, shape: RecordShape) -> Conversation:
    """Read the conversation in a record. Raises LLMError with a message that begins with the source, for
    example if a system message does not come first, or if two answers follow each other."""
    with prefixed(source):
        messages = tuple(_read(_fields(_with_key(record)), shape))
        _check_order(messages)
    return Conversation(messages, source)


def text_of_record(record: object, source: str, shape: RecordShape) -> str:
    """Return the plain text in a record, or "". Raises LLMError like `from_record`."""
    with prefixed(source):
        if not shape.template:
            return _optional(_fields(record), shape.keys[0])
        values = [_cell(_fields(record), key) for key in shape.keys]
    return fill(shape.template, values) if any(values) else ""


def _fields(record: object) -> Record:
    if not isinstance(record, Mapping):
        raise LLMError(f"the record is {brief_json(record)}; wanted an object: {{...}}")
    return record


def _read(record: Record, shape: RecordShape) -> Iterator[Message]:
    messages: list[Message] = []
    for key, role in zip(shape.keys, ("user", "assistant"), strict=False):
        if key not in record:
            keys = " and ".join(f'"{key}"' for key in shape.keys)
            raise LLMError(f'the record has no "{key}"; wanted {keys}, as in other records of the file')
        value = record[key]
        if shape.name == _RENDERED:
            value = _turns(_content(value, f'"{key}"'))
        if len(shape.keys) == 1 or isinstance(value, list):
            messages += _read_list(value, f'"{key}"')
            continue
        text = _content(value, f'"{key}"')
        if role == "user" and shape.context_key and (context := _optional(record, shape.context_key)):
            text = f"{text}\n\n{context}"
        messages.append(Message(role, text))
    if (system := _optional(record, "system")) and messages[0].role != "system":
        yield Message("system", system)
    yield from messages


def _turns(text: str) -> list[dict[str, str]]:
    """Return the messages of a conversation that a program has rendered as ChatML.

    >>> _turns("<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHo<|im_end|>\\n")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Ho'}]
    """
    turns = (turn.partition("\n") for turn in text.split(_TURN_START)[1:])
    return [{"role": role.strip(), "content": rest.partition(_TURN_END)[0]} for role, _, rest in turns]


def _optional(record: Record, key: str) -> str:
    """Return a text, or "" if it is missing, null or blank."""
    value = record.get(key)
    text = "" if value is None else _content(value, f'"{key}"')
    return text if text.strip() else ""


def _cell(record: Record, key: str) -> str:
    """Return the text of a cell, which may be a number."""
    value = record.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.15g}" if isinstance(value, float) else str(value)
    return _optional(record, key)


def _read_list(value: object, name: str) -> Iterator[Message]:
    if not isinstance(value, list) or not value:
        raise LLMError(f"{name} is {brief_json(value)}; wanted a list of messages: [{_MESSAGE_EXAMPLE}, ...]")
    for number, item in enumerate(value, 1):
        yield _read_message(item, f"message {number} of {name}")


def _read_message(item: object, name: str) -> Message:
    if not isinstance(item, Mapping):
        raise LLMError(f"{name} is {brief_json(item)}; wanted {_MESSAGE_EXAMPLE}")
    # OpenAI's keys, and ShareGPT's
    role_key, content_key = ("role", "content") if "role" in item or "from" not in item else ("from", "value")
    role = item.get(role_key)
    if not isinstance(role, str) or role not in _ROLE_NAMES:
        raise LLMError(f"{name} has the role {brief_json(role)}; wanted system, user or assistant")
    if call := next((key for key in ("tool_calls", "function_call") if item.get(key)), None):
        raise LLMError(
            f'{name} has "{call}", which is not supported: the model would learn to answer without calling; '
            "leave such conversations out"
        )
    content = _content(item.get(content_key), f'"{content_key}" of {name}')
    weight = item.get("weight")
    train = item.get("train")
    if isinstance(weight, bool) or weight not in (None, 0, 1):
        raise LLMError(
            f'"weight" of {name} is {brief_json(weight)}; wanted 1, or 0 for an answer that is not trained on'
        )
    if not isinstance(train, bool | None):
        raise LLMError(
            f'"train" of {name} is {brief_json(train)}; '
            "wanted true, or false for an answer that is not trained on"
        )
    # "weight" is in OpenAI's format
    return Message(_ROLE_NAMES[role], content, is_learned=weight != 0 and train is not False)


def _content(value: object, name: str) -> str:
    """Return text, or the joined text of OpenAI's content parts."""
    if isinstance(value, list):
        return "".join(
            _text_of_part(part, f"part {number} of {name}") for number, part in enumerate(value, 1)
        )
    if not isinstance(value, str):
        raise LLMError(f"{name} is {brief_json(value)}; wanted text in quotes")
    if "\0" in value:  # an escape in JSON
        raise LLMError(
            f"{name} has a zero character (\\u0000) at position {value.index(chr(0)):,}; remove it"
        )
    try:
        if not value.isascii():
            value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LLMError(
            f"{name} has a lone surrogate (\\u{ord(value[error.start]):04x}) at position "
            f"{error.start:,}; wanted both halves of the pair, or remove it"
        ) from error
    return value


def _text_of_part(part: object, name: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        raise LLMError(
            f'{name} is {brief_json(part)}; wanted {{"type": "text", "text": ...}}: the model reads text only'
        )
    return _content(part.get("text"), f'"text" of {name}')


def _check_order(messages: Iterable[Message]) -> None:
    for number, (before, message) in enumerate(itertools.pairwise(messages), 2):
        if message.role == "system":
            raise LLMError(f"message {number} is a system message; wanted it first or not at all")
        if message.role == before.role == "assistant":
            raise LLMError(
                f"messages {number - 1} and {number} are both the assistant's; "
                "wanted a user message between them"
            )
