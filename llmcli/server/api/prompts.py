"""Tokenization of the prompts in requests."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmcli.config import Grammar
from llmcli.data.conversations.chat_template import ChatTemplate
from llmcli.data.conversations.messages import Message
from llmcli.errors import LLMError, brief
from llmcli.generation.chat import count_turns, fit
from llmcli.generation.grammar import CompiledGrammar, compile_grammar
from llmcli.generation.token_healing import Prompt
from llmcli.server.api.bodies import GenerationBody
from llmcli.server.api.models import MAX_LISTED, ServedModel
from llmcli.server.errors import ApiError, invalid


def encode_prompt(
    prompt: str | list[int], model: ServedModel, *, literal: bool, cuts: bool = False, written: int = 0
) -> Prompt:
    """Tokenize a prompt. Unless `literal`, the last word of a text may continue, as in `llm generate`. With
    `cuts`, a long prompt may exceed the context, and only its end is used. The model wrote the last `written`
    of a prompt's token ids."""
    if isinstance(prompt, str):
        encoded = Prompt.of(prompt, model.tokenizer, literal=literal)
    else:
        check_ids("prompt", prompt, model)
        encoded = Prompt(prompt, written=written)
    if not cuts and len(encoded.ids) > model.context:
        raise invalid(
            "prompt",
            f"has {len(encoded.ids):,} tokens, and the context length of {model.name} is {model.context:,}; use a "
            "shorter text",
            "context_length_exceeded",
        )
    return encoded


def check_ids(param: str, ids: Sequence[int], model: ServedModel) -> None:
    """Raise ApiError for an id outside the vocabulary."""
    size = model.tokenizer.vocab_size
    if outside := next((token for token in ids if not 0 <= token < size), None):
        raise invalid(param, f"must have token ids from 0 to {size - 1}, found {brief(outside)}")


def compile_form(body: GenerationBody, model: ServedModel, *, is_answer: bool) -> CompiledGrammar | None:
    """Compile the grammar of the text, if there is one. Raises ApiError for one that a text cannot have, and
    for biases of tokens outside the vocabulary."""
    check_ids("logit_bias", list(body.logit_bias), model)
    name, form = body.form
    if not isinstance(form, Grammar):
        return None
    try:
        return compile_grammar(form, model.tokenizer, is_answer=is_answer)
    except LLMError as error:
        raise ApiError(f"{name}: {error}", param=name) from error


def check_choices_fit(choices: Sequence[str], prompts: Sequence[Prompt], model: ServedModel) -> None:
    """Raise ApiError for a choice that does not fit the context after the longest prompt; for other
    tokenizations of it, one token is kept free."""
    taken = max(len(prompt.ids) for prompt in prompts)
    for choice in choices:
        if taken + (tokens := len(model.tokenizer.encode(choice))) >= model.context:
            raise invalid(
                "structured_outputs.choice",
                f"has {brief(choice)} with {tokens:,} tokens after {taken:,} of the prompt, and the context length of "
                f"{model.name} is {model.context:,}; use a shorter one",
                "context_length_exceeded",
            )


def chat_template(
    model: ServedModel, variables: Mapping[str, Any] | None, others: Iterable[ServedModel] = ()
) -> ChatTemplate:
    """Return a model's chat template with these variables. If it has none, raises ApiError that names the
    models in `others` that have one."""
    if model.template is None:
        able = [other.name for other in others if other.template is not None][:MAX_LISTED]
        hint = f", or a model that can chat: {', '.join(able)}" if able else ""
        raise ApiError(
            f"{model.name} has no chat template: it continues text and was not trained on conversations; use "
            f"/v1/completions{hint}",
            param="model",
            code="no_chat_template",
        )
    return model.template.with_variables(variables) if variables else model.template


def encode_messages(
    messages: Sequence[Message], template: ChatTemplate, context: int, max_tokens: int
) -> tuple[Prompt, int]:
    """Return (tokens of a conversation with the header of the answer, number of old turns left out, as in
    `llm chat`). An assistant message at the end is the beginning of the answer. Raises ApiError if the last
    turn alone does not fit."""
    prefill = messages[-1].content if messages[-1].role == "assistant" else ""
    asked = messages[:-1] if messages[-1].role == "assistant" else messages
    beginning = Prompt.of(prefill, template.tokenizer) if prefill else Prompt([])
    ids, dropped = fit(asked, template, context - len(beginning.ids), max_tokens)
    prompt = Prompt(ids + beginning.head, beginning.tail, beginning.in_word)
    if len(prompt.ids) >= context:
        raise invalid(
            "messages",
            f"have {len(prompt.ids):,} tokens even without earlier turns, and the context length is "
            f"{context:,}; use a shorter text",
            "context_length_exceeded",
        )
    return prompt, count_turns(dropped)
