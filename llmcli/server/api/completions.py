"""/v1/completions: what a request asks for, and its answer, whole or in chunks."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmcli.errors import brief
from llmcli.generation.token_healing import Prompt
from llmcli.server.api.fields import Fields
from llmcli.server.api.models import Models, ServedModel
from llmcli.server.api.running import Generated, usage_json
from llmcli.server.api.sampling import Settings, read_max_tokens, read_settings
from llmcli.server.engine.requests import Event, Finished, Request, Started, Token
from llmcli.server.engine.token_text import ScoredToken, chat_logprobs, completion_logprobs
from llmcli.server.errors import invalid
from llmcli.server.limits import MAX_CHOICES, MAX_LOGPROBS, MAX_PROMPTS

DEFAULT_MAX_TOKENS = 16  # OpenAI's
UNSUPPORTED: dict[str, tuple[Any, ...]] = {"add_special_tokens": (True,)}  # with the value that changes nothing


def new_id(prefix: str) -> str:
    """An id for an answer."""
    return f"{prefix}-{secrets.token_hex(12)}"


@dataclass(frozen=True)
class Completion:
    """A request that was understood."""

    model: ServedModel
    prompts: tuple[str | tuple[int, ...], ...]
    settings: Settings
    echo: bool
    logprobs: int | None  # alternatives for each token; None: no log probabilities
    with_ids: bool  # with the log probabilities also `content`, as in chats, which has token ids and bytes
    requests: tuple[Request, ...]  # the n of the first prompt, those of the second, ...
    id: str = field(default_factory=lambda: new_id("cmpl"))
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def read(cls, body: dict[str, Any], models: Models) -> "Completion":
        """Raises ApiError for a field that is wrong or not supported, LLMError for text that has no tokens."""
        fields = Fields(body)
        model = models.find(fields.text("model", "") or None)
        settings = read_settings(fields, read_max_tokens(fields, DEFAULT_MAX_TOKENS, "max_tokens"))
        echo = fields.flag("echo")
        logprobs = _read_logprobs(fields)
        prompts = _read_prompts(fields.raw("prompt"), model)
        if len(prompts) * settings.n > MAX_CHOICES:
            raise invalid("n", f"times the number of prompts must be at most {MAX_CHOICES}")
        requests = [
            Request(
                model.name,
                prompt,
                settings.of_choice(number),
                top_logprobs=logprobs or 0,
                prompt_logprobs=echo and logprobs is not None,
            )
            for prompt in [_encode(prompt, model, literal=echo) for prompt in prompts]
            for number in range(settings.n)
        ]
        with_ids = fields.flag("return_token_ids")
        fields.refuse(UNSUPPORTED)
        fields.refuse_others()
        return cls(model, tuple(prompts), settings, echo, logprobs, with_ids, tuple(requests))

    @property
    def prompt_text(self) -> str:
        """For the log."""
        return "\n".join(self._echoed(index) for index in range(len(self.prompts)))

    # ---- the whole answer

    def answer(self, texts: Sequence[Generated]) -> dict[str, Any]:
        """The answer when all texts are complete."""
        choices = [self._choice(index, text) for index, text in enumerate(texts)]
        return self._envelope(choices) | {"usage": usage_json(texts, self.settings.n)}

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": None,
            "choices": choices,
        }

    def _choice(self, index: int, text: Generated) -> dict[str, Any]:
        echoed = self._echoed(index // self.settings.n) if self.echo else ""
        assert text.finished
        choice = _choice_json(index, echoed + text.text, text.finished.reason)
        if self.logprobs is not None:
            prompt = text.started.prompt if text.started else ()
            tokens: list[ScoredToken] = [*prompt, *text.tokens]
            choice["logprobs"] = self._logprobs(tokens, 0, len(choice["text"]))
        return choice

    def _echoed(self, index: int) -> str:
        """The text of a prompt."""
        prompt = self.prompts[index]
        return prompt if isinstance(prompt, str) else self.model.tokenizer.decode(prompt)

    # ---- the stream

    def chunks(self, index: int, event: Event, text: Generated) -> list[dict[str, Any]]:
        """What is sent for an event of a choice, whose text so far is `text`; nothing while no text is complete."""
        match event:
            case Started():
                return self._echo_chunk(index, event) if self.echo else []
            case Token() if event.text:
                return [self._chunk(index, event.text, None, text)]
            case Finished():
                return [self._chunk(index, "", event.reason, text)]
        return []

    def usage_chunk(self, texts: Sequence[Generated]) -> dict[str, Any]:
        """The last chunk of a stream that was asked for its usage."""
        return self._envelope([]) | {"usage": usage_json(texts, self.settings.n)}

    def _echo_chunk(self, index: int, started: Started) -> list[dict[str, Any]]:
        choice = _choice_json(index, self._echoed(index // self.settings.n), None)
        if self.logprobs is not None:
            choice["logprobs"] = self._logprobs(started.prompt, 0, len(choice["text"]))
        return [self._envelope([choice])]

    def _chunk(self, index: int, new_text: str, reason: str | None, text: Generated) -> dict[str, Any]:
        choice = _choice_json(index, new_text, reason)
        if self.logprobs is not None:
            before = len(text.text) - len(new_text) + (len(self._echoed(index // self.settings.n)) if self.echo else 0)
            tokens = text.take_unsent()
            choice["logprobs"] = self._logprobs(tokens, before, before + len(new_text))
        return self._envelope([choice])

    def _logprobs(self, tokens: Sequence[ScoredToken], start: int, end: int) -> dict[str, Any]:
        """The log probabilities of tokens in the text from `start` to `end`."""
        logprobs = completion_logprobs(self.model.tokenizer, tokens, start, end)
        return logprobs | (chat_logprobs(self.model.tokenizer, tokens) if self.with_ids else {})


def _choice_json(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": reason}


def _read_logprobs(fields: Fields) -> int | None:
    """The number of alternatives. Some clients send the boolean of the chat's shape; false is none."""
    if fields.raw("logprobs") is False:
        return None
    return None if fields.given("logprobs") is None else fields.integer("logprobs", 0, 0, MAX_LOGPROBS)


# ---- prompts


def _read_prompts(value: Any, model: ServedModel) -> list[str | tuple[int, ...]]:
    """The prompts: a text, token ids, or a list of either."""
    if isinstance(value, str) or (isinstance(value, list) and value and _is_ids(value)):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(one, str) or _is_ids(one) for one in value):
        raise invalid("prompt", f"must be a text, a list of token ids, or a list of either, found {brief(value)}")
    if len(value) > MAX_PROMPTS:
        raise invalid("prompt", f"must have at most {MAX_PROMPTS} prompts, found {len(value)}")
    return [_read_prompt(one, model) for one in value]


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)


def _read_prompt(value: str | list[int], model: ServedModel) -> str | tuple[int, ...]:
    if not value:
        raise invalid("prompt", "is empty; give a text to continue")
    if isinstance(value, str):
        return value
    check_ids("prompt", value, model)
    return tuple(value)


def read_ids(param: str, value: Any, model: ServedModel) -> list[int]:
    """A list of token ids. Raises ApiError."""
    if not _is_ids(value):
        raise invalid(param, f"must be a list of token ids, found {brief(value)}")
    check_ids(param, value, model)
    return list(value)


def check_ids(param: str, ids: Sequence[int], model: ServedModel) -> None:
    """Raise ApiError for an id outside the vocabulary."""
    size = model.tokenizer.vocab_size
    if outside := next((token for token in ids if not 0 <= token < size), None):
        raise invalid(param, f"must have token ids from 0 to {size - 1}, found {brief(outside)}")


def _encode(prompt: str | tuple[int, ...], model: ServedModel, *, literal: bool) -> Prompt | tuple[int, ...]:
    """The tokens of a prompt. Unless `literal`, the last word of a text may continue, as in `llm generate`."""
    if isinstance(prompt, tuple):
        check_length(len(prompt), model)
        return prompt
    encoded = Prompt.of(prompt, model.tokenizer, literal=literal)
    check_length(len(encoded.ids), model)
    return tuple(encoded.ids) if literal else encoded


def check_length(tokens: int, model: ServedModel, param: str = "prompt") -> None:
    """Raise ApiError for a prompt that does not fit the context."""
    if tokens > model.context:
        raise invalid(
            param,
            f"has {tokens:,} tokens, and the context length of {model.name} is {model.context:,}; use a shorter text",
            "context_length_exceeded",
        )
