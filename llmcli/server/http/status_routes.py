"""The routes that tell of the server itself: health, models, metrics, its description, and the page."""

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from llmcli.server.api.openapi import description
from llmcli.server.engine.engine import Stats
from llmcli.server.http.metrics import family
from llmcli.server.http.service import json_response, service_of

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


async def health(request: Request) -> Response:
    """GET /health."""
    engine = service_of(request).engine
    if failure := engine.failure:
        engine.start()  # so that it is well again at the next question, if that is possible
        return JSONResponse({"status": "failed", "error": failure}, 503, {"Retry-After": "1"})
    if service_of(request).loading:
        return JSONResponse({"status": "loading"}, 503, {"Retry-After": "1"})
    return JSONResponse({"status": "ok"})


async def models(request: Request) -> Response:
    """GET /v1/models."""
    served = service_of(request).models
    return await json_response(lambda: {"object": "list", "data": [model.as_json() for model in served]})


async def model(request: Request) -> Response:
    """GET /v1/models/{id}."""
    found = service_of(request).models.find(request.path_params["id"])
    return await json_response(found.as_json)


async def metrics(request: Request) -> Response:
    """GET /metrics."""
    service = service_of(request)
    lines = [*service.metrics.lines(), *_engine_lines(service.engine.stats())]
    return PlainTextResponse("\n".join(lines) + "\n", media_type=PROMETHEUS)


def _engine_lines(stats: Stats) -> Iterator[str]:
    counts = stats.counts
    yield from family("requests_active", "gauge", "Texts that are being generated.", [("", stats.active)])
    yield from family("requests_waiting", "gauge", "Texts that wait in the queue.", [("", stats.waiting)])
    yield from family("requests_total", "counter", "Texts that were asked for.", [("", counts.requests)])
    ends = {"finished": counts.finished, "failed": counts.failed, "cancelled": counts.cancelled}
    samples = [(f'{{end="{end}"}}', count) for end, count in ends.items()]
    yield from family("requests_ended_total", "counter", "Texts that ended, by how.", samples)
    yield from family("tokens_total", "counter", "New tokens.", [("", counts.tokens)])
    yield from family("prompt_tokens_total", "counter", "Tokens of prompts.", [("", counts.prompt_tokens)])
    cached = [("", counts.cached_tokens)]
    yield from family("prompt_tokens_cached_total", "counter", "Of these, those that were in a cache.", cached)
    yield from family("cached_prefixes", "gauge", "Caches of earlier texts.", [("", stats.prefixes)])
    yield from family("cached_prefix_bytes", "gauge", "Their memory.", [("", stats.prefix_bytes)])
    yield from family("models_loaded", "gauge", "Models in memory.", [("", len(stats.loaded))])


async def openapi(request: Request) -> Response:
    """GET /openapi.json."""
    return JSONResponse(description())


async def page(request: Request) -> Response:
    """GET /."""
    text = (files("llmcli.pages") / "server" / "index.html").read_text("utf-8")
    headers = {
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": page_policy(text),
    }
    return HTMLResponse(text, headers=headers)


def page_policy(text: str) -> str:
    """A Content-Security-Policy that allows a page its own style and script, and requests to this server."""
    style, script = (_source_hash(text, tag) for tag in ("style", "script"))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _source_hash(text: str, tag: str) -> str:
    """The hash of the text in an element that a page has once, as a Content-Security-Policy lists it."""
    content = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
