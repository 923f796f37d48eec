"""Answers of completions and chats, whole or in chunks, with log probabilities in both formats of OpenAI's
API."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from llmcli.data.tokenizers.tokenizer import Tokenizer, stream_decoder
from llmcli.generation.engine.requests import (
    Event,
    Finished,
    Generated,
    GenerationRequest,
    ScoredToken,
    Started,
    Token,
)
from llmcli.server.api.bodies import ChatBody, CompletionBody, GenerationBody, conversation
from llmcli.server.api.models import ServedModel
from llmcli.server.api.prompts import (
    chat_template,
    check_choices_fit,
    compile_constraint,
    encode_messages,
    encode_prompt,
)
from llmcli.server.api.schema import JsonObject
from llmcli.server.errors import invalid


@dataclass
class StreamedText(Generated):
    """A text whose tokens are sent as they are generated."""

    _sent: int = 0  # number of tokens

    def take_unsent(self) -> list[Token]:
        """Return the tokens since the last call."""
        tokens = self.tokens[self._sent :]
        self._sent = len(self.tokens)
        return tokens


@dataclass(frozen=True, kw_only=True)
class GenerationAnswer(ABC):
    """The answer to a valid request, whole or in chunks."""

    kind: ClassVar[str]  # `object` in OpenAI's JSON
    chunk_kind: ClassVar[str]
    id_prefix: ClassVar[str]
    model: ServedModel
    body: GenerationBody
    requests: Sequence[GenerationRequest]  # n for the first prompt, n for the second, ...
    dropped_turns: int = 0  # number of oldest turns of a conversation that do not fit the context
    _id: str = field(default_factory=lambda: secrets.token_hex(12))
    _created: int = field(default_factory=lambda: int(time.time()))

    @abstractmethod
    def choice(self, index: int, text: StreamedText) -> JsonObject:
        """Return a choice of the whole answer; its text is complete."""

    @abstractmethod
    def choice_chunk(self, index: int, event: Event, text: StreamedText) -> JsonObject | None:
        """Return the message for an event of a choice; `text` is the choice's text so far. None if there is
        nothing to send yet."""

    def whole(self, texts: Sequence[StreamedText]) -> JsonObject:
        """Return the answer when all texts are complete."""
        choices = [self.choice(index, text) for index, text in enumerate(texts)]
        return self._envelope(self.kind, choices) | self._usage(texts)

    def chunk(self, index: int, event: Event, text: StreamedText) -> JsonObject | None:
        """Return the chunk of a stream for an event; the arguments are those of `choice_chunk`."""
        choice = self.choice_chunk(index, event, text)
        return choice and self._envelope(self.chunk_kind, [choice])

    def _prompt_ids(self, index: int, text: StreamedText) -> JsonObject:
        """Return the tokens before the first new one, if token ids were requested."""
        if not self.body.return_token_ids or text.started is None:
            return {}
        added = self.requests[index].prompt.added
        return {"prompt_token_ids": list(text.started.ids), "prompt_prefix_tokens": added}

    def usage_chunk(self, texts: Sequence[StreamedText]) -> JsonObject:
        """Return the last chunk of a stream whose usage was requested."""
        return self._envelope(self.chunk_kind, []) | self._usage(texts)

    def _envelope(self, kind: str, choices: list[JsonObject]) -> JsonObject:
        return {
            "id": self.id_prefix + self._id,
            "object": kind,
            "created": self._created,
            "model": self.model.name,
            "system_fingerprint": None,
            "choices": choices,
        }

    def _usage(self, texts: Sequence[StreamedText]) -> JsonObject:
        """Count the tokens of all texts; a prompt counts once for its n texts."""
        started = [text.started for text in texts[:: self.body.n] if text.started]
        prompt = sum(event.prompt_tokens for event in started)
        completion = sum(text.finished.tokens for text in texts if text.finished)
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(event.cached_tokens for event in started)},
        }
        return {"usage": usage | ({"dropped_turns": self.dropped_turns} if self.dropped_turns else {})}


@dataclass(frozen=True, kw_only=True)
class Completion(GenerationAnswer):
    """Continued prompts."""

    kind = chunk_kind = "text_completion"
    id_prefix = "cmpl-"
    body: CompletionBody

    @classmethod
    def of(cls, body: CompletionBody, model: ServedModel) -> "Completion":
        """Prepare requests. Raises ApiError for a prompt that the model cannot read, LLMError for text
        without tokens."""
        grammar = compile_constraint(body, model, is_answer=False)
        samplings = body.samplings(body.most_tokens)
        scores_prompt = body.echo and body.logprobs is not None
        cuts = body.truncate_prompt_tokens is not None
        written = body.generated_tokens
        prompts = [
            encode_prompt("prompt", prompt, model, literal=body.echo, cuts=cuts, written=written)
            for prompt in body.prompts
        ]
        check_choices_fit(body.choices, prompts, model)
        requests = [
            GenerationRequest(
                model.name,
                prompt,
                sampling,
                top_logprobs=body.logprobs or 0,
                # an empty prompt has only tokens that begin a text
                prompt_logprobs=scores_prompt and len(prompt.ids) > prompt.added,
                choices=body.choices,
                grammar=grammar,
            )
            for prompt in prompts
            for sampling in samplings
        ]
        return cls(model=model, body=body, requests=requests)

    def choice(self, index: int, text: StreamedText) -> JsonObject:
        assert text.started and text.finished
        tokens = [*text.started.prompt, *text.tokens]
        choice = self._choice(index, self._echo(index) + text.text, tokens, text, text.finished.reason)
        return choice | self._prompt_ids(index, text)

    def choice_chunk(self, index: int, event: Event, text: StreamedText) -> JsonObject | None:
        match event:
            case Started() if self.body.echo or self.body.return_token_ids:
                return self._choice(index, self._echo(index), event.prompt, text) | self._prompt_ids(
                    index, text
                )
            case Token() if event.text:
                return self._choice(index, event.text, text.take_unsent(), text)
            case Finished():
                return self._choice(index, "", text.take_unsent(), text, event.reason)
        return None

    def _echo(self, index: int) -> str:
        """Return the prompt of a choice as text, if requested."""
        prompt = self.body.prompts[index // self.body.n] if self.body.echo else ""
        return prompt if isinstance(prompt, str) else self.model.tokenizer.decode(prompt)

    def _choice(
        self,
        index: int,
        new: str,
        tokens: Sequence[ScoredToken],
        text: StreamedText,
        reason: str | None = None,
    ) -> JsonObject:
        """Return a choice with the newly generated end of the text and its tokens."""
        logprobs = None
        if self.body.logprobs is not None:
            end = len(self._echo(index)) + len(text.text)
            logprobs = completion_logprobs(self.model.tokenizer, tokens, end - len(new), end)
            if self.body.return_token_ids:
                logprobs |= chat_logprobs(self.model.tokenizer, tokens)
        return {"text": new, "index": index, "logprobs": logprobs, "finish_reason": reason}


@dataclass(frozen=True, kw_only=True)
class ChatCompletion(GenerationAnswer):
    """The assistant's next message in a conversation."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    id_prefix = "chatcmpl-"
    body: ChatBody

    @classmethod
    def of(cls, body: ChatBody, model: ServedModel, others: Iterable[ServedModel]) -> "ChatCompletion":
        """Prepare requests. Raises ApiError for messages that do not fit or a missing chat template, and
        LLMError if the template refuses the messages."""
        max_tokens = body.most_tokens
        template = chat_template(model, body.chat_template_kwargs, others)
        grammar = compile_constraint(body, model, is_answer=True)
        if body.choices and body.messages[-1].role == "assistant":
            raise invalid(
                "messages", "must end with a message of the user; one of the choices is the answer to it"
            )
        prompt, dropped_turns = encode_messages(conversation(body), template, model.context, max_tokens)
        check_choices_fit(body.choices, [prompt], model)
        requests = [
            GenerationRequest(
                model.name,
                prompt,
                sampling,
                stop_ids=template.stop_ids | model.tokenizer.eos_ids,
                top_logprobs=body.top_logprobs,
                choices=body.choices,
                grammar=grammar,
            )
            for sampling in body.samplings(min(max_tokens, model.context - len(prompt.ids)))
        ]
        return cls(model=model, body=body, requests=requests, dropped_turns=dropped_turns)

    def choice(self, index: int, text: StreamedText) -> JsonObject:
        assert text.finished
        message = {"role": "assistant", "content": text.text, "refusal": None}
        logprobs = self._logprobs(text.tokens)
        choice = {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": text.finished.reason,
        }
        return choice | self._prompt_ids(index, text)

    def choice_chunk(self, index: int, event: Event, text: StreamedText) -> JsonObject | None:
        delta: dict[str, str] = {}
        match event:
            case Started():
                delta = {"role": "assistant", "content": ""}
            case Token(text=""):
                return None
            case Token():
                delta = {"content": event.text}
        logprobs = self._logprobs(text.take_unsent())
        reason = event.reason if isinstance(event, Finished) else None
        ids = self._prompt_ids(index, text) if isinstance(event, Started) else {}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason} | ids

    def _logprobs(self, tokens: Sequence[Token]) -> JsonObject | None:
        """Return the log probabilities of the tokens of an answer, without the token that ends it."""
        shown = [token for token in tokens if not token.ends_text]
        return chat_logprobs(self.model.tokenizer, shown) if self.body.logprobs else None


# ---- log probabilities


def token_text(tokenizer: Tokenizer, token: int | None, text_bytes: bytes) -> str:
    """Return a token as text: a control token by its name, an incomplete character as bytes, in OpenAI's
    form: "bytes:\\xe3\\x81"."""
    if token is not None and not text_bytes:
        return tokenizer.label(token)
    try:
        return text_bytes.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text_bytes)


def completion_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[ScoredToken], first_offset: int, end: int
) -> JsonObject:
    """Return the four lists of a completion's log probabilities. `text_offset` counts characters in the
    choice's text, from `first_offset` to `end` (a stop string may have truncated the text there)."""
    offsets = []
    decoder = stream_decoder()
    offset = first_offset
    for token in tokens:
        offsets.append(min(offset, end))
        offset += len(decoder.decode(token.text_bytes))
    return {
        "tokens": [token_text(tokenizer, token.id, token.text_bytes) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top_logprobs(tokenizer, token) for token in tokens],
        "text_offset": offsets,
    }


def _top_logprobs(tokenizer: Tokenizer, token: ScoredToken) -> dict[str, float] | None:
    """Return the log probabilities of a token and its alternatives by text; None for the first token of a
    prompt."""
    top: dict[str, float] = {}
    for candidate in (*token.alternatives, token):
        if candidate.logprob is not None:
            text = token_text(tokenizer, candidate.id, candidate.text_bytes)
            top[text] = max(candidate.logprob, top.get(text, candidate.logprob))
    return top or None


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[ScoredToken]) -> JsonObject:
    """Return the tokens of an answer, each with its id, bytes and alternatives."""

    def scored(token: ScoredToken) -> JsonObject:
        data = token.text_bytes
        text = data.decode("utf-8", "replace") if data else token_text(tokenizer, token.id, data)
        return {"id": token.id, "token": text, "logprob": token.logprob, "bytes": list(data)}

    return {
        "content": [
            scored(token) | {"top_logprobs": list(map(scored, token.alternatives))} for token in tokens
        ],
        "refusal": None,
    }
