"""The ASGI layer around all routes: access checks, body size, unexpected errors, the log."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from traceback import extract_tb

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmcli.errors import LLMError
from llmcli.generation.engine.requests import stopping
from llmcli.server.errors import ApiError, as_api_error
from llmcli.server.http.access import OPEN_PATHS, Access, too_large
from llmcli.server.limits import MAX_BODY_BYTES

MAX_LOGGED_PATH = 100  # characters
MAX_LOGGED_TEXT = 2_000  # characters
SCOPE_KEY = "llmcli.log"  # key of the log entry in a request's ASGI scope


@dataclass
class LogEntry:
    """The log entry of a request; some fields are set while the request is answered."""

    method: str
    path: str
    status: int = 0
    model: str | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    seconds_to_first: float | None = None
    prompt: str | None = None  # prompt and answer are logged only on request
    answer: str | None = None
    error: str | None = None  # only logged
    began: float = field(default_factory=time.monotonic)

    def lines(self, *, with_contents: bool) -> list[str]:
        """Return "GET /health 200 0.00s" or similar, and the prompt and answer, each on a line."""
        first = None if self.seconds_to_first is None else f"{self.seconds_to_first:.3f}s"
        figures = {"model": self.model, "prompt": self.prompt_tokens, "new": self.new_tokens, "first": first}
        noted = "".join(f"{name}={value} " for name, value in figures.items() if value is not None)
        seconds = time.monotonic() - self.began
        error = f" error: {self.error}" if self.error else ""
        path = self.path[:MAX_LOGGED_PATH]
        status = self.status or "disconnected"
        lines = [f"{self.method} {path} {status} {noted}{seconds:.2f}s{error}"]
        for name, text in (("prompt", self.prompt), ("answer", self.answer)):
            if with_contents and text is not None:
                lines.append(f"  {name}: {json.dumps(text[:MAX_LOGGED_TEXT], ensure_ascii=False)}")
        return lines


def _answer_to(error: BaseException, entry: LogEntry) -> ApiError:
    """Return the answer to a request that failed. What the server caused is logged."""
    if isinstance(error, ClientDisconnect):
        return ApiError("the client disconnected", 499)  # only logged
    if isinstance(error, asyncio.CancelledError):
        # the server is shutting down, and the time for answers in progress is over
        return as_api_error(stopping())
    answer = as_api_error(error, 400)
    if answer.status >= 500:
        while error.__cause__ is not None:  # the first error in the chain
            error = error.__cause__
        entry.error = str(error)
        if not isinstance(error, LLMError | ApiError):
            # a bug, which is hidden from the client: logged with its place, if the error was raised
            places = [
                f"{Path(place.filename).name}:{place.lineno}" for place in extract_tb(error.__traceback__)
            ]
            entry.error = f"{type(error).__name__}: {error} ({', '.join(places[-1:])})"
    return answer


class Guard:
    """Passes allowed requests to the routes."""

    def __init__(
        self, app: ASGIApp, access: Access, log: Callable[[str], None], *, log_contents: bool = False
    ) -> None:
        """`log` receives a line per request and, with `log_contents`, the prompt and the answer."""
        self._app = app
        self._access = access
        self._log = log
        self._log_contents = log_contents

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        entry = scope[SCOPE_KEY] = LogEntry(scope["method"], scope["path"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                MutableHeaders(scope=message).update({"X-Content-Type-Options": "nosniff"})
            await send(message)

        try:
            self._access.check(entry.path, Headers(scope=scope))
            is_open = entry.path in OPEN_PATHS
            classroom = self._access.classroom
            with classroom.admit(HTTPConnection(scope), is_open=is_open) if classroom else nullcontext():
                await self._app(scope, _bounded(receive), send_with_headers)
        except (Exception, asyncio.CancelledError) as error:
            answer = _answer_to(error, entry)
            if not entry.status:
                response = JSONResponse(answer.body, answer.status, dict(answer.headers))
                await response(scope, receive, send_with_headers)
        finally:
            for line in entry.lines(with_contents=self._log_contents):
                self._log(line)


def _bounded(receive: Receive) -> Receive:
    """Wrap `receive`: raises ApiError if the body is too large."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise too_large()
        return message

    return bounded
