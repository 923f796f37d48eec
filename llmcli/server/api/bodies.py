"""The request bodies of the routes: fields, bounds and defaults."""

import secrets
from dataclasses import dataclass, replace
from typing import Annotated, Any

from llmcli.config import SamplingConfig
from llmcli.data.conversations.messages import Message
from llmcli.errors import brief
from llmcli.server import limits
from llmcli.server.api.schema import STRING, Body, Fields, JsonObject, Kind, integer, listed, number, short_text
from llmcli.server.errors import invalid

SMALLEST_TOP_P = 1e-9  # keeps the most likely token alone
DEFAULT_WORDS = 10
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TEMPLATE_ARGUMENTS = {"messages", "tools", "documents", "add_generation_prompt"}  # that are not variables

# ---- kinds of fields

TEXT = STRING.schema
IDS: JsonObject = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}}
PART: JsonObject = {"type": "object", "properties": {"type": {"const": "text"}, "text": TEXT}, "required": ["text"]}
MESSAGE: JsonObject = {
    "type": "object",
    "properties": {"role": {"enum": list(ROLES)}, "content": {"anyOf": [TEXT, {"type": "array", "items": PART}]}},
    "required": ["role", "content"],
}


def is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)


def token_ids(low: int, high: int) -> Kind:
    """A list of token ids; whether the vocabulary has them is checked with the model."""
    wanted = f"a list of {low} to {high:,} token ids"
    return Kind(wanted, IDS | {"minItems": low}, lambda value: is_ids(value) and low <= len(value) <= high)


def only(value: bool) -> Kind:
    """A field with one value that has no effect; the other one is not supported."""
    return Kind(str(value).lower(), {"const": value}, lambda given: given is value)


def _is_prompt(value: Any) -> bool:
    prompts = [value] if isinstance(value, str) or is_ids(value) else value
    return isinstance(prompts, list) and all(isinstance(one, str) or is_ids(one) for one in prompts)


def _is_stop(value: Any) -> bool:
    texts, longest = [value] if isinstance(value, str) else value, limits.MAX_STOP_CHARACTERS
    is_short = isinstance(texts, list) and len(texts) <= limits.MAX_STOPS
    return is_short and all(isinstance(one, str) and 0 < len(one) <= longest for one in texts)


def read_messages(values: list[Any]) -> list[Message]:
    """The messages of a request. Raises ApiError.

    >>> read_messages([{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}])
    [Message(role='system', content='Be brief.')]
    """
    return [_read_message(value, f"messages[{number}]") for number, value in enumerate(values)]


def _read_message(value: Any, name: str) -> Message:
    role = value.get("role") if isinstance(value, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(name, f'must be {{"role": {" or ".join(ROLES)}, "content": a text}}, found {brief(value)}')
    if called := next((key for key in ("tool_calls", "function_call") if value.get(key)), None):
        raise invalid(f"{name}.{called}", "is not supported", "unsupported_parameter")
    content = value.get("content")
    if isinstance(content, list):
        parts = [one.get("text") for one in content if isinstance(one, dict) and one.get("type") == "text"]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str):
        raise invalid(f"{name}.content", f"must be a text or a list of text parts, found {brief(value.get('content'))}")
    return Message(ROLES[role], content)


MESSAGES = Kind(
    f"a list of 1 to {limits.MAX_MESSAGES:,} messages",
    listed(MESSAGE, 1, limits.MAX_MESSAGES),
    lambda value: isinstance(value, list) and 0 < len(value) <= limits.MAX_MESSAGES,
    read_messages,
)
VARIABLES = Kind(
    f"an object without {', '.join(sorted(TEMPLATE_ARGUMENTS))}",
    {"type": "object"},
    lambda value: isinstance(value, dict) and not TEMPLATE_ARGUMENTS & value.keys(),
)
STOP = Kind(
    f"a text or a list of at most {limits.MAX_STOPS} texts, each of 1 to {limits.MAX_STOP_CHARACTERS:,} characters",
    {"anyOf": [TEXT, listed(TEXT, 0, limits.MAX_STOPS)]},
    _is_stop,
    lambda value: (value,) if isinstance(value, str) else tuple(value),
)
PROMPT = Kind(
    "a text, a list of token ids, or a list of either",
    {"anyOf": [TEXT, IDS, listed({"anyOf": [TEXT, IDS]}, 1, limits.MAX_PROMPTS)]},
    _is_prompt,
)
SHARE = number(0, 1, int, float)
MAX_TOKENS, WORDS = integer(0, limits.MAX_TOKENS), integer(1, limits.MAX_NEXT_WORDS)
_COUNT = integer(0, limits.MAX_LOGPROBS)
LOGPROBS = replace(  # some clients send the boolean of the chat's shape; false is none
    _COUNT,
    is_valid=lambda value: value is False or _COUNT.is_valid(value),
    convert=lambda value: None if value is False else value,
)

# ---- the bodies


@dataclass(frozen=True, kw_only=True)
class StreamOptions(Fields):
    """Extra contents of a stream."""

    include_usage: bool = False


STREAM_OPTIONS = Kind("an object", StreamOptions.schema(), lambda value: isinstance(value, dict), StreamOptions.read)


@dataclass(frozen=True, kw_only=True)
class GenerationBody(Body):
    """The fields for generating and sending texts, shared by completions and chats."""

    max_tokens: Annotated[int | None, MAX_TOKENS] = None
    temperature: Annotated[float, number(0, 100, int, float)] = SamplingConfig.temperature
    top_k: Annotated[int, replace(integer(-1, 1 << 31), convert=lambda k: max(0, k))] = SamplingConfig.top_k
    top_p: Annotated[float, replace(SHARE, convert=lambda p: max(SMALLEST_TOP_P, p))] = SamplingConfig.top_p
    min_p: Annotated[float, SHARE] = SamplingConfig.min_p
    repetition_penalty: Annotated[float, number(1e-6, 1e6, int, float)] = SamplingConfig.repetition_penalty
    seed: Annotated[int | None, integer(0, (1 << 63) - 1)] = None
    stop: Annotated[tuple[str, ...], STOP] = ()
    n: Annotated[int, integer(1, limits.MAX_CHOICES)] = 1  # texts for each prompt
    stream: bool = False
    stream_options: Annotated[StreamOptions | None, STREAM_OPTIONS] = None

    def __post_init__(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "has no effect without stream; leave it out, or set stream to true")

    def samplings(self, max_tokens: int) -> list[SamplingConfig]:
        """The settings of each of the n texts, with different seeds."""
        seed = secrets.randbelow(1 << 32) if self.seed is None else self.seed
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")
        settings = SamplingConfig(max_tokens=max_tokens, **{name: getattr(self, name) for name in names})
        return [replace(settings, seed=seed + number) for number in range(self.n)]


@dataclass(frozen=True, kw_only=True)
class CompletionBody(GenerationBody):
    """The fields of a completion."""

    prompt: Annotated[str | list[int] | list[str | list[int]], PROMPT]
    echo: bool = False
    logprobs: Annotated[int | None, LOGPROBS] = None
    return_token_ids: bool = False  # with the log probabilities also `content`, as in chats
    add_special_tokens: Annotated[bool, only(True)] = True

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts: at least one, with at least one character or token each. Raises ApiError."""
        prompts: list[Any] = [self.prompt] if isinstance(self.prompt, str) or is_ids(self.prompt) else [*self.prompt]
        if len(prompts) > limits.MAX_PROMPTS:
            raise invalid("prompt", f"must have at most {limits.MAX_PROMPTS} prompts, found {len(prompts)}")
        if not all(prompts):
            raise invalid("prompt", "is empty; give a text to continue")
        if len(prompts) * self.n > limits.MAX_CHOICES:
            raise invalid("n", f"times the number of prompts must be at most {limits.MAX_CHOICES}")
        return prompts


@dataclass(frozen=True, kw_only=True)
class ChatBody(GenerationBody):
    """The fields of a chat."""

    messages: Annotated[list[Message], MESSAGES]
    chat_template_kwargs: Annotated[dict[str, Any] | None, VARIABLES] = None
    max_completion_tokens: Annotated[int | None, MAX_TOKENS] = None  # max_tokens by its newer name
    logprobs: bool = False
    top_logprobs: Annotated[int, integer(0, limits.MAX_TOP_LOGPROBS)] = 0
    add_generation_prompt: bool = True
    continue_final_message: bool | None = None
    add_special_tokens: Annotated[bool, only(False)] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "has no effect without logprobs; set logprobs to true")
        # an answer of the assistant is continued, and after any other message the header of an answer follows
        continues = self.messages[-1].role == "assistant"
        if self.continue_final_message not in (None, continues):
            wanted = "must be true: the last answer goes on" if continues else "needs a last message of the assistant"
            raise invalid("continue_final_message", wanted, "unsupported_parameter")
        if not self.add_generation_prompt and not continues:
            raise invalid("add_generation_prompt", "must be true before an answer", "unsupported_parameter")


@dataclass(frozen=True, kw_only=True)
class PromptBody(Body):
    """A text, or a conversation, whose last answer may be incomplete. `chat_template_kwargs` are variables of the chat
    template, such as {"enable_thinking": false}."""

    prompt: str | None = None
    messages: Annotated[list[Message] | None, MESSAGES] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, VARIABLES] = None

    @property
    def text(self) -> str | None:
        return self.prompt

    def __post_init__(self) -> None:
        if self.text is None and self.messages is None:
            raise invalid("prompt", "is missing; give a text")
        if self.text is not None and self.messages is not None:
            raise invalid("prompt", "has no effect with messages; leave it out")


@dataclass(frozen=True, kw_only=True)
class ExplainBody(PromptBody):
    """The fields of /v1/explain."""

    prompt: Annotated[str | None, short_text(limits.MAX_EXPLAIN_CHARACTERS)] = None
    n: Annotated[int, WORDS] = DEFAULT_WORDS
    literal: bool = False


@dataclass(frozen=True, kw_only=True)
class ExpertsBody(PromptBody):
    """The fields of /v1/experts: tokens, and what they follow."""

    token_ids: Annotated[list[int], token_ids(1, limits.MAX_TOKENS)]


@dataclass(frozen=True, kw_only=True)
class TokenizeBody(PromptBody):
    """The fields of /tokenize: those of vLLM and llama.cpp."""

    content: str | None = None
    add_special_tokens: bool | None = None
    add_special: bool = False
    add_generation_prompt: bool = True
    with_pieces: bool = False

    @property
    def text(self) -> str | None:
        return self.prompt if self.content is None else self.content

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.messages is not None and self.add_special_tokens:
            raise invalid("add_special_tokens", "has no effect with messages; leave it out", "unsupported_parameter")


@dataclass(frozen=True, kw_only=True)
class NextBody(Body):
    """The fields of /v1/next."""

    prompt: str
    n: Annotated[int, WORDS] = DEFAULT_WORDS


@dataclass(frozen=True, kw_only=True)
class MemoryBody(Body):
    """The fields of /v1/memory."""

    text: Annotated[str, short_text(limits.MAX_MEMORY_CHARACTERS)]


@dataclass(frozen=True, kw_only=True)
class DetokenizeBody(Body):
    """The fields of /detokenize."""

    tokens: Annotated[list[int], token_ids(0, limits.MAX_BODY_BYTES)]
