"""/v1/chat/completions: what a request asks for, and its answer, whole or in chunks.

The messages are written with the model's own chat template. When they do not fit the context, the oldest turns are left
out, as `llm chat` does, and the answer says how many.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmcli.config import ANSWER_TOKENS
from llmcli.data.conversations.chat_template import ChatTemplate
from llmcli.data.conversations.messages import Message
from llmcli.errors import brief
from llmcli.generation.chat import fit, split_system
from llmcli.generation.token_healing import Prompt
from llmcli.server.api.completions import new_id
from llmcli.server.api.fields import Fields
from llmcli.server.api.models import MAX_LISTED, Models, ServedModel
from llmcli.server.api.running import Generated, usage_json
from llmcli.server.api.sampling import Settings, read_max_tokens, read_settings
from llmcli.server.engine.requests import Event, Finished, Request, Started, Token
from llmcli.server.engine.token_text import chat_logprobs
from llmcli.server.errors import ApiError, invalid
from llmcli.server.limits import MAX_MESSAGES, MAX_TOP_LOGPROBS

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TEMPLATE_ARGUMENTS = {"messages", "tools", "documents", "add_generation_prompt"}  # that are not variables
# known fields of the chat API that are not supported, with the values that change nothing
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"], []),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "echo": (False,),
    "chat_template": (),
    "documents": ([],),
    "return_token_ids": (False,),
    "add_special_tokens": (False,),
    "think": (False,),
}


@dataclass(frozen=True)
class ChatCompletion:
    """A request that was understood."""

    model: ServedModel
    messages: tuple[Message, ...]
    settings: Settings
    logprobs: bool
    dropped_turns: int  # the oldest ones, which do not fit the context
    requests: tuple[Request, ...]
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def read(cls, body: dict[str, Any], models: Models) -> "ChatCompletion":
        """Raises ApiError for a field that is wrong or not supported, LLMError for messages that the template
        refuses."""
        fields = Fields(body)
        model = models.find(fields.text("model", "") or None)
        fields.refuse(UNSUPPORTED)
        max_tokens = read_max_tokens(fields, ANSWER_TOKENS, "max_completion_tokens", "max_tokens")
        logprobs = fields.flag("logprobs")
        top_logprobs = fields.integer("top_logprobs", 0, 0, MAX_TOP_LOGPROBS)
        if top_logprobs and not logprobs:
            raise invalid("top_logprobs", "has no effect without logprobs; set logprobs to true")
        messages = read_messages(fields.raw("messages"))
        _check_end(fields, messages)
        template = read_template(fields, require_template(model, models))
        prompt, dropped = encode_messages(messages, template, model.context, max_tokens)
        settings = read_settings(fields, min(max_tokens, model.context - len(prompt.ids)))
        fields.refuse_others()
        requests = [
            Request(
                model.name,
                prompt if prompt.tail else tuple(prompt.ids),
                settings.of_choice(number),
                stop_ids=template.stop_ids | model.tokenizer.eos_ids,
                top_logprobs=top_logprobs,
            )
            for number in range(settings.n)
        ]
        return cls(model, tuple(messages), settings, logprobs, dropped, tuple(requests))

    @property
    def prompt_text(self) -> str:
        """For the log."""
        return self.messages[-1].content

    # ---- the whole answer

    def answer(self, texts: Sequence[Generated]) -> dict[str, Any]:
        """The answer when all texts are complete."""
        choices = [self._choice(index, text) for index, text in enumerate(texts)]
        return self._envelope("chat.completion", choices) | {"usage": self._usage(texts)}

    def _choice(self, index: int, text: Generated) -> dict[str, Any]:
        assert text.finished
        message = {"role": "assistant", "content": self._without_prefix_space(text.text), "refusal": None}
        logprobs = self._logprobs(text.tokens)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": text.finished.reason}

    def _without_prefix_space(self, text: str) -> str:
        """An answer without SentencePiece's space before its first word."""
        return text.removeprefix(" ") if self.model.tokenizer.adds_prefix_space else text

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": None,
            "choices": choices,
        }

    def _usage(self, texts: Sequence[Generated]) -> dict[str, object]:
        return usage_json(texts, self.settings.n) | (
            {"dropped_turns": self.dropped_turns} if self.dropped_turns else {}
        )

    # ---- the stream

    def chunks(self, index: int, event: Event, text: Generated) -> list[dict[str, Any]]:
        """What is sent for an event of a choice, whose text so far is `text`; nothing while no text is complete."""
        match event:
            case Started():
                return [self._chunk(index, {"role": "assistant", "content": ""}, None, None)]
            case Token() if event.text:
                new_text = self._without_prefix_space(event.text) if event.text == text.text else event.text
                return [self._chunk(index, {"content": new_text}, self._logprobs(text.take_unsent()), None)]
            case Finished():
                return [self._chunk(index, {}, self._logprobs(text.take_unsent()), event.reason)]
        return []

    def usage_chunk(self, texts: Sequence[Generated]) -> dict[str, Any]:
        """The last chunk of a stream that was asked for its usage."""
        return self._envelope("chat.completion.chunk", []) | {"usage": self._usage(texts)}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """The log probabilities of the tokens of an answer, without the token that ends it."""
        shown = [token for token in tokens if not token.ends_text]
        return chat_logprobs(self.model.tokenizer, shown) if self.logprobs else None

    def _chunk(
        self, index: int, delta: dict[str, str], logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._envelope("chat.completion.chunk", [choice])


# ---- messages


def require_template(model: ServedModel, others: Iterable[ServedModel] = ()) -> ChatTemplate:
    """The chat template of a model. Raises ApiError if it has none, and names those of `others` that have one."""
    if model.template is None:
        able = [other.name for other in others if other.template is not None][:MAX_LISTED]
        hint = f", or a model that can chat: {', '.join(able)}" if able else ""
        raise ApiError(
            f"{model.name} has no chat template: it continues text, and was not trained on conversations; use "
            f"/v1/completions{hint}",
            param="model",
            code="no_chat_template",
        )
    return model.template


def read_template(fields: Fields, template: ChatTemplate) -> ChatTemplate:
    """The template with the variables of `chat_template_kwargs`, such as {"enable_thinking": false}."""
    name = "chat_template_kwargs"
    variables = fields.object(name).values
    if reserved := TEMPLATE_ARGUMENTS & variables.keys():
        raise invalid(f"{name}.{min(reserved)}", "is not supported; leave it out", "unsupported_parameter")
    return template.with_variables(variables) if variables else template


def _check_end(fields: Fields, messages: Sequence[Message]) -> None:
    """Raise ApiError for fields that ask for another end of the prompt than the messages have: an answer of the
    assistant is continued, and after any other message the header of an answer follows."""
    continues = messages[-1].role == "assistant"
    if fields.flag("continue_final_message", continues) != continues:
        wanted = "needs a last message of the assistant" if not continues else "must be true: the last answer goes on"
        raise invalid("continue_final_message", wanted, "unsupported_parameter")
    if not fields.flag("add_generation_prompt", True) and not continues:
        raise invalid("add_generation_prompt", "must be true before an answer", "unsupported_parameter")


def read_messages(value: Any) -> list[Message]:
    """The messages of a request. Raises ApiError.

    >>> read_messages([{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}])
    [Message(role='system', content='Be brief.')]
    """
    if not isinstance(value, list) or not value:
        raise invalid("messages", f"must be a list of messages, found {brief(value)}")
    if len(value) > MAX_MESSAGES:
        raise invalid("messages", f"must have at most {MAX_MESSAGES:,} messages, found {len(value):,}")
    return [_read_message(one, f"messages[{number}]") for number, one in enumerate(value)]


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


def encode_messages(
    messages: Sequence[Message], template: ChatTemplate, context: int, max_tokens: int
) -> tuple[Prompt, int]:
    """(tokens of a conversation with the header of the answer, how many turns are left out). A message of the
    assistant at the end is the beginning of the answer. Raises ApiError where the last turn alone does not fit."""
    prefill = messages[-1].content if messages[-1].role == "assistant" else ""
    asked = messages[:-1] if messages[-1].role == "assistant" else messages
    beginning = Prompt.of(prefill, template.tokenizer) if prefill else Prompt([])
    system, turns = split_system(asked)
    ids, first = fit(system, turns, template, context - len(beginning.ids), max_tokens)
    prompt = Prompt(ids + beginning.head, beginning.tail, beginning.in_word)
    if len(prompt.ids) >= context:
        raise invalid(
            "messages",
            f"have {len(prompt.ids):,} tokens without the turns before the last, and the context length is "
            f"{context:,}; use a shorter text",
            "context_length_exceeded",
        )
    return prompt, sum(message.role == "user" for message in turns[:first])
