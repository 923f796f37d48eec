"""The routes for tokens: /tokenize, /detokenize and /tokenizer_info, with the fields of vLLM and llama.cpp.

lm_eval reads them to evaluate a model over HTTP.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.server.api.chat import read_messages, read_template, require_template
from llmcli.server.api.completions import read_ids
from llmcli.server.api.fields import Fields
from llmcli.server.api.models import Models, ServedModel
from llmcli.server.engine.token_text import token_text
from llmcli.server.http.service import json_response, read_object, service_of


async def tokenize(request: Request) -> Response:
    """POST /tokenize."""
    body, models = await read_object(request), service_of(request).models
    return await json_response(lambda: _tokens_json(Fields(body), models))


def _tokens_json(fields: Fields, models: Models) -> dict[str, Any]:
    model = models.find(fields.text("model", "") or None)
    ids = _ids(fields, model)
    with_pieces = fields.flag("with_pieces")
    fields.refuse({"parse_special": (False,), "return_token_strs": (False,)})
    fields.refuse_others()
    tokens: list[Any] = list(ids)
    if with_pieces:
        data = model.tokenizer.token_bytes
        tokens = [{"id": token, "piece": token_text(model.tokenizer, token, data[token])} for token in ids]
    return {"tokens": tokens, "count": len(ids), "max_model_len": model.context}


def _ids(fields: Fields, model: ServedModel) -> list[int]:
    """The ids of `prompt`, `content` or `messages`."""
    if fields.given("messages"):
        prompts = fields.flag("add_generation_prompt", True)
        messages = read_messages(fields.raw("messages"))
        fields.refuse({"add_special_tokens": (False,)})
        template = read_template(fields, require_template(model))
        return template.encode(messages, add_generation_prompt=prompts)
    text = fields.text("content" if fields.given("content") else "prompt")
    special = fields.flag("add_special_tokens", fields.flag("add_special"))
    tokenizer = model.tokenizer
    # lm_eval asks for the id of the token that ends a text by its name; in any other text, a name stays text
    ids = [tokenizer.control_ids[text]] if text in tokenizer.control_ids else tokenizer.encode(text)
    return (tokenizer.bos_ids if special else []) + ids


async def detokenize(request: Request) -> Response:
    """POST /detokenize."""
    body, models = await read_object(request), service_of(request).models
    return await json_response(lambda: _text_json(Fields(body), models))


def _text_json(fields: Fields, models: Models) -> dict[str, Any]:
    model = models.find(fields.text("model", "") or None)
    ids = read_ids("tokens", fields.raw("tokens"), model)
    fields.refuse_others()
    text = _text(model.tokenizer, ids)
    return {"prompt": text, "content": text}


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of ids; of a control token by itself its name."""
    return tokenizer.label(ids[0]) if len(ids) == 1 and not tokenizer.token_bytes[ids[0]] else tokenizer.decode(ids)


async def tokenizer_info(request: Request) -> Response:
    """GET /tokenizer_info."""
    model = service_of(request).models.find(request.query_params.get("model"))
    return await json_response(lambda: _info(model))


def _info(model: ServedModel) -> dict[str, Any]:
    tokenizer = model.tokenizer
    eos = tokenizer.label(tokenizer.eos_id)
    return {
        "model": model.name,
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "eos_token": eos,
        "eos_token_id": tokenizer.eos_id,
        "bos_token": tokenizer.label(tokenizer.bos_id) if tokenizer.bos_ids else None,
        "pad_token": eos,
        "add_bos_token": bool(tokenizer.bos_ids),
        "model_max_length": model.context,
        "chat_template": model.template.source if model.template else None,
    }
