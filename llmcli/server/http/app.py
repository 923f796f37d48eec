"""The web application: routes, middleware, error handlers, startup and shutdown."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import Route

from llmcli.generation.engine.engine import Engine
from llmcli.generation.engine.requests import EngineLimits, UnavailableError
from llmcli.server.api import bodies
from llmcli.server.api.models import Models
from llmcli.server.api.schema import JsonObject, Operation, openapi
from llmcli.server.errors import ApiError
from llmcli.server.http import analysis_routes, generation_routes, info_routes
from llmcli.server.http.access import Access
from llmcli.server.http.guard import Guard
from llmcli.server.http.service import Call, Service, respond


def description(call: Call) -> JsonObject:
    """The OpenAPI document."""
    return openapi(OPERATIONS)


OPERATIONS = [
    Operation("/", info_routes.page),
    Operation("/health", info_routes.health),
    Operation("/v1/health", info_routes.health),
    Operation("/openapi.json", description),
    *(
        Operation(prefix + path, handler, body, answer)
        for prefix in ("/v1", "")  # many programs expect an address without /v1
        for path, handler, body, answer in (
            ("/models", info_routes.models, None, "Models"),
            ("/models/{id}", info_routes.model, None, "Model"),
            ("/completions", generation_routes.completions, bodies.CompletionBody, "Completion"),
            ("/chat/completions", generation_routes.chat_completions, bodies.ChatBody, "Completion"),
        )
    ),
    Operation("/v1/models/{id}/card", info_routes.card),
    Operation("/v1/models/{id}/page", info_routes.page_facts),
    Operation("/v1/models/{id}/examples", analysis_routes.examples),
    Operation("/v1/explain", analysis_routes.explain_prompt, bodies.ExplainBody, "Explanation"),
    Operation("/v1/next", analysis_routes.next_word_list, bodies.NextBody, "NextWords"),
    Operation(
        "/v1/experts",
        analysis_routes.expert_weights,
        bodies.ExpertsBody,
        "Experts",
        analysis_routes.check_experts,
    ),
    Operation("/v1/memory", analysis_routes.memory, bodies.MemoryBody, "Memory"),
    Operation("/tokenize", info_routes.tokenize, bodies.TokenizeBody, "Tokens"),
    Operation("/detokenize", info_routes.detokenize, bodies.DetokenizeBody, "Text"),
    Operation("/tokenizer_info", info_routes.tokenizer_info),
]
SUGGESTED_ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/next",
    "/v1/explain",
    "/tokenize",
    "/detokenize",
)


def create_app(
    models: Models,
    *,
    limits: EngineLimits,
    access: Access,
    log: Callable[[str], None],
    log_contents: bool,
    on_ready: Callable[[], None],
    on_load_error: Callable[[BaseException], None],
) -> Starlette:
    """Create the application that serves these models. A single model is loaded at startup; several are
    loaded on first use. `log` receives a line per request, `on_ready` is called when requests are accepted,
    and `on_load_error` if a single model cannot be loaded."""
    service = Service(models, Engine(models.open_runtime, limits), access.classroom)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.engine.start()
        if len(list(models)) == 1:
            _preload(service, on_load_error)
        on_ready()
        try:
            yield
        finally:
            await asyncio.to_thread(service.engine.close)

    app = Starlette(
        routes=[
            Route(operation.path, partial(respond, operation), methods=[operation.method])
            for operation in OPERATIONS
        ],
        # outside the guard, because preflight requests have no key, and pages must be able to read refusals
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=[*access.origins],
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
            ),
            Middleware(Guard, access=access, log=log, log_contents=log_contents),
        ],
        exception_handlers={HTTPException: _reject},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def _preload(service: Service, on_load_error: Callable[[BaseException], None]) -> None:
    """Load a single model; until it is loaded, the server is not healthy."""

    def on_loaded(loading: "asyncio.Future[None]") -> None:
        service.loading = False
        if (error := loading.exception()) and not isinstance(error, UnavailableError):
            on_load_error(error.__cause__ or error)

    with suppress(UnavailableError):  # the first request tries again
        loading = asyncio.wrap_future(service.engine.run(service.models.find().name, lambda runtime: None))
        service.loading = True
        loading.add_done_callback(on_loaded)


async def _reject(request: Request, error: Exception) -> NoReturn:
    """Raise the error for an unknown route or method."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:100]
    message = f"{path} is not offered here; there are {', '.join(SUGGESTED_ROUTES)}; /openapi.json lists all"
    if error.status_code == 405 and error.headers:
        message = f"{request.method[:20]} is not offered at {path}; use {error.headers['Allow']}"
    raise ApiError(message, error.status_code, headers=error.headers)
