"""The request bodies of the routes: fields, bounds and defaults."""

import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from llmcli.config import ANSWER_TOKENS, SAMPLING, Grammar, SamplingConfig
from llmcli.data.conversations.messages import Message
from llmcli.errors import LLMError
from llmcli.generation.choices import check_choices
from llmcli.generation.next_words import MAX_EVALUATIONS
from llmcli.server import limits
from llmcli.server.api.schema import HARMLESS, Body
from llmcli.server.errors import ApiError, invalid

DEFAULT_WORDS = 10
# arguments with a fixed meaning, which are not variables of a template
TEMPLATE_ARGUMENTS = {"messages", "tools", "documents", "add_generation_prompt"}
FORMATS = '{"type": "json_object"}, or {"type": "json_schema", "json_schema": {"schema": ...}}'
BIASES = f"an object of at most {limits.MAX_BIASES:,} token ids, with numbers from -100 to 100"


def is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)


def check_generated_tokens(count: int, prompt: Any) -> None:
    """Raise ApiError if the prompt is not a list of at least `count` token ids."""
    if count and not (is_ids(prompt) and count <= len(prompt)):
        raise invalid("generated_tokens", f"needs a prompt of at least {count:,} token ids")


# ---- kinds of fields


class Part(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


# an empty value of an unsupported field
Empty = Annotated[None, BeforeValidator(lambda value: value or None)]


class RequestMessage(BaseModel):
    """A message of a conversation. Other fields are ignored."""

    model_config = ConfigDict(strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    tool_calls: Empty = None
    function_call: Empty = None
    content: str | Annotated[list[Part], Field(fail_fast=True)]

    @property
    def message(self) -> Message:
        texts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        return Message("system" if self.role == "developer" else self.role, "".join(texts))


class Nested(BaseModel):
    """An object in a body. As in a body, null means the default, and harmless fields are ignored."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None and name not in HARMLESS}


class StreamOptions(Nested):
    """Extra contents of a stream."""

    include_usage: bool = False


Choices = Annotated[
    list[Annotated[str, Field(max_length=limits.MAX_GIVEN_CHARACTERS)]],
    Field(min_length=2, max_length=limits.MAX_GIVEN_CHOICES),
]


class StructuredOutputs(Nested):
    """A constraint on the text, under one of vLLM's names. OpenAI's `response_format` is for JSON schemas."""

    choice: Choices | None = None
    regex: str | None = None
    grammar: str | None = None


def _checked(check: Callable[[Any], Any]) -> PlainValidator:
    """Validate a field with `check`, which raises ValueError, TypeError or LLMError."""

    def read(value: Any) -> Any:
        try:
            return check(value)
        except (LLMError, AttributeError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError from error

    return PlainValidator(read)


def _response_format(value: Any) -> Grammar | None:
    match value:
        case {"type": "text"}:
            return None
        case {"type": "json_schema", "json_schema": {"schema": dict(schema), **rest}}:
            return Grammar.of_schema(schema, lenient=rest.get("strict") is False)
        case {"type": "json_object", **rest} if not rest:
            return Grammar.of_schema({"type": "object"})
    raise ValueError


def _logit_bias(value: Any) -> dict[int, float]:
    biases = {int(token): float(bias) for token, bias in value.items()}
    if len(biases) > limits.MAX_BIASES or not all(-100 <= bias <= 100 for bias in biases.values()):
        raise ValueError
    return biases


def _variables(values: dict[str, Any]) -> dict[str, Any]:
    if TEMPLATE_ARGUMENTS & values.keys():
        raise ValueError
    return values


def _sampling(name: str, default: float | None = None, high: float | None = None) -> Any:
    """Return the field for a number in SamplingConfig, by default with the same default value and upper
    bound."""
    setting = SAMPLING[name]
    return Field(
        getattr(SamplingConfig, name) if default is None else default,
        ge=setting.low,
        le=setting.high if high is None else high,
        json_schema_extra={"description": setting.help},
    )


def id_list(low: int, high: int) -> Any:
    """Return the field for a list of token ids, which are checked against the vocabulary once the model is
    known."""
    return Field(min_length=low, max_length=high, description=f"a list of {low} to {high:,} token ids")


Messages = Annotated[list[RequestMessage], Field(min_length=1, max_length=limits.MAX_MESSAGES)]
Variables = Annotated[
    Annotated[dict[str, Any], AfterValidator(_variables)] | None,
    Field(description=f"an object without {', '.join(sorted(TEMPLATE_ARGUMENTS))}"),
]
StopText = Annotated[str, Field(min_length=1, max_length=limits.MAX_STOP_CHARACTERS)]
TokenId = Annotated[int, WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 2**31 - 1})]
MaxTokens = Annotated[int, Field(ge=0, le=limits.MAX_TOKENS)]
Words = Annotated[int, Field(ge=1, le=limits.MAX_NEXT_WORDS)]
Evaluations = Annotated[int, Field(ge=2, le=MAX_EVALUATIONS)]
# number of tokens at the end of the prompt that the model generated
GeneratedTokens = Annotated[int, Field(ge=0, le=2**31 - 1)]
Truncation = Literal[-1] | None  # -1: only the end of a prompt that exceeds the context is used (vLLM's name)
TEXT_OR_IDS = Field(description="a text or a list of token ids")
Position = Annotated[int, Field(ge=-limits.MAX_EXPLAIN_CHARACTERS, le=limits.MAX_EXPLAIN_CHARACTERS)]
# an error for each id of a large body would take seconds and a gigabyte
Ids = Annotated[list[TokenId], Field(fail_fast=True)]
Prompted = Annotated[str | Ids, TEXT_OR_IDS]
ExplainedPrompt = Annotated[
    Annotated[str, Field(max_length=limits.MAX_EXPLAIN_CHARACTERS)] | Ids | None,
    Field(
        description=f"a text of at most {limits.MAX_EXPLAIN_CHARACTERS:,} characters, or a list of token ids"
    ),
]
ResponseFormat = Annotated[
    Any, _checked(_response_format), WithJsonSchema({"type": ["object", "null"]}), Field(description=FORMATS)
]
LogitBias = Annotated[
    dict[int, float],
    _checked(_logit_bias),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number"}}),
    Field(description=BIASES),
]


# ---- the bodies


class GenerationBody(Body):
    """The fields for generating and sending texts, shared by completions and chats."""

    default_max_tokens: ClassVar[int]
    max_tokens: MaxTokens | None = None
    temperature: float = _sampling("temperature", high=limits.MAX_TEMPERATURE)
    # -1 is off in other programs
    top_k: Annotated[int, BeforeValidator(lambda k: 0 if k == -1 else k)] = _sampling("top_k", high=1 << 31)
    top_p: float = _sampling("top_p")
    min_p: float = _sampling("min_p")
    repetition_penalty: float = _sampling("repetition_penalty")
    presence_penalty: float = _sampling("presence_penalty")
    frequency_penalty: float = _sampling("frequency_penalty")
    logit_bias: LogitBias = Field({}, validate_default=False)
    min_tokens: int = _sampling("min_tokens", high=limits.MAX_TOKENS)
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=limits.MAX_STOPS)] = Field(
        [],
        description=f"a text or a list of at most {limits.MAX_STOPS} texts, each of 1 to "
        f"{limits.MAX_STOP_CHARACTERS:,} characters",
    )
    n: int = Field(1, ge=1, le=limits.MAX_CHOICES)  # texts for each prompt
    # also return the prompt's ids; completions with log probabilities then have `content`, like chats
    return_token_ids: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat = None
    structured_outputs: StructuredOutputs | None = None

    def model_post_init(self, context: Any, /) -> None:
        if self.stream_options is not None and not self.stream:
            raise invalid(
                "stream_options", "has no effect without stream; leave it out, or set stream to true"
            )
        if self.min_tokens > self.most_tokens:
            raise invalid(
                "min_tokens", f"must be at most max_tokens, {self.most_tokens:,}, found {self.min_tokens:,}"
            )
        name, _, choices = self.constraint
        if choices:
            try:
                check_choices(choices, name)
            except LLMError as error:
                raise ApiError(str(error), param=name) from error
            if other := next((field for field in ("stop", "echo") if getattr(self, field, None)), None):
                raise invalid(other, f"has no effect with {name}; leave it out")
        elif name and self.stop:
            raise invalid("stop", f"would cut the output of {name} short; leave it out")

    @property
    def most_tokens(self) -> int:
        """The maximum number of new tokens of a text."""
        return self.default_max_tokens if self.max_tokens is None else self.max_tokens

    @cached_property
    def constraint(self) -> tuple[str, Grammar | None, tuple[str, ...]]:
        """(name of the field that constrains the text, or "" if none does; its grammar or None; its choices).
        Raises ApiError for several constraints."""
        nested = self.structured_outputs or StructuredOutputs()
        given: list[tuple[str, Grammar | None, tuple[str, ...]]] = []
        if self.response_format:
            given.append(("response_format", self.response_format, ()))
        if nested.choice:
            given.append(("structured_outputs.choice", None, tuple(nested.choice)))
        for kind, text in (("regex", nested.regex), ("grammar", nested.grammar)):
            if text is not None:  # an empty text is also a constraint: it is invalid, or allows one text
                given.append((f"structured_outputs.{kind}", Grammar(kind, text), ()))
        if len(given) > 1:
            raise invalid(given[0][0], f"and {given[1][0]} both constrain the text; give only one of them")
        return given[0] if given else ("", None, ())

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts from which one is chosen; () if the text is not restricted to choices."""
        return self.constraint[2]

    def samplings(self, max_tokens: int) -> list[SamplingConfig]:
        """Return the settings for each of the n texts, which differ in their seeds."""
        _, grammar, _ = self.constraint
        seed = secrets.randbelow(1 << 32) if self.seed is None else self.seed
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        settings = SamplingConfig(
            max_tokens=max_tokens,
            stop=stop,
            logit_bias=tuple(self.logit_bias.items()),
            grammar=grammar,
            **{name: getattr(self, name) for name in SAMPLING if name not in ("max_tokens", "seed")},
        )
        return [replace(settings, seed=seed + number) for number in range(self.n)]


class CompletionBody(GenerationBody):
    """The fields of a completion."""

    default_max_tokens = 16  # OpenAI's
    prompt: str | Ids | Annotated[list[str | Ids], Field(fail_fast=True)] = Field(
        description="a text, a list of token ids, or a list of either"
    )
    echo: bool = False
    # some clients send a boolean, as in chats; false means no log probabilities
    logprobs: Annotated[
        Annotated[int, Field(ge=0, le=limits.MAX_LOGPROBS)] | None,
        BeforeValidator(lambda value: None if value is False else value),
    ] = None
    truncate_prompt_tokens: Truncation = None
    generated_tokens: GeneratedTokens = 0
    add_special_tokens: Literal[True] = True  # false is not supported

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        check_generated_tokens(self.generated_tokens, self.prompt)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts: at least one. Raises ApiError."""
        prompts: list[Any] = (
            [self.prompt] if isinstance(self.prompt, str) or is_ids(self.prompt) else [*self.prompt]
        )
        if len(prompts) > limits.MAX_PROMPTS:
            raise invalid("prompt", f"must have at most {limits.MAX_PROMPTS} prompts, found {len(prompts)}")
        if len(prompts) * self.n > limits.MAX_CHOICES:
            raise invalid("n", f"times the number of prompts must be at most {limits.MAX_CHOICES}")
        return prompts


class ChatBody(GenerationBody):
    """The fields of a chat."""

    default_max_tokens = ANSWER_TOKENS
    messages: Messages
    chat_template_kwargs: Variables = None
    max_completion_tokens: MaxTokens | None = None  # the newer name of max_tokens
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=limits.MAX_TOP_LOGPROBS)
    # vLLM's names
    add_generation_prompt: bool = True
    continue_final_message: bool | None = None
    add_special_tokens: Literal[False] = False  # true is not supported

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if self.max_tokens not in (None, self.most_tokens):
            raise invalid("max_completion_tokens", "and max_tokens differ; give only one of them")
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "has no effect without logprobs; set logprobs to true")
        # if the last message is the assistant's, it is continued; otherwise, the header of an answer follows
        continues = self.messages[-1].role == "assistant"
        if self.continue_final_message not in (None, continues):
            wanted = (
                "must be true: the last answer is continued"
                if continues
                else "needs a last message of the assistant"
            )
            raise invalid("continue_final_message", wanted, "unsupported_parameter")
        if not self.add_generation_prompt and not continues:
            raise invalid("add_generation_prompt", "must be true before an answer", "unsupported_parameter")

    @property
    def most_tokens(self) -> int:
        return super().most_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class PromptBody(Body):
    """A text, or a conversation; its last answer may be incomplete. `chat_template_kwargs` are variables of
    the chat template, such as {"enable_thinking": false}."""

    prompt: Any = None
    messages: Messages | None = None
    chat_template_kwargs: Variables = None

    def model_post_init(self, context: Any, /) -> None:
        if self.prompt is None and self.messages is None:
            raise invalid("prompt", "is missing; give a text")
        if self.prompt is not None and self.messages is not None:
            raise invalid("prompt", "has no effect with messages; leave it out")


class ExplainBody(PromptBody):
    """The fields of /v1/explain."""

    prompt: ExplainedPrompt = None
    n: Words = DEFAULT_WORDS
    literal: bool = False
    truncate_prompt_tokens: Truncation = None
    # results to compute: next words, the effect of each token, attention (with `position`, of one token)
    include: list[Literal["next", "effects", "attention"]] = Field(
        ["next", "effects", "attention"], description="a list of next, effects, attention"
    )
    max_evaluations: Evaluations | None = None  # evaluations of the model for finding next words
    position: Position | None = None  # index in `tokens`; negative: from the end
    # explain this next token, in its most likely place, instead of the most likely token
    token_id: TokenId | None = None
    generated_tokens: GeneratedTokens = 0
    # layers ("2"), heads ("2.3") and the n-gram cache ("cache") to switch off in a second prediction
    without: Annotated[
        list[Annotated[str, Field(max_length=20)]], Field(max_length=limits.MAX_SWITCHED_OFF)
    ] = Field(
        [],
        description=f'a list of at most {limits.MAX_SWITCHED_OFF:,} layers, as in "2", or heads, as in "2.3"',
    )
    compare: ExplainedPrompt = None  # another prompt

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        check_generated_tokens(self.generated_tokens, self.prompt)
        for name in ("prompt", "compare"):
            if getattr(self, name) == "":
                raise invalid(name, "is empty; give a text to continue")
        if self.compare is not None and self.messages is not None:
            raise invalid("compare", "has no effect with messages; leave it out")


class ExpertsBody(PromptBody):
    """The fields of /v1/experts: tokens, and the prompt before them."""

    prompt: Annotated[str | Ids | None, TEXT_OR_IDS] = None
    token_ids: Ids = id_list(1, limits.MAX_TOKENS)


class TokenizeBody(PromptBody):
    """The fields of /tokenize, as in vLLM."""

    prompt: str | None = None
    add_special_tokens: bool = False
    add_generation_prompt: bool = True

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if self.messages is not None and self.add_special_tokens:
            raise invalid(
                "add_special_tokens", "has no effect with messages; leave it out", "unsupported_parameter"
            )


class NextBody(Body):
    """The fields of /v1/next."""

    prompt: Prompted
    n: Words = DEFAULT_WORDS
    unit: Literal["words", "tokens"] = Field("words", description="words or tokens")
    temperature: float = _sampling("temperature", 1, limits.MAX_TEMPERATURE)
    top_p: float = _sampling("top_p", 1)
    min_p: float = _sampling("min_p", 0)
    max_evaluations: Evaluations | None = None
    token_id: TokenId | None = None  # also return this token's probability and rank
    generated_tokens: GeneratedTokens = 0
    # also return the tokens of the prompt, and those that each word or token adds
    return_token_ids: bool = False
    truncate_prompt_tokens: Truncation = None

    def model_post_init(self, context: Any, /) -> None:
        check_generated_tokens(self.generated_tokens, self.prompt)
        if self.token_id is not None and self.unit != "tokens":
            raise invalid("token_id", 'has no effect without "unit": "tokens"; leave it out')

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(temperature=self.temperature, top_p=self.top_p, min_p=self.min_p)


class MemoryBody(Body):
    """The fields of /v1/memory."""

    text: str = Field(max_length=limits.MAX_MEMORY_CHARACTERS)


class DetokenizeBody(Body):
    """The fields of /detokenize."""

    tokens: Ids = id_list(0, limits.MAX_BODY_BYTES)


def conversation(body: ChatBody | PromptBody) -> list[Message]:
    """Return the messages of a request; [] if it has none."""
    return [entry.message for entry in body.messages or ()]
