"""The web application: its routes, what surrounds them, and how it starts and ends."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from llmcli.errors import LLMError
from llmcli.server.api.models import Models
from llmcli.server.engine.engine import Engine
from llmcli.server.engine.requests import Limits, QueueFullError, StoppingError, UnavailableError
from llmcli.server.errors import CLIENT_LEFT, ApiError, ModelLoadError, failed
from llmcli.server.http import analysis_routes, expert_routes, generation_routes, status_routes, token_routes
from llmcli.server.http.access import Access
from llmcli.server.http.guard import Guard, error_response
from llmcli.server.http.request_log import entry_of
from llmcli.server.http.service import Service

CLOSE_SECONDS = 0.5  # for the engine, after the answers in progress have had their time

ROUTES = [
    Route("/", status_routes.page),
    Route("/health", status_routes.health),
    Route("/v1/health", status_routes.health),
    Route("/metrics", status_routes.metrics),
    Route("/openapi.json", status_routes.openapi),
    *(
        Route(prefix + path, answer, methods=[method])
        for prefix in ("/v1", "")  # many programs are given the address of a server without /v1
        for path, answer, method in (
            ("/models", status_routes.models, "GET"),
            ("/models/{id}", status_routes.model, "GET"),
            ("/completions", generation_routes.completions, "POST"),
            ("/chat/completions", generation_routes.chat_completions, "POST"),
        )
    ),
    Route("/v1/models/{id}/card", analysis_routes.card),
    Route("/v1/models/{id}/examples", analysis_routes.examples),
    Route("/v1/explain", analysis_routes.explain_prompt, methods=["POST"]),
    Route("/v1/next", analysis_routes.next_word_list, methods=["POST"]),
    Route("/v1/experts", expert_routes.expert_weights, methods=["POST"]),
    Route("/v1/memory", analysis_routes.memory, methods=["POST"]),
    Route("/tokenize", token_routes.tokenize, methods=["POST"]),
    Route("/detokenize", token_routes.detokenize, methods=["POST"]),
    Route("/tokenizer_info", token_routes.tokenizer_info),
]
OFFERED = (
    "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/next", "/v1/explain", "/tokenize", "/detokenize",
)  # fmt: skip
# routes of other APIs (OpenAI's newer one, Anthropic's, Ollama's, llama.cpp's, TGI's), and those that do the same here
SIMILAR = {
    "/v1/responses": "/v1/chat/completions", "/v1/messages": "/v1/chat/completions",
    "/api/chat": "/v1/chat/completions", "/api/generate": "/v1/completions", "/completion": "/v1/completions",
    "/generate": "/v1/completions", "/api/tags": "/v1/models",
}  # fmt: skip


@dataclass(frozen=True)
class Hooks:
    """What the server calls: it prints nothing itself."""

    log: Callable[[str], None] = lambda line: None  # a line for each request
    on_ready: Callable[[], None] = lambda: None  # requests can be sent
    on_load_error: Callable[[BaseException], None] = field(default=lambda error: None)  # of the only model


def create_app(
    models: Models,
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    hooks: Hooks | None = None,
    log_contents: bool = False,
) -> Starlette:
    """The application that serves these models. A single model is loaded at the start, several when they are used."""
    hooks = hooks or Hooks()
    service = Service(models, Engine(models.open_runtime, limits))

    guard = Middleware(
        Guard,
        access=access or Access(),
        metrics=service.metrics,
        log=hooks.log,
        log_contents=log_contents,
    )
    handlers = {
        ApiError: _handle,
        LLMError: _handle,
        HTTPException: _handle,
        ClientDisconnect: _handle,
    }
    app = Starlette(
        routes=ROUTES, middleware=[guard], exception_handlers=handlers, lifespan=lambda _: _lifespan(service, hooks)
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


@asynccontextmanager
async def _lifespan(service: Service, hooks: Hooks) -> AsyncIterator[None]:
    service.engine.start()
    if len(list(service.models)) == 1:
        _preload(service, hooks)
    hooks.on_ready()
    try:
        yield
    finally:
        await asyncio.to_thread(service.engine.close, CLOSE_SECONDS)


def _preload(service: Service, hooks: Hooks) -> None:
    """Load the only model; until then, the server is not healthy."""
    service.loading = True
    name, loop = service.models.default.name, asyncio.get_running_loop()

    def on_loaded(error: BaseException | None) -> None:
        service.loading = False
        if error is not None and not isinstance(error, UnavailableError):  # with those, the first request tries again
            hooks.on_load_error(error)

    try:
        loading = service.engine.run(name, lambda runtime: None)
    except UnavailableError as error:
        on_loaded(error)
        return
    loading.add_done_callback(lambda future: loop.call_soon_threadsafe(on_loaded, future.exception()))


async def _handle(request: Request, error: Exception) -> Response:
    """An exception of a route as an HTTP answer."""
    api_error = _as_api_error(error, request)
    if api_error.status >= 500:
        entry_of(request.scope).error = _causes(error)
    response = error_response(api_error)
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
    return response


def _causes(error: BaseException) -> str:
    """The error that was raised first, for the log."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) if isinstance(error, LLMError | ApiError) else f"{type(error).__name__}: {error}"


def _not_offered(request: Request, error: HTTPException) -> str:
    """What a request for another route, or with another method, is answered: what is not offered, and what is."""
    path = request.url.path
    if error.status_code == 405 and error.headers:
        return f"{request.method[:20]} is not offered at {path[:100]}; use {error.headers['Allow']}"
    routes = (*OFFERED, *(route.path for route in ROUTES))
    wanted = path.rstrip("/")
    similar = SIMILAR.get(wanted) or next((route for route in routes if wanted.endswith(route.removeprefix("/v1"))), "")
    hint = f"use {similar}; " if len(similar) > 1 else ""
    return f"{path[:100]} is not offered here; {hint}there are {', '.join(OFFERED)}; /openapi.json lists all"


def _as_api_error(error: Exception, request: Request) -> ApiError:
    match error:
        case ApiError():
            return error
        case HTTPException():
            message = _not_offered(request, error) if error.status_code in (404, 405) else error.detail
            return ApiError(message, error.status_code)
        case ClientDisconnect():
            return ApiError("the client disconnected", CLIENT_LEFT)
        case QueueFullError():
            return ApiError(str(error), 429, code="queue_full")
        case ModelLoadError() | StoppingError() | UnavailableError():
            return failed(error)
        case _:
            return ApiError(str(error))
