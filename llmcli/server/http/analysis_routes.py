"""The routes that show what a model does: /v1/explain, /v1/next, /v1/memory, the card and examples of a model."""

from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from llmcli.analysis.explain import Explanation, choose_subject, explain
from llmcli.data.conversations.example_prompt import example_prompts
from llmcli.errors import LLMError
from llmcli.evaluation.memorization import MAX_SEARCHED_BYTES, find_verbatim
from llmcli.evaluation.training_text import TrainingText, find_training_texts, recorded_names
from llmcli.formats.headers import read_header
from llmcli.generation.next_words import NextWords, max_evaluations, next_words
from llmcli.generation.token_healing import Prompt
from llmcli.models.ngram_runtime import network_of
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import Runtime
from llmcli.pages.explanation_json import explanation_json
from llmcli.pages.html import inspection_data
from llmcli.server.api.chat import encode_messages, read_messages, read_template, require_template
from llmcli.server.api.completions import check_length
from llmcli.server.api.fields import Fields
from llmcli.server.api.models import ServedModel
from llmcli.server.errors import ApiError, invalid
from llmcli.server.http.request_log import entry_of
from llmcli.server.http.service import Check, json_response, read_object, service_of
from llmcli.server.limits import MAX_EXPLAIN_CHARACTERS, MAX_MEMORY_CHARACTERS, MAX_NEXT_WORDS

DEFAULT_WORDS = 10
MAX_EXAMPLES = 4  # questions, and prompts
MAX_EXAMPLE_CHARACTERS = 80  # of a question
MAX_EXAMPLE_BYTES = 4_000_000  # of the training files that are searched for questions


# ---- next words


async def next_word_list(request: Request) -> Response:
    """POST /v1/next: the most likely next words after a text."""
    service, body = service_of(request), Fields(await read_object(request))
    model = service.models.find(body.text("model", "") or None)
    prompt = body.text("prompt")
    count = body.integer("n", DEFAULT_WORDS, 1, MAX_NEXT_WORDS)
    body.refuse_others()
    entry_of(request.scope).model, entry_of(request.scope).prompt = model.name, prompt
    await service.search(request, lambda _: _check_prompt(prompt, model))
    found = await service.analyze(
        request, model.name, lambda runtime, check: _next_words(runtime, model, prompt, check)
    )
    return await json_response(lambda: {"model": model.name} | found.as_json(prompt, count))


def _check_prompt(prompt: str, model: ServedModel) -> None:
    if not prompt:
        raise invalid("prompt", "is empty; give a text to continue")
    check_length(len(Prompt.of(prompt, model.tokenizer).ids), model)


def _next_words(runtime: Runtime, model: ServedModel, prompt: str, check: Check) -> NextWords:
    return next_words(runtime, model.tokenizer, prompt, max_evaluations(model.source.parameters), check=check)


# ---- explain


@dataclass(frozen=True)
class _Explained:
    """An explanation, with what is shown beside it."""

    explanation: Explanation
    words: NextWords  # none after a conversation
    expert: dict[str, object] | None  # of an ensemble, the model that is shown


async def explain_prompt(request: Request) -> Response:
    """POST /v1/explain: what happens inside the model while it reads a prompt, or messages."""
    service, body = service_of(request), Fields(await read_object(request))
    model = service.models.find(body.text("model", "") or None)
    count = body.integer("n", DEFAULT_WORDS, 1, MAX_NEXT_WORDS)
    literal = body.flag("literal")
    text, prompt = await service.search(request, lambda _: _read_prompt(body, model))
    body.refuse_others()
    entry_of(request.scope).model, entry_of(request.scope).prompt = model.name, text
    found = await service.analyze(
        request,
        model.name,
        lambda runtime, check: _explain(runtime, model, prompt, count, literal=literal, check=check),
    )
    return await json_response(
        lambda: (
            {"model": model.name}
            | explanation_json(found.explanation, found.words, model.tokenizer, text, count)
            | ({"expert": found.expert} if found.expert else {})
        )
    )


def _read_prompt(body: Fields, model: ServedModel) -> tuple[str, str | Prompt]:
    """(title, prompt) of what is analyzed: a text, or a conversation, whose last answer may be incomplete."""
    if not body.given("messages"):
        text = body.text("prompt", max_characters=MAX_EXPLAIN_CHARACTERS)
        _check_prompt(text, model)
        return text, text
    messages = read_messages(body.raw("messages"))
    template = read_template(body, require_template(model))
    prompt, _ = encode_messages(messages, template, model.context, 1)
    return messages[-1].content, prompt


def _explain(
    runtime: Runtime, model: ServedModel, prompt: str | Prompt, count: int, *, literal: bool, check: Check
) -> _Explained:
    """In the thread of analyses."""
    tokenizer = model.tokenizer
    subject = choose_subject(
        model.source, tokenizer, prompt, literal=literal, on_note=lambda note: None, runtime=runtime
    )
    network = network_of(runtime)
    if isinstance(network, NumpyRuntime):  # in memory: the file is not needed, whatever has become of it
        reader = network if network is runtime else network.fork()
    else:
        reader = model.readable_runtime(subject.checkpoint)
    found = explain(
        reader, tokenizer, prompt, literal=literal, candidates=count,
        predictor=subject.predictor, check=check,
    )  # fmt: skip
    words = NextWords((), 1.0, 0)
    if isinstance(prompt, str):
        runtime.rewind()
        words = _next_words(runtime, model, prompt, check)
    return _Explained(found, words, subject.expert)


# ---- memorization


async def memory(request: Request) -> Response:
    """POST /v1/memory: which passages of a text stand verbatim in the training text."""
    service, body = service_of(request), Fields(await read_object(request))
    model = service.models.find(body.text("model", "") or None)
    text = body.text("text", max_characters=MAX_MEMORY_CHARACTERS)
    body.refuse_others()
    entry_of(request.scope).model, entry_of(request.scope).prompt = model.name, text
    found = await service.search(request, lambda check: _search(model, text, check))
    return await json_response(lambda: {"model": model.name} | found)


def _search(model: ServedModel, text: str, check: Check) -> dict[str, object]:
    texts = [replace(one, corpus=one.corpus.cut(0, MAX_SEARCHED_BYTES)) for one in training_texts(model)]
    names = [name for one in texts for name in one.names]
    return find_verbatim([text], texts, check=check)[0].as_json(text, names)


def training_texts(model: ServedModel) -> list[TrainingText]:
    """The training text of a model, or of each model of an ensemble. Raises ApiError if it is not at hand."""
    try:
        return find_training_texts(model.source.records, model.path)[0]
    except LLMError as error:
        names = ", ".join(dict.fromkeys(name for record in model.source.records for name in recorded_names(record)))
        message = (
            f"the training text of {model.name}, {names}, is missing or has changed; put it beside the model"
            if names
            else f"{model.name} does not record its training text"
        )
        raise ApiError(message, 404, code="training_text_not_found") from error


# ---- the card


async def card(request: Request) -> Response:
    """GET /v1/models/{id}/card: what `llm inspect` shows of a model."""
    service = service_of(request)
    model = service.models.find(request.path_params["id"])
    return await json_response(lambda: _card(model))


def _card(model: ServedModel) -> dict[str, Any]:
    model.check_unchanged()
    data = inspection_data(read_header(model.path), lambda note: None)
    return model.as_json() | data | {"file": model.path.name}


# ---- examples


async def examples(request: Request) -> Response:
    """GET /v1/models/{id}/examples: a few prompts for a model, to begin with."""
    service = service_of(request)
    model = service.models.find(request.path_params["id"])
    return await json_response(lambda: _examples(model))


def _examples(model: ServedModel) -> dict[str, Any]:
    """Questions that it was trained on, if they are at hand, and beginnings of sentences that it wrote during
    training."""
    samples = [one for record in model.source.records if (one := record.get("samples", {})).get("texts")]
    texts = [f"{one.get('prompt', '')} {one['texts'][-1][1]}" for one in samples]
    prompts = [prompt for text in texts for prompt in example_prompts(text)]
    questions = _questions(model) if model.template else []
    if model.template and not questions:
        questions = [one["prompt"] for one in samples if one.get("prompt")]
    return {"questions": questions[:MAX_EXAMPLES], "prompts": prompts[:MAX_EXAMPLES]}


def _questions(model: ServedModel) -> list[str]:
    """First messages of the training conversations, spread over them."""
    files = [file for record in model.source.records for file in record.get("corpus", []) if isinstance(file, dict)]
    if sum(file.get("bytes", 0) for file in files) > MAX_EXAMPLE_BYTES:
        return []
    try:
        conversations = [one for text in training_texts(model) for one in text.conversations]
    except (ApiError, OSError):
        return []
    asked = [one.messages[0].content for one in conversations if one.messages[0].role == "user"]
    short = list(dict.fromkeys(text for text in asked if len(text) <= MAX_EXAMPLE_CHARACTERS))
    return short[:: max(1, -(-len(short) // MAX_EXAMPLES))]
