"""Answers of completions and chats, whole or in chunks, with log probabilities in both formats of OpenAI's
API."""

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llmcli.data.tokenizers.tokenizer import Tokenizer, stream_decoder
from llmcli.generation.engine.requests import (
    Event,
    Finished,
    Generated,
    GenerationRequest,
    Started,
    Token,
)
from llmcli.server.api.bodies import ChatBody, CompletionBody, conversation
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


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a valid request, whole or in chunks."""

    model: ServedModel
    body: CompletionBody | ChatBody
    requests: Sequence[GenerationRequest]  # n for the first prompt, n for the second, ...
    _id: str = field(default_factory=lambda: secrets.token_hex(12))
    _created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, texts: Sequence[Generated]) -> JsonObject:
        """Return the answer when all texts are complete."""
        choices = [self._choice(index, text) for index, text in enumerate(texts)]
        return self._envelope(choices) | self._usage(texts)

    def chunk(self, index: int, event: Event, text: Generated) -> JsonObject | None:
        """Return the chunk of a stream for an event of a text, which is the text so far. None if there is
        nothing to send yet."""
        match event:
            case Token(text=""):
                return None
            case Started() if isinstance(self.body, CompletionBody):
                if not (self.body.echo or self.body.return_token_ids):
                    return None
        return self._envelope([self._choice(index, text, event)], ".chunk")

    def usage_chunk(self, texts: Sequence[Generated]) -> JsonObject:
        """Return the last chunk of a stream whose usage was requested."""
        return self._envelope([], ".chunk") | self._usage(texts)

    def _envelope(self, choices: list[JsonObject], of_stream: str = "") -> JsonObject:
        is_chat = isinstance(self.body, ChatBody)
        return {
            "id": ("chatcmpl-" if is_chat else "cmpl-") + self._id,
            "object": f"chat.completion{of_stream}" if is_chat else "text_completion",
            "created": self._created,
            "model": self.model.name,
            "system_fingerprint": None,
            "choices": choices,
        }

    def _usage(self, texts: Sequence[Generated]) -> JsonObject:
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
        dropped_turns = self.requests[0].dropped_turns
        return {"usage": usage | ({"dropped_turns": dropped_turns} if dropped_turns else {})}

    def _choice(self, index: int, text: Generated, event: Event | None = None) -> JsonObject:
        """Return a choice with its new text: all of it or, in a stream, the part that belongs to an event."""
        assert text.started
        new = ""
        match event:
            case None:
                new = self._echo(index) + text.text
                tokens = [*text.started.prompt, *text.tokens]
            case Started():
                new = self._echo(index)
                tokens = [*event.prompt]
            case _:
                new = event.text if isinstance(event, Token) else ""
                tokens = text.take_unsent()
        choice: JsonObject = {"index": index}
        if isinstance(self.body, CompletionBody):
            choice = {"text": new, "index": index}
        elif event is None:
            choice["message"] = {"role": "assistant", "content": new, "refusal": None}
        else:
            role = {"role": "assistant"} if isinstance(event, Started) else {}
            choice["delta"] = {} if isinstance(event, Finished) else role | {"content": new}
        choice["logprobs"] = self._logprobs(index, tokens, new, text)
        choice["finish_reason"] = text.finished and text.finished.reason
        if self.body.return_token_ids and (event is None or isinstance(event, Started)):
            choice["prompt_token_ids"] = list(text.started.ids)
            choice["prompt_prefix_tokens"] = self.requests[index].prompt.added
        return choice

    def _echo(self, index: int) -> str:
        """Return the prompt of a choice as text, if requested."""
        if isinstance(self.body, ChatBody) or not self.body.echo:
            return ""
        prompt = self.body.prompts[index // self.body.n]
        return prompt if isinstance(prompt, str) else self.model.tokenizer.decode(prompt)

    def _logprobs(self, index: int, tokens: list[Token], new: str, text: Generated) -> JsonObject | None:
        """Return the log probabilities of the tokens of `new`, the end of a text, if requested."""
        body, tokenizer = self.body, self.model.tokenizer
        if isinstance(body, ChatBody):
            shown = [token for token in tokens if not token.ends_text]
            return chat_logprobs(tokenizer, shown) if body.logprobs else None
        if body.logprobs is None:
            return None
        end = len(self._echo(index)) + len(text.text)
        logprobs = completion_logprobs(tokenizer, tokens, end - len(new), end)
        return logprobs | (chat_logprobs(tokenizer, tokens) if body.return_token_ids else {})


def completion(body: CompletionBody, model: ServedModel) -> Answer:
    """Prepare to continue prompts. Raises ApiError for a prompt that the model cannot read, LLMError for text
    without tokens."""
    grammar = compile_constraint(body, model, is_answer=False)
    samplings = body.samplings(body.most_tokens)
    scores_prompt = body.echo and body.logprobs is not None
    cuts = body.truncate_prompt_tokens is not None
    prompts = [
        encode_prompt("prompt", prompt, model, literal=body.echo, cuts=cuts, written=body.generated_tokens)
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
    return Answer(model=model, body=body, requests=requests)


def chat_completion(body: ChatBody, model: ServedModel, others: Iterable[ServedModel]) -> Answer:
    """Prepare the assistant's next message in a conversation. Raises ApiError for messages that do not fit or
    a missing chat template, and LLMError if the template refuses the messages."""
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
            dropped_turns=dropped_turns,
            grammar=grammar,
        )
        for sampling in body.samplings(min(max_tokens, model.context - len(prompt.ids)))
    ]
    return Answer(model=model, body=body, requests=requests)


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
    tokenizer: Tokenizer, tokens: Sequence[Token], first_offset: int, end: int
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


def _top_logprobs(tokenizer: Tokenizer, token: Token) -> dict[str, float] | None:
    """Return the log probabilities of a token and its alternatives by text; None for the first token of a
    prompt."""
    top: dict[str, float] = {}
    for candidate in (*token.alternatives, token):
        if candidate.logprob is not None:
            text = token_text(tokenizer, candidate.id, candidate.text_bytes)
            top[text] = max(candidate.logprob, top.get(text, candidate.logprob))
    return top or None


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> JsonObject:
    """Return the tokens of an answer, each with its id, bytes and alternatives."""

    def scored(token: Token) -> JsonObject:
        data = token.text_bytes
        text = data.decode("utf-8", "replace") if data else token_text(tokenizer, token.id, data)
        return {"id": token.id, "token": text, "logprob": token.logprob, "bytes": list(data)}

    return {
        "content": [
            scored(token) | {"top_logprobs": list(map(scored, token.alternatives))} for token in tokens
        ],
        "refusal": None,
    }
