"""POST /v1/experts: which experts were at work for each token of a text."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from llmcli.errors import LLMError
from llmcli.generation.generator import next_input
from llmcli.generation.token_healing import Prompt
from llmcli.models.runtime import Runtime, RuntimeWithExperts
from llmcli.server.api.chat import encode_messages, read_messages, read_template, require_template
from llmcli.server.api.completions import check_length, read_ids
from llmcli.server.api.fields import Fields
from llmcli.server.api.models import ServedModel
from llmcli.server.errors import ApiError, invalid
from llmcli.server.http.request_log import entry_of
from llmcli.server.http.service import Check, json_response, read_object, service_of
from llmcli.server.limits import MAX_TOKENS


async def expert_weights(request: Request) -> Response:
    """The weights of the experts for each of `token_ids`, which follow a `prompt` or the `messages` of a conversation:
    of an ensemble those of its models, of a sparse model those of its last layer, as `llm generate --experts`."""
    service, body = service_of(request), Fields(await read_object(request))
    model = service.models.find(body.text("model", "") or None)
    if not model.experts:
        raise ApiError(f"{model.name} has no experts", param="model", code="no_experts")
    entry_of(request.scope).model = model.name
    prompt, ids = await service.search(request, lambda _: _read(body, model))
    body.refuse_others()
    weights = await service.analyze(
        request, model.name, lambda runtime, check: _weights(runtime, prompt, ids, model.context, check)
    )
    return await json_response(lambda: {"model": model.name, "experts": model.experts, "weights": weights})


def _read(body: Fields, model: ServedModel) -> tuple[list[int], list[int]]:
    """(the tokens of the prompt, those that follow it)"""
    ids = read_ids("token_ids", body.raw("token_ids"), model)
    if not ids:
        raise invalid("token_ids", "is empty; give the ids of a text")
    if len(ids) > MAX_TOKENS:
        raise invalid("token_ids", f"must have at most {MAX_TOKENS:,} ids, found {len(ids):,}")
    if body.given("messages"):
        messages = read_messages(body.raw("messages"))
        template = read_template(body, require_template(model))
        prompt, _ = encode_messages(messages, template, model.context, len(ids))
    else:
        prompt = Prompt.of(body.text("prompt"), model.tokenizer)
    check_length(len(prompt.ids), model)
    return prompt.ids, ids


def _weights(
    runtime: Runtime, prompt: Sequence[int], ids: Sequence[int], context: int, check: Check
) -> list[list[float]]:
    """The weights of the experts [T][n] that predicted each of `ids`, where a full context continues as when the text
    was generated; in the thread of analyses."""
    if not isinstance(runtime, RuntimeWithExperts):
        raise LLMError("the experts are only known on the CPU; serve the model without --quantize and --device")
    read, rows = list(prompt), []
    for token in ids:
        check()
        keep, new = next_input(read, runtime.length, context)
        if not keep:
            runtime.rewind()
        runtime.prefill(new)
        rows.append(runtime.expert_weights()[-1])
        read.append(token)
    return [[round(float(weight), 4) for weight in row] for row in rows]
