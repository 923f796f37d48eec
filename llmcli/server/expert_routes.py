"""POST /v1/experts: which experts were at work for each token of a text."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from llmcli.errors import LLMError
from llmcli.generation.prompt import Prompt
from llmcli.models.runtime import Runtime, RuntimeWithExperts
from llmcli.server.chat import encode_messages, read_messages, require_template
from llmcli.server.completions import check_length, read_ids
from llmcli.server.errors import ApiError, invalid
from llmcli.server.fields import Fields
from llmcli.server.models import ServedModel
from llmcli.server.request_log import entry_of
from llmcli.server.service import json_response, read_object, service_of


async def expert_weights(request: Request) -> Response:
    """The weights of the experts for each of `token_ids`, which follow a `prompt` or the `messages` of a conversation:
    of an ensemble those of its models, of a sparse model those of its last layer, as `llm generate --experts`."""
    service, body = service_of(request), Fields(await read_object(request))
    model = service.models.find(body.text("model", "") or None)
    if not model.experts:
        raise ApiError(f"{model.name} has no experts", param="model", code="no_experts")
    entry_of(request.scope).model = model.name
    prompt, ids = await service.search(lambda: _read(body, model))
    weights = await service.analyze(model.name, lambda runtime: _weights(runtime, prompt, ids))
    return await json_response(lambda: {"model": model.name, "experts": model.experts, "weights": weights})


def _read(body: Fields, model: ServedModel) -> tuple[list[int], list[int]]:
    """(the tokens of the prompt, those that follow it)"""
    ids = read_ids("token_ids", body.raw("token_ids"), model)
    if not ids:
        raise invalid("token_ids", "is empty; give the ids of a text")
    if body.given("messages"):
        messages = read_messages(body.raw("messages"))
        prompt, _ = encode_messages(messages, require_template(model), model.context, len(ids))
    else:
        prompt = Prompt.of(body.text("prompt"), model.tokenizer)
    check_length(len(prompt.ids) + len(ids) - 1, model)
    return prompt.ids, ids


def _weights(runtime: Runtime, prompt: Sequence[int], ids: Sequence[int]) -> list[list[float]]:
    """The weights of the experts [T][n] that predicted each of `ids`; in the engine's thread."""
    if not isinstance(runtime, RuntimeWithExperts):
        raise LLMError("the experts are only known on the CPU; serve the model without --quantize and --device")
    runtime.prefill(prompt)
    rows = [runtime.expert_weights()[-1]]
    for token in ids[:-1]:
        runtime.step(token)
        rows.append(runtime.expert_weights()[-1])
    return [[round(float(weight), 4) for weight in row] for row in rows]
