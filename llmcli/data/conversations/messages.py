"""A conversation: messages of a user and an assistant, and the pair of prompt and answer as its shortest form.

`from_record` reads one from a JSON object, in each of the shapes that OpenAI, TRL, mlx-lm, Alpaca and ShareGPT use.
Standard library only.
"""

import itertools
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from llmcli.errors import LLMError, brief

ROLES = ("system", "user", "assistant")

Record: TypeAlias = Mapping[str, object]

_ROLE_NAMES = (
    {role: role for role in ROLES}
    | {"developer": "system", "human": "user"}
    | dict.fromkeys(("gpt", "model", "bot", "ai", "chatgpt", "bard"), "assistant")
)
_MESSAGE_KEYS = (("role", "content"), ("from", "value"))  # OpenAI's and ShareGPT's
_LEARNED_KEYS = ("weight", "train")  # whether an answer is trained on: OpenAI's, and that of other programs
_CALLS = ("tool_calls", "function_call")  # what an answer does besides its text
_READ_KEYS = {*itertools.chain(*_MESSAGE_KEYS), *_LEARNED_KEYS, *_CALLS}
_MESSAGE_EXAMPLE = '{"role": "user", "content": "text"}'


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str  # one of ROLES
    content: str
    is_learned: bool = field(default=True, repr=False)  # for an answer: whether it is trained on, or only context


@dataclass(frozen=True)
class Conversation:
    """Messages in order. `source` is where it comes from, for error messages: the file and the line."""

    messages: tuple[Message, ...]
    source: str = ""

    @property
    def text_bytes(self) -> int:
        return sum(len(message.content.encode("utf-8")) for message in self.messages)


def answered(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages up to the last answer that is not blank; none where there is no such answer.

    >>> answered([Message("user", "1?"), Message("assistant", "1."), Message("user", "2?")])
    [Message(role='user', content='1?'), Message(role='assistant', content='1.')]
    """
    for end in range(len(messages), 0, -1):
        if messages[end - 1].role == "assistant" and messages[end - 1].content.strip():
            return messages[:end]
    return messages[:0]


def without_blank_answers(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """(the messages without blank answers and the messages of the user that they answer, the last of these for each)

    >>> without_blank_answers([Message("user", "1?"), Message("assistant", ""), Message("user", "2?")])
    ([Message(role='user', content='2?')], [Message(role='user', content='1?')])
    """
    kept: list[Message] = []
    unanswered: list[Message] = []
    for message in messages:
        if message.role != "assistant" or message.content.strip():
            kept.append(message)
            continue
        unanswered.append(kept[-1] if kept else message)
        while kept and kept[-1].role == "user":
            kept.pop()
    return kept, unanswered


# ---- records


def normalized(key: object) -> str:
    """The name of a column as it is compared."""
    return str(key).strip().lower()


@dataclass(frozen=True)
class RecordShape:
    """Which keys of a record hold a conversation: a list of messages, or a prompt and an answer."""

    name: str  # for users
    keys: tuple[str, ...]  # of the list; of the prompt and the answer; of plain text
    context_key: str = ""  # optional text that is appended to the prompt after a blank line
    is_text: bool = False  # the key holds plain text, not a conversation

    @property
    def used_keys(self) -> frozenset[str]:
        """The keys whose values are read. Every shape may have a "system" key: text of a first system message."""
        return frozenset((*self.keys, self.context_key, "system"))

    def fits(self, record: Record) -> bool:
        """Whether a record is of this shape, though parts of it may be malformed."""
        values = [record.get(key) for key in self.keys]
        if len(values) == 1:
            return values[0] == [] or is_list_of_messages(values[0])
        return all(isinstance(value, str) or is_list_of_messages(value) for value in values)

    def spelled_as_in(self, record: Record) -> "RecordShape":
        """The same with the keys as a record spells them.

        >>> SHAPES[0].spelled_as_in({"Messages": []}).keys
        ('Messages',)
        """
        spelled = {normalized(key): str(key) for key in record}
        keys = tuple(spelled.get(key, key) for key in self.keys)
        return replace(self, keys=keys, context_key=spelled.get(self.context_key, self.context_key))


_CONTEXTS = {"instruction/output": "input", "instruction/response": "context"}
SHAPES = (  # the first that fits is taken
    RecordShape("messages", ("messages",)),
    RecordShape("ShareGPT", ("conversations",)),
    *(
        RecordShape(name, tuple(name.split("/")), _CONTEXTS.get(name, ""))
        for name in (
            "prompt/completion", "prompt/response", "instruction/output", "instruction/response", "question/answer",
            "source/target", "input/output", "user/assistant", "human/assistant", "human/gpt", "front/back", "q/a",
            "質問/回答", "問/答",
        )
    ),
)  # fmt: skip


def record_shape(record: object) -> RecordShape | None:
    """The shape of a record; None if it holds no conversation. A list of messages is taken as their record.

    >>> record_shape({"question": "Who?", "answer": "Me.", "id": 1}).name
    'question/answer'
    >>> record_shape({"text": "Once upon a time"}) is None
    True
    """
    record = _with_key(record)
    if not isinstance(record, Mapping):
        return None
    shapes = (shape.spelled_as_in(record) for shape in SHAPES)
    return next((shape for shape in shapes if shape.fits(record)), None)


def from_record(record: object, source: str, shape: RecordShape | None = None) -> Conversation:
    """The conversation in a record, exactly. `source` is where the record comes from; without a `shape`, it is
    recognized. Raises LLMError, beginning with the source, with what is wrong in the record.

    Roles are system, user and assistant, also called developer, human and gpt. A system message comes first; between
    two answers comes a message of the user.
    """
    try:
        record = _with_key(record)
        if not isinstance(record, Mapping):
            raise _RecordError(f"the record is {_kind(record)}; wanted an object: {{...}}")
        shape = shape or record_shape(record) or shape_by_keys(record)
        if shape is None:
            keys = ", ".join(list(map(str, record))[:5]) or "none"
            raise _RecordError(f'the record is no conversation (its keys: {keys}); wanted "messages", or "prompt" and '
                               f'"completion"')  # fmt: skip
        messages = tuple(_read(record, shape))
        _check_order(messages)
    except _RecordError as error:
        command = f": {filter_command(source.rpartition(' line ')[0], error.condition)}" if error.condition else ""
        raise LLMError(f"{source}: {error}{command}") from error
    return Conversation(messages, source)


def filter_command(name: str, condition: str) -> str:
    """The command that writes the records of a JSON Lines file that fulfill a condition of jq to another file.

    >>> filter_command("my chats.jsonl", ".label")
    "jq -c 'select(.label)' 'my chats.jsonl' > 'my chats-kept.jsonl'"
    """
    kept = name.removesuffix(".gz").removesuffix(".jsonl") + "-kept.jsonl"
    jq = f"jq -c 'select({condition})'"
    source = f"gzip -dc {shlex.quote(name)} | {jq}" if name.endswith(".gz") else f"{jq} {shlex.quote(name)}"
    return f"{source} > {shlex.quote(kept)}"


def text_of_record(record: object, source: str, shape: RecordShape) -> str:
    """The plain text in a record; "" if there is none. Raises LLMError as `from_record` does."""
    [key] = shape.keys
    try:
        if not isinstance(record, Mapping):
            raise _RecordError(f"the record is {_kind(record)}; wanted an object: {{...}}")
        value = record.get(key)
        text = "" if value is None else _content(value, f'"{key}"')
        return text if text.strip() else ""
    except _RecordError as error:
        raise LLMError(f"{source}: {error}") from error


def shape_by_keys(record: Record) -> RecordShape | None:
    """The shape whose keys a record has, though none of their values may be a conversation's."""
    return next((shape for shape in SHAPES if record.keys() >= set(shape.keys)), None)


class _RecordError(Exception):
    """A problem of a record, without its place in a file; and a jq condition that only other records fulfill."""

    def __init__(self, text: str, condition: str = "") -> None:
        super().__init__(text)
        self.condition = condition


def _with_key(record: object) -> object:
    return {"messages": record} if isinstance(record, list) and is_list_of_messages(record) else record


def is_list_of_messages(value: object) -> bool:
    """Whether any item of a list has a role; others may be malformed."""
    names = [role for role, _ in _MESSAGE_KEYS]
    return isinstance(value, list) and any(isinstance(item, Mapping) and item.keys() & names for item in value)


def _read(record: Record, shape: RecordShape) -> Iterator[Message]:
    for key in shape.keys:
        if key not in record:
            keys = " and ".join(f'"{key}"' for key in shape.keys)
            raise _RecordError(f'the record has no "{key}"; wanted {keys}, as in other records of the file')
    if len(shape.keys) == 1:
        messages = list(_read_list(record[shape.keys[0]], f'"{shape.keys[0]}"'))
    else:
        prompt, answer = shape.keys
        messages = [*_read_side(record, prompt, "user"), *_read_side(record, answer, "assistant")]
        if shape.context_key and _is_given(record.get(shape.context_key)) and isinstance(record[prompt], str):
            context = _content(record[shape.context_key], f'"{shape.context_key}"')
            messages[0] = Message("user", f"{messages[0].content}\n\n{context}")
    if _is_given(record.get("system")) and messages[0].role != "system":
        yield Message("system", _content(record["system"], '"system"'))
    yield from messages


def _is_given(value: object) -> bool:
    """Whether an optional text is there; other types than text are read, and are then an error."""
    return bool(value.strip()) if isinstance(value, str) else value is not None


def _read_side(record: Record, key: str, role: str) -> list[Message]:
    value = record[key]
    if isinstance(value, list):
        return list(_read_list(value, f'"{key}"'))
    return [Message(role, _content(value, f'"{key}"'))]


def _read_list(value: object, name: str) -> Iterator[Message]:
    if not isinstance(value, list):
        raise _RecordError(f"{name} is {_kind(value)}; wanted a list of messages: [{_MESSAGE_EXAMPLE}, ...]")
    if not value:
        raise _RecordError(f"{name} is an empty list; wanted messages of the user and the assistant")
    for number, item in enumerate(value, 1):
        yield _read_message(item, f"message {number} of {name}")


def _read_message(item: object, name: str) -> Message:
    if not isinstance(item, Mapping):
        raise _RecordError(f"{name} is {_kind(item)}; wanted {_MESSAGE_EXAMPLE}")
    role_key, content_key = next((keys for keys in _MESSAGE_KEYS if keys[0] in item), ("", ""))
    if not role_key:
        raise _RecordError(f'{name} has no "role"; wanted {_MESSAGE_EXAMPLE}')
    role = item[role_key]
    if not isinstance(role, str) or role not in _ROLE_NAMES:
        known = "system, user or assistant" if role_key == "role" else "system, human or gpt"
        raise _RecordError(f"{name} has the {'role' if role_key == 'role' else 'sender'} {brief(role)}; wanted {known}")
    if call := next((key for key in _CALLS if item.get(key)), None):
        _, key, _ = name.split('"')
        raise _RecordError(
            f'{name} has "{call}", which is not read: the model would learn to answer without calling; leave such '
            "conversations out",
            f"all(.{key}[]; .{call} | not)",
        )
    if content_key not in item:
        raise _RecordError(f'{name} has no "{content_key}"; wanted {{"{role_key}": "{role}", "{content_key}": "text"}}')
    content = _content(item[content_key], f'"{content_key}" of {name}')
    is_learned = all(_is_learned(item.get(key), f'"{key}" of {name}', key) for key in _LEARNED_KEYS)
    return Message(_ROLE_NAMES[role], content, is_learned)


def unread_keys(record: object, shape: RecordShape) -> Iterator[str]:
    """The keys inside the messages of a record that are not read."""
    record = _with_key(record)
    values = [record.get(key) for key in shape.keys] if isinstance(record, Mapping) else []
    for message in itertools.chain.from_iterable(value for value in values if isinstance(value, list)):
        if isinstance(message, Mapping):
            yield from (str(key) for key in message if key not in _READ_KEYS)


def _is_learned(value: object, name: str, key: str) -> bool:
    """Whether a message counts in the loss: "weight": 0 (OpenAI's format for fine-tuning) and "train": false say that
    it does not. Only answers are learned in any case."""
    if value is None or (key == "train" and isinstance(value, bool)):
        return value is not False
    if key == "weight" and isinstance(value, int | float) and not isinstance(value, bool) and value in (0, 1):
        return bool(value)
    wanted = "true, or false" if key == "train" else "1, or 0"
    raise _RecordError(f"{name} is {_kind(value)}; wanted {wanted} for an answer that is not trained on")


def _content(value: object, name: str) -> str:
    """Text, or the joined text of OpenAI's content parts."""
    if isinstance(value, list):
        return "".join(_text_of_part(part, f"part {number} of {name}") for number, part in enumerate(value, 1))
    if not isinstance(value, str):
        raise _RecordError(f"{name} is {_kind(value)}; wanted text in quotes")
    return _checked_text(value, name)


def _text_of_part(part: object, name: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        kind = f"of type {brief(part.get('type'))}" if isinstance(part, Mapping) else _kind(part)
        raise _RecordError(f'{name} is {kind}; wanted {{"type": "text", "text": ...}}: the model reads text only')
    text = part.get("text")
    if not isinstance(text, str):
        raise _RecordError(f'"text" of {name} is {_kind(text)}; wanted text in quotes')
    return _checked_text(text, name)


def _checked_text(text: str, name: str) -> str:
    """The text, after a check: JSON escapes can stand for what is no text."""
    if "\0" in text:
        raise _RecordError(f"{name} has a zero character (\\u0000) at position {text.index(chr(0)):,}; remove it")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            code = f"\\u{ord(text[error.start]):04x}"
            raise _RecordError(f"{name} has half a character ({code}, a lone surrogate) at position "
                               f"{error.start:,}; wanted both halves, or remove it") from error  # fmt: skip
    return text


def _kind(value: object) -> str:
    """The type of a JSON value, for messages.

    >>> [_kind(value) for value in (None, True, 1.5, "a", [], {})]
    ['null', 'true', 'the number 1.5', "the text 'a'", 'a list', 'an object']
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"the number {value:g}" if abs(value) < 1e15 else "a number"
    if isinstance(value, str):
        return f"the text {brief(value)}"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"of type {type(value).__name__}"


def _check_order(messages: Iterable[Message]) -> None:
    for number, (before, message) in enumerate(itertools.pairwise(messages), 2):
        if message.role == "system":
            raise _RecordError(f"message {number} is a system message; wanted it first, or not at all")
        if message.role == before.role == "assistant":
            raise _RecordError(
                f"messages {number - 1} and {number} are both of the assistant; wanted one of the user between them"
            )
