"""Routes that describe the server and its models: health, the page, models and their tokenizers."""

from starlette.responses import HTMLResponse, JSONResponse, Response

from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.loading import read_header
from llmcli.generation.token_healing import Prompt
from llmcli.pages.live_page import served_facts, served_page
from llmcli.pages.model_facts import facts
from llmcli.server.api.bodies import DetokenizeBody, TokenizeBody, conversation
from llmcli.server.api.prompts import chat_template, check_ids
from llmcli.server.api.schema import JsonObject
from llmcli.server.http.service import Call


async def health(call: Call) -> Response:
    """Whether the server is ready."""
    engine = call.service.engine
    if failure := engine.failure:
        engine.start()  # so that it may be healthy at the next check
        return JSONResponse({"status": "failed", "error": failure}, 503, {"Retry-After": "1"})
    if call.service.loading:
        return JSONResponse({"status": "loading"}, 503, {"Retry-After": "1"})
    return JSONResponse({"status": "ok"})


async def page(call: Call) -> Response:
    """The page."""
    policy = "frame-ancestors 'none'"  # the page itself declares the rest
    headers = {
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": policy,
    }
    return HTMLResponse(served_page(), headers=headers)


# ---- models


def models(call: Call) -> JsonObject:
    """The models."""
    return {"object": "list", "data": [model.as_json() for model in call.service.models]}


def model(call: Call) -> JsonObject:
    """A model."""
    return call.model.as_json()


def card(call: Call) -> JsonObject:
    """A model as `llm inspect --json` shows it."""
    model = call.model
    model.check_unchanged()
    return model.as_json() | facts(read_header(model.path), lambda note: None) | {"file": model.path.name}


def page_facts(call: Call) -> JsonObject:
    """Return the facts about a model that the page shows, or needs to run it."""
    model, source = call.model, call.model.source
    model.check_unchanged()
    has_cache = (
        call.service.models.uses_cache and isinstance(source, Checkpoint) and bool(source.record.ngram_cache)
    )
    return served_facts(source, read_header(model.path)) | {
        "model": model.name,
        "class": call.service.classroom and call.service.classroom.invitation,
        "chat": model.template is not None,
        "context": model.context,
        "experts": model.experts,
        "ngram_cache": has_cache,
        "prefix_space": model.tokenizer.adds_prefix_space,
        "bos_ids": model.tokenizer.bos_ids,
        "beginning": Prompt.of("", model.tokenizer).ids,
    }


# ---- tokens, with the fields of vLLM: lm_eval reads them to evaluate a model over HTTP


def tokenize(call: Call, body: TokenizeBody) -> JsonObject:
    """The tokens of a text or a conversation."""
    tokenizer = call.model.tokenizer
    text = body.prompt or ""
    if body.messages is not None:
        template = chat_template(call.model, body.chat_template_kwargs)
        ids = template.encode(conversation(body), add_generation_prompt=body.add_generation_prompt)
    else:
        # lm_eval requests the id of the end-of-text token by name; within a longer text, a name is plain text
        ids = [tokenizer.control_ids[text]] if text in tokenizer.control_ids else tokenizer.encode(text)
        ids = (tokenizer.bos_ids if body.add_special_tokens else []) + ids
    return {"tokens": ids, "count": len(ids), "max_model_len": call.model.context}


def detokenize(call: Call, body: DetokenizeBody) -> JsonObject:
    """The text of the tokens; a single control token is shown by its name."""
    tokenizer = call.model.tokenizer
    ids = body.tokens
    check_ids("tokens", ids, call.model)
    is_control = len(ids) == 1 and not tokenizer.token_bytes[ids[0]]
    text = tokenizer.label(ids[0]) if is_control else tokenizer.decode(ids)
    return {"prompt": text}


def tokenizer_info(call: Call) -> JsonObject:
    """The names of the control tokens, and the chat template."""
    tokenizer, template = call.model.tokenizer, call.model.template
    eos = tokenizer.label(tokenizer.eos_id)
    return {
        "model": call.model.name,
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "eos_token": eos,
        "eos_token_id": tokenizer.eos_id,
        "bos_token": tokenizer.label(tokenizer.bos_id) if tokenizer.bos_ids else None,
        "pad_token": eos,
        "add_bos_token": bool(tokenizer.bos_ids),
        "model_max_length": call.model.context,
        "chat_template": template.source if template else None,
    }
