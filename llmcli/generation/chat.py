"""Conversations with a model: messages in, pieces of the answer out.

`Assistant` answers any list of messages; `Chat` keeps the messages of one conversation. The KV cache is kept
between answers: the whole conversation is encoded each time, so that the tokens are the same as in other
programs, but only the tokens after the longest prefix shared with the cache are processed.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.config import SamplingConfig
from llmcli.data.conversations.chat_template import ChatTemplate
from llmcli.data.conversations.messages import ROLES, Conversation, Message, Messages
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError, brief, command_line, usage
from llmcli.formats import atomic_io
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.ensemble_file import Ensemble
from llmcli.formats.loading import open_chat_template, read_header
from llmcli.formats.metadata import parse_document
from llmcli.formats.open_file import model_files
from llmcli.generation.choices import ScoredText, score_answers
from llmcli.generation.generator import GeneratedText, Piece, decode
from llmcli.generation.token_healing import shared_length
from llmcli.models.logits import log_softmax
from llmcli.models.runtime import Runtime

if TYPE_CHECKING:
    from llmcli.data.files import ConversationFile

READ_CHUNK = 256  # prompt tokens processed before control returns to the caller
ANSWER_SHARE = 4  # a quarter of the context is kept free for the answer
# model files whose headers are read, and files listed in an error
MAX_SEARCHED = 100
MAX_LISTED = 3
TRAINING_FILE = "(FILE: a table of questions and answers, or conversations as JSON Lines)"
_OTHER_LINE_ENDS = re.compile(
    "[\x85\u2028\u2029]"
)  # JSON does not escape them; many programs end lines there


@dataclass(frozen=True)
class TurnsDropped:
    """The context is full, so the model no longer sees the oldest turns."""

    turns: int  # a turn is a question with its answer
    context: int  # tokens


@dataclass(frozen=True)
class PrefillProgress:
    """Progress in processing the conversation rendered by the template."""

    tokens: int
    cached: int  # tokens that were still in the KV cache
    processed: int  # tokens processed so far, including the cached ones


Event = TurnsDropped | PrefillProgress | Piece  # in this order; the last piece has the finish reason


def open_assistant(model: Checkpoint | Ensemble, runtime: Runtime, tokenizer: Tokenizer) -> "Assistant":
    """Open a model for conversations. Raises LLMError if it has no chat template."""
    template = open_chat_template(model.shared, tokenizer)
    if template is None:
        path = model.shared.path
        name = str(path or "MODEL")
        command = command_line(["llm", "train", "FILE", "--from", name])
        train = f"to train it on conversations: {command} {TRAINING_FILE}"
        others = models_that_can_chat(path.parent) if path else ""
        raise LLMError(
            f"{name} has no chat template: it continues text and was not trained on conversations; "
            f"{f'beside it, {others}' if others else train}; to continue a text: "
            f"{command_line(['llm', 'generate', 'Once upon a time', '-m', name])}"
        )
    return Assistant(runtime, tokenizer, template)


def models_that_can_chat(directory: Path) -> str:
    """Name the first few model files that have a chat template, in a sentence; "" if there are none."""

    def can_chat(path: Path) -> bool:
        try:
            config = parse_document(
                read_header(path).metadata["tokenizer_config.json"], "its tokenizer_config.json"
            )
        except (LLMError, OSError, KeyError):  # damaged or not a model
            return False
        return bool(config.get("chat_template"))

    names = [
        str(path) for path in islice(filter(can_chat, model_files(directory)[:MAX_SEARCHED]), MAX_LISTED)
    ]
    return f"{', '.join(names)} can chat: {command_line(['llm', 'chat', '-m', names[0]])}" if names else ""


class Assistant:
    """A model that answers conversations, with the KV cache of the last one."""

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.runtime = runtime
        self.tokenizer = tokenizer
        self.prompt_ids: list[int] = []  # the conversation before the last answer
        self.answer_ids: list[int] = []
        self.template = template
        self._stop_ids = template.stop_ids | tokenizer.eos_ids
        self._dropped: list[Message] = []  # oldest messages of the last conversation, which did not fit
        # length of the runtime's cache after the last answer; it changes if the runtime is used elsewhere
        self._length = 0

    def answer(self, messages: Messages, sampling: SamplingConfig) -> Iterator[Event]:
        """Answer messages that end with a user message; closing the iterator stops the answer. If the
        messages do not fit the context, the oldest turns are left out, but not the system message. Raises
        LLMError for messages that the template does not accept, and for a last message that does not fit the
        context."""
        ids, dropped = self._fit(messages, sampling.max_tokens)
        if dropped:
            yield TurnsDropped(dropped, self.runtime.context)
        with self._cache():
            yield from self._read(ids)
            yield from self._generate(sampling)

    @contextmanager
    def _cache(self) -> Iterator[None]:
        """Note what the runtime's cache holds at the end: nothing after an error, such as a KeyboardInterrupt
        inside a layer, which leaves the cache undefined."""
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException:
            self.runtime.rewind()
            raise
        finally:
            self._length = self.runtime.length

    def score(
        self,
        messages: Messages,
        answers: Sequence[str],
        *,
        only_likely: bool = False,
    ) -> list[ScoredText]:
        """Score answers to messages that end with a user message (choices.py); with `only_likely`, only the
        likely ones. Raises LLMError
        like `answer`, and, unless `only_likely`, for an answer that does not fit the context."""
        ids, _ = self._fit(messages, 1 + max(len(self.tokenizer.encode(answer)) for answer in answers))
        with self._cache():
            for _ in self._read(ids):
                pass
            scored = score_answers(
                self.runtime, self.tokenizer, ids, answers, self._stop_ids, only_likely=only_likely
            )
            scores = [*chain.from_iterable(scored)]
            self.runtime.rewind(len(ids) - 1)
        return scores

    def read_answer(self, messages: Messages) -> tuple[list[int], list[Piece]]:
        """Return (tokens before the answer that ends `messages`, its pieces, as if it were generated now).
        The KV cache is empty afterwards. Raises LLMError like `answer`, and for an answer that does not fit
        the context."""
        *before, answer = messages
        tokens = self.tokenizer.encode(answer.content)
        ids, _ = self._fit(before, len(tokens))
        text = GeneratedText(self.tokenizer, ids, SamplingConfig(max_tokens=len(tokens) + 1), self._stop_ids)
        pieces = []
        with self._cache():
            for _ in self._read(ids):
                pass
            for token in tokens:
                logits = self.runtime.step(text.ids[-1])[: len(self.tokenizer.token_bytes)]
                pieces += text.append((token, float(log_softmax(logits)[token])))
            self.runtime.rewind()
        return ids, pieces

    def encode(self, messages: Messages, max_tokens: int) -> tuple[list[int], int, frozenset[int]]:
        """Return (tokens of a new conversation, number of turns left out, tokens that end its answer of at
        most `max_tokens`). Raises LLMError like `answer`."""
        self._dropped = []
        return *self._fit(messages, max_tokens), frozenset(self._stop_ids)

    def _fit(self, messages: Messages, max_tokens: int) -> tuple[list[int], int]:
        """Return (ids of the conversation, number of turns left out in addition to earlier ones)."""
        if not messages or messages[-1].role != "user":
            raise LLMError("a conversation must end with a user message")
        context = self.runtime.context
        ids, dropped = fit(messages, self.template, context, max_tokens, self._dropped)
        if len(ids) >= context:
            raise LLMError(
                f"the messages have {len(ids):,} tokens even without earlier turns, and the context length "
                f"is {context:,}; use a shorter text"
            )
        is_continued = dropped[: len(self._dropped)] == self._dropped
        new = dropped[len(self._dropped) if is_continued else 0 :]
        self._dropped = dropped
        return ids, count_turns(new)

    def _read(self, ids: list[int]) -> Iterator[PrefillProgress]:
        """Process `ids` except the last token and those that are already in the cache."""
        cached = 0
        if self.runtime.length == self._length:
            before = (self.prompt_ids + self.answer_ids)[: self._length]
            cached = min(shared_length(before, ids), len(ids) - 1)
        self.runtime.rewind(cached)
        self.prompt_ids = ids
        self.answer_ids = []
        yield PrefillProgress(len(ids), cached, cached)
        for start in range(cached, len(ids) - 1, READ_CHUNK):
            self.runtime.read(ids[start : min(start + READ_CHUNK, len(ids) - 1)])
            yield PrefillProgress(len(ids), cached, self.runtime.length)

    def _generate(self, sampling: SamplingConfig) -> Iterator[Piece]:
        space = self.runtime.context - len(self.prompt_ids)
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, space))
        answer = GeneratedText(self.tokenizer, self.prompt_ids, sampling, self._stop_ids)
        for piece in decode(self.runtime, answer):
            if piece.id is not None:
                self.answer_ids.append(piece.id)
            yield piece


class Chat:
    """The messages of one conversation. The assistant's answers are added to it."""

    def __init__(
        self, assistant: Assistant, sampling: SamplingConfig, messages: Iterable[Message] = ()
    ) -> None:
        self.assistant = assistant
        self.messages = list(messages)
        self.set_sampling(sampling)

    @property
    def system(self) -> str:
        return self.messages[0].content if self.messages and self.messages[0].role == "system" else ""

    @property
    def sampling(self) -> SamplingConfig:
        """Sampling settings for the next answer; each answer has a different seed."""
        return replace(self._sampling, seed=self._sampling.seed + self._answers)

    def set_sampling(self, sampling: SamplingConfig) -> None:
        self._sampling = sampling
        self._answers = 0

    @property
    def turns(self) -> int:
        return count_turns(self.messages)

    def set_system(self, text: str) -> None:
        """Replace the system message, or remove it with ""; the turns are kept."""
        rest = self.messages[bool(self.system) :]
        self.messages = [Message("system", text), *rest] if text else rest

    def reset(self) -> None:
        self.messages = self.messages[: bool(self.system)]

    def answer(self, text: str) -> Iterator[Event]:
        """Ask a question and yield the answer. Both are added to the conversation when the answer ends, is
        stopped or fails, unless it has no text by then. Raises LLMError, for instance for an empty text."""
        if not text.strip():
            raise usage("the message is empty; give a text to answer")
        return self._answer([*self.messages, Message("user", text)])

    def regenerate(self) -> Iterator[Event]:
        """Answer the last question again with another seed. Raises LLMError if there is no question."""
        return self._answer(self.messages[: self._last_question() + 1])

    def take_back(self) -> str:
        """Remove the last question with its answer, and return the question. Raises LLMError if there is
        none."""
        last = self._last_question()
        question = self.messages[last].content
        self.messages = self.messages[:last]
        return question

    def read_answer(self) -> tuple[list[int], list[Piece]]:
        """See `Assistant`, for the answer that ends the conversation."""
        return self.assistant.read_answer(self.messages)

    def _last_question(self) -> int:
        indices = [i for i, message in enumerate(self.messages) if message.role == "user"]
        if not indices:
            raise usage("there is no question yet; type a question")
        return indices[-1]

    def _events(self, messages: Messages, sampling: SamplingConfig) -> Iterator[Event]:
        return self.assistant.answer(messages, sampling)

    def _answer(self, messages: list[Message]) -> Iterator[Event]:
        sampling = self.sampling
        self._answers += 1
        text = ""
        is_complete = False
        try:
            for event in self._events(messages, sampling):
                if isinstance(event, Piece):
                    text += event.text
                    is_complete = event.finish_reason is not None
                yield event
        finally:
            if text or is_complete:
                self.messages = [*messages, Message("assistant", text)]


def count_turns(messages: Iterable[Message]) -> int:
    return sum(message.role == "user" for message in messages)


def fit(
    messages: Messages,
    template: ChatTemplate,
    context: int,
    max_tokens: int,
    dropped: Messages = (),
) -> tuple[list[int], list[Message]]:
    """Return (ids of a conversation up to its next answer, oldest messages that are left out). If less than a
    quarter of the context is free for the answer, turns are left out until half of it is free, because the
    remaining turns must be processed again each time. Turns that were `dropped` before stay out; the system
    messages at the beginning and the last turn are kept, even if they are too long. Raises LLMError for a
    template that renders to nothing."""
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    system = [*messages[:start]]
    turns = [*messages[start:]]
    before = len(dropped) if turns[: len(dropped)] == [*dropped] else 0

    def encode(first: int) -> list[int]:
        ids = template.encode(system + turns[first:], add_generation_prompt=True)
        if not ids:
            raise LLMError(
                "the model's chat template renders these messages to an empty text: it is damaged, or was "
                "made for other messages; the model can still continue a text"
            )
        return ids

    ids = encode(before)
    starts = [i for i in range(before + 1, len(turns)) if turns[i].role == "user"]
    if len(ids) + min(max_tokens, context // ANSWER_SHARE) <= context or not starts:
        return ids, turns[:before]
    fitting = bisect_left(starts, True, key=lambda first: len(encode(first)) <= context // 2)
    first = starts[min(fitting, len(starts) - 1)]
    return encode(first), turns[:first]


def messages_from(records: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Convert records {"role": ..., "content": ...} to messages. Raises LLMError for a wrong role or a
    missing text."""
    if isinstance(records, str | bytes | Mapping) or not isinstance(records, Iterable):
        raise usage(
            'messages must be a list such as [{"role": "user", "content": "Hello"}], '
            f"found {brief(records)}"
        )
    messages = []
    for number, record in enumerate(records, 1):
        role, content = (
            (record.get("role"), record.get("content")) if isinstance(record, Mapping) else (None, None)
        )
        if role not in ROLES or not isinstance(content, str):
            raise usage(
                f'message {number} must be {{"role": {" or ".join(ROLES)}, "content": a text}}, '
                f"found {brief(record)}"
            )
        messages.append(Message(role, content))
    return messages


# ---- files: each conversation is a line {"messages": [{"role": ..., "content": ...}]} (JSON Lines)


def save_messages(path: Path, messages: Messages, saved: bytes = b"") -> bytes:
    """Write a conversation to a new file, or replace `saved`, its earlier state. Returns the bytes written.
    Raises LLMError for any other existing file, and if the file cannot be written."""
    if not any(message.role == "assistant" for message in messages):
        raise usage("there is nothing to save yet: the conversation has no answer")
    if path.exists() and not (saved and path.is_file() and path.read_bytes() == saved):
        raise LLMError(f"{path} already exists; give another name: /save OTHER.jsonl")
    atomic_io.check_writable(path, force=True, by=" after /save", example="chat.jsonl")
    data = as_line(messages)
    atomic_io.write(path, data)
    return data


def as_line(messages: Messages) -> bytes:
    record = {"messages": [{"role": message.role, "content": message.content} for message in messages]}
    line = json.dumps(record, ensure_ascii=False)
    line = _OTHER_LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", line)
    return (line + "\n").encode("utf-8")


def load_conversation(path: Path, number: int = 1) -> tuple[Conversation, "ConversationFile"]:
    """Return (the conversation with this number, from 1, in a file for `llm train`; the file). Raises
    LLMError."""
    from llmcli.data.sources import require_conversations

    wanted = 'give a JSON Lines file with "messages", as written by /save'
    if not path.exists():
        raise LLMError(f"there is no file {path}; {wanted}")
    try:
        read = require_conversations(path)
    except LLMError as error:  # its advice is for `llm train`; "; " in the name begins none
        before, name, after = str(error).partition(str(path))
        problem = after.partition("; ")[0]
        raise LLMError(f"{before}{name}{problem}; {wanted}") from error
    count = len(read.conversations)
    if not 1 <= number <= count:
        raise usage(
            f"{path} holds {units.count(count, 'conversation')}, found number {number:,}; "
            f"give one from 1 to {count:,}"
        )
    return read.conversations[number - 1], read
