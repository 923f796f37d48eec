"""The ASGI layer around all routes: access checks, the bound of the body, CORS headers, the log, unexpected errors."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmcli.server.engine.requests import StoppingError
from llmcli.server.errors import ApiError, failed
from llmcli.server.http.access import Access, is_preflight, too_large
from llmcli.server.http.metrics import Metrics
from llmcli.server.http.request_log import SCOPE_KEY, LogEntry
from llmcli.server.limits import MAX_BODY_BYTES


def error_response(error: ApiError) -> Response:
    """An error as an HTTP answer."""
    return JSONResponse(error.body, error.status, dict(error.headers))


class Guard:
    """Lets requests pass that may be answered."""

    def __init__(
        self, app: ASGIApp, access: Access, metrics: Metrics, log: Callable[[str], None], log_contents: bool
    ) -> None:
        self._app, self._access, self._metrics = app, access, metrics
        self._log, self._log_contents = log, log_contents

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        entry = scope[SCOPE_KEY] = LogEntry(scope["method"], scope["path"])
        headers = Headers(scope=scope)
        cors = self._access.cors_headers(entry.method, headers)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                MutableHeaders(scope=message).update({"X-Content-Type-Options": "nosniff"} | cors)
            await send(message)

        try:
            await self._answer(entry, headers, scope, receive, send_with_headers)
        finally:
            self._finish(entry, scope)

    async def _answer(self, entry: LogEntry, headers: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._access.check(entry.method, entry.path, headers)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        if is_preflight(entry.method, headers):
            await Response(status_code=204)(scope, receive, send)
            return
        try:
            await self._app(scope, _bounded(receive), send)
        except asyncio.CancelledError:  # the server ends, and the time for answers in progress is over
            if not entry.status:
                await error_response(failed(StoppingError()))(scope, receive, send)
        except Exception as error:  # a bug: the client learns nothing of it, the log its kind and place
            entry.error = f"{type(error).__name__}: {error} ({_place(error)})"
            if not entry.status:
                await error_response(failed(error))(scope, receive, send)

    def _finish(self, entry: LogEntry, scope: Scope) -> None:
        route = scope.get("route")
        self._metrics.add_request(getattr(route, "path", "other"), entry.status)
        self._log(entry.line)
        for line in entry.content_lines if self._log_contents else []:
            self._log(line)


def _bounded(receive: Receive) -> Receive:
    """`receive`, which raises ApiError when the body is too large."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise too_large()
        return message

    return bounded


def _place(error: BaseException) -> str:
    """Where an error was raised: "engine.py:120"."""
    trace: Any = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}" if trace else "unknown place"
