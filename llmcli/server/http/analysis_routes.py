"""Routes that analyze a model: /v1/explain, /v1/next, /v1/memory, /v1/experts, and prompts to try."""

from dataclasses import replace
from typing import Any

from llmcli.analysis.comparison import compare
from llmcli.analysis.explain import choose_explained_model, explain
from llmcli.data.conversations.example_prompt import example_prompts
from llmcli.data.tokenizers.tokenizer import Tokenizer, stream_decoder
from llmcli.errors import WRONG_USAGE, LLMError
from llmcli.evaluation.memorization import MAX_SEARCHED_BYTES, find_verbatim
from llmcli.evaluation.training_text import TrainingText, find_training_texts
from llmcli.formats.checkpoint import Checkpoint
from llmcli.generation.next_words import next_tokens, next_words
from llmcli.generation.token_healing import Prompt, last_tokens
from llmcli.models.ngram_runtime import network_of
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import Check, Runtime
from llmcli.pages.explanation_json import comparison_json, explanation_json
from llmcli.server.api.bodies import ExpertsBody, ExplainBody, MemoryBody, NextBody, PromptBody, conversation
from llmcli.server.api.models import ServedModel
from llmcli.server.api.prompts import chat_template, check_ids, encode_messages, encode_prompt
from llmcli.server.api.schema import JsonObject
from llmcli.server.errors import ApiError, invalid
from llmcli.server.http.service import Call

MAX_EXAMPLES = 4  # maximum number of questions, or of prompts
MAX_EXAMPLE_CHARACTERS = 80  # per question
MAX_EXAMPLE_BYTES = 4_000_000  # training files searched for questions


def _encode(body: PromptBody, model: ServedModel, new_tokens: int, **options: Any) -> Prompt:
    """Tokenize the messages, or the prompt with the options of `encode_prompt`."""
    if body.messages is None:
        return encode_prompt("prompt", body.prompt, model, **options)
    template = chat_template(model, body.chat_template_kwargs)
    return encode_messages(conversation(body), template, model.context, new_tokens)[0]


def _text(prompt: Any, model: ServedModel) -> str:
    return prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)


# ---- next words


async def next_word_list(call: Call, body: NextBody) -> JsonObject:
    """The most likely next words after a text."""
    call.entry.prompt = str(body.prompt)
    cuts = body.truncate_prompt_tokens is not None
    written = body.generated_tokens
    prompt = await call.search(
        lambda _: encode_prompt("prompt", body.prompt, call.model, cuts=cuts, written=written)
    )
    tokenizer = call.model.tokenizer
    title = _text(body.prompt, call.model)
    if body.token_id is not None:
        check_ids("token_id", [body.token_id], call.model)
    answer: JsonObject = {"model": call.model.name}
    if body.unit == "tokens":
        tokens = await call.analyze(lambda runtime: next_tokens(runtime, tokenizer, prompt, body.sampling))
        answer |= _tokens_json(tokens, tokenizer, body, title)
    else:
        words = await call.analyze(
            lambda runtime: next_words(
                runtime,
                tokenizer,
                prompt,
                sampling=body.sampling,
                evaluations=body.max_evaluations,
            )
        )
        answer |= words.as_json(title, body.n)
        if body.return_token_ids:
            for shown, word in zip(answer["next"], words.words, strict=False):
                shown["added"] = word.added
    if body.return_token_ids:
        answer |= {"tokens": [_token_json(tokenizer, i) for i in prompt.ids], "prefix_tokens": prompt.added}
    return answer


def _token_json(tokenizer: Tokenizer, token: int) -> JsonObject:
    return {"id": token, "text": tokenizer.label(token), "bytes": list(tokenizer.token_bytes[token])}


def _tokens_json(
    tokens: list[tuple[int | None, bytes, float]], tokenizer: Tokenizer, body: NextBody, prompt: str
) -> JsonObject:
    """Convert next tokens to JSON, like `NextWords.as_json`. A control token adds no text and is shown by its
    name."""
    shown = [
        {
            "id": token,
            "text": stream_decoder().decode(added) or ("" if token is None else tokenizer.label(token)),
            "bytes": list(added),
            "probability": round(probability, 6),
        }
        for token, added, probability in tokens[: body.n]
    ]
    rest = max(0.0, 1 - sum(probability for _, _, probability in tokens[: body.n]))
    answer: JsonObject = {"prompt": prompt, "next": shown, "unexplored": round(rest, 6)}
    if body.token_id is not None:
        ranks = {token: (rank, probability) for rank, (token, _, probability) in enumerate(tokens, 1)}
        rank, probability = ranks.get(body.token_id, (len(tokens) + 1, 0.0))
        answer["token"] = _token_json(tokenizer, body.token_id) | {"probability": probability, "rank": rank}
    return answer


# ---- explain


async def explain_prompt(call: Call, body: ExplainBody) -> JsonObject:
    """How the model arrives at its prediction after a prompt, or in an answer; with `without` or `compare`,
    two predictions."""
    if body.token_id is not None:
        check_ids("token_id", [body.token_id], call.model)
    call.entry.prompt = body.messages[-1].message.content if body.messages else str(body.prompt)
    options = {"literal": body.literal, "cuts": body.truncate_prompt_tokens is not None}

    def encode(_: Check) -> tuple[Prompt, Prompt | None]:
        prompt = _encode(body, call.model, 1, written=body.generated_tokens, **options)
        other = body.compare
        return prompt, None if other is None else encode_prompt("compare", other, call.model, **options)

    prompt, other = await call.search(encode)
    return await call.analyze(lambda runtime: _explain(runtime, call.model, body, prompt, other))


def _explain(
    runtime: Runtime,
    model: ServedModel,
    body: ExplainBody,
    prompt: Prompt,
    other: Prompt | None,
) -> JsonObject:
    """Runs in a thread of the engine."""

    def open_network(checkpoint: Checkpoint) -> NumpyRuntime:
        network = model.readable_runtime(checkpoint)
        network.check = network_of(runtime).check
        return network

    title = body.messages[-1].message.content if body.messages else _text(body.prompt, model)
    subject = choose_explained_model(
        model.source,
        model.tokenizer,
        prompt,
        on_note=lambda note: None,
        runtime=runtime,
        open_network=open_network,
    )
    options: dict[str, Any] = {
        "candidates": body.n,
        "token": body.token_id,
        "predictor": subject.predictor,
        "ablates": "effects" in body.include,
        "evaluations": body.max_evaluations if "next" in body.include and body.messages is None else 0,
    }
    attention = "attention" in body.include
    if not body.without and other is None:
        explanation = explain(subject.network, model.tokenizer, prompt, **options)
        position = _position(body, len(explanation.ids))
        shown = explanation_json(explanation, title, body.n, position=position, attention=attention)
    else:
        try:
            comparison = compare(
                subject.network, model.tokenizer, prompt, other=other, without=body.without, **options
            )
        except LLMError as error:
            if error.exit_code != WRONG_USAGE:
                raise
            raise ApiError(str(error).replace("`", ""), param="without") from error
        titles = title, title if body.compare is None else _text(body.compare, model)
        position = _position(body, min(len(comparison.first.ids), len(comparison.second.ids)))
        shown = comparison_json(comparison, titles, body.n, position=position, attention=attention)
    return {"model": model.name} | shown | subject.facts


def _position(body: ExplainBody, tokens: int) -> int | None:
    """Return the requested position. Raises ApiError if the prompt has no such token."""
    if body.position is not None and not -tokens <= body.position < tokens:
        raise invalid("position", f"must be from {-tokens} to {tokens - 1}, found {body.position}")
    return body.position


# ---- experts


def check_experts(model: ServedModel) -> None:
    """Raise ApiError if a model has no experts."""
    if not model.experts:
        raise ApiError(f"{model.name} has no experts", param="model", code="no_experts")


async def expert_weights(call: Call, body: ExpertsBody) -> JsonObject:
    """The weights of the experts for each token, as `llm generate --experts` shows them."""
    model = call.model
    ids = body.token_ids
    check_ids("token_ids", ids, model)
    prompt = await call.search(lambda _: _encode(body, model, len(ids)))
    bos_ids = model.tokenizer.bos_ids
    weights = await call.analyze(lambda runtime: _expert_weights(runtime, prompt.ids, ids, bos_ids))
    return {"model": model.name, "experts": model.experts, "weights": weights}


def _expert_weights(
    runtime: Runtime, prompt: list[int], ids: list[int], bos_ids: list[int]
) -> list[list[float]]:
    """Return the weights [T][n] of the experts that predicted each of `ids`; runs in a thread of the engine.
    When the context is full, its oldest tokens are removed, as in generation."""
    read = list(prompt)
    rows = []
    for token in ids:
        if runtime.length == runtime.context:
            runtime.shift(read[:-1])
        runtime.prefill(read[-1:] if runtime.length else last_tokens(read, runtime.context, bos_ids))
        rows.append(runtime.expert_weights()[-1])
        read.append(token)
    return [[round(float(weight), 4) for weight in row] for row in rows]


# ---- memorization


async def memory(call: Call, body: MemoryBody) -> JsonObject:
    """The passages of a text that occur verbatim in the training text."""
    call.entry.prompt = body.text

    def search(check: Check) -> JsonObject:
        texts = [
            replace(text, corpus=text.corpus.cut(0, MAX_SEARCHED_BYTES))
            for text in training_texts(call.model)
        ]
        names = [name for text in texts for name in text.names]
        return find_verbatim([body.text], texts, check=check)[0].as_json(body.text, names)

    return {"model": call.model.name} | await call.search(search)


def training_texts(model: ServedModel) -> list[TrainingText]:
    """Find the training text of a model, or of each model in an ensemble. Raises ApiError if it is not
    available."""
    try:
        return find_training_texts(model.source.records, model.path)[0]
    except LLMError as error:
        files = [file.name for record in model.source.records for file in record.corpus]
        names = ", ".join(dict.fromkeys(files))
        message = (
            f"the training text of {model.name}, {names}, is missing or has changed; put it next to the model"
            if names
            else f"{model.name} does not record its training text"
        )
        raise ApiError(message, 404, code="training_text_not_found") from error


# ---- examples


def examples(call: Call) -> JsonObject:
    """Prompts to try: questions that the model was trained on, and beginnings of sentences that it wrote
    then."""
    model = call.model
    samples = [record.samples for record in model.source.records if record.samples.texts]
    texts = [f"{sample.prompt} {sample.texts[-1][1]}" for sample in samples]
    prompts = [prompt for text in texts for prompt in example_prompts(text)]
    questions = _questions(model) if model.template else []
    if model.template and not questions:
        questions = [sample.prompt for sample in samples if sample.prompt]
    return {"questions": questions[:MAX_EXAMPLES], "prompts": prompts[:MAX_EXAMPLES]}


def _questions(model: ServedModel) -> list[str]:
    """Return first messages of training conversations, evenly spread."""
    if sum(file.bytes for record in model.source.records for file in record.corpus) > MAX_EXAMPLE_BYTES:
        return []
    try:
        conversations = [
            conversation for text in training_texts(model) for conversation in text.conversations
        ]
    except (ApiError, OSError):
        return []
    questions = [first.content for first in (c.messages[0] for c in conversations) if first.role == "user"]
    short = list(dict.fromkeys(text for text in questions if len(text) <= MAX_EXAMPLE_CHARACTERS))
    return short[:: max(1, -(-len(short) // MAX_EXAMPLES))]
