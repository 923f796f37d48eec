"""What the routes share: the models, the engine, the counts, and how a request is received."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive

from llmcli.models.runtime import Runtime
from llmcli.server.api.fields import parse_object
from llmcli.server.api.models import Models
from llmcli.server.engine.engine import Engine
from llmcli.server.errors import ApiError
from llmcli.server.http.access import check_body
from llmcli.server.http.metrics import Metrics
from llmcli.server.limits import MAX_ANALYSES, RECEIVE_SECONDS, REQUEST_SECONDS

T = TypeVar("T")
Check = Callable[[], None]  # raises where nobody waits for the result any more


class _AbandonedError(Exception):
    """Nobody waits for the result of an analysis."""


@dataclass
class Service:
    """The state of the server. Its methods run on the event loop."""

    models: Models
    engine: Engine
    metrics: Metrics = field(default_factory=Metrics)
    loading: bool = False  # the first model is being loaded
    analyses: int = 0  # in progress

    async def analyze(self, request: Request, model: str, function: Callable[[Runtime, Check], T]) -> T:
        """Run a function on a scratch runtime of a model, in the engine's thread of analyses. The function calls its
        second argument now and then: it ends the function when the client has left or the time is over. Raises ApiError
        and ClientDisconnect."""

        def start(check: Check) -> Awaitable[T]:
            return asyncio.wrap_future(self.engine.run(model, lambda runtime: function(runtime, check)))

        return await self._bounded(request, start)

    async def search(self, request: Request, function: Callable[[Check], T]) -> T:
        """Run a function that takes seconds in a thread of its own; otherwise as `analyze`."""
        return await self._bounded(request, lambda check: run_in_threadpool(function, check))

    async def _bounded(self, request: Request, start: Callable[[Check], Awaitable[T]]) -> T:
        is_over = threading.Event()

        def check() -> None:
            if is_over.is_set():
                raise _AbandonedError

        try:
            done = await while_connected(request.receive, self._limited(start, check))
        finally:
            is_over.set()
        if done is None:
            raise ClientDisconnect
        return done[0]

    async def _limited(self, start: Callable[[Check], Awaitable[T]], check: Check) -> tuple[T]:
        if self.analyses >= MAX_ANALYSES:
            raise ApiError(f"{MAX_ANALYSES} analyses are in progress; try again later", 429, code="queue_full")
        self.analyses += 1
        try:
            return (await asyncio.wait_for(start(check), REQUEST_SECONDS),)
        except asyncio.TimeoutError as error:
            raise ApiError(f"the answer took longer than {REQUEST_SECONDS} seconds", 503, code="timeout") from error
        finally:
            self.analyses -= 1


def service_of(request: Request) -> Service:
    """The service that a request is sent to."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object in the body of a request. Raises ApiError."""
    check_body(request.headers)
    try:
        data = await asyncio.wait_for(request.body(), RECEIVE_SECONDS)
    except asyncio.TimeoutError as error:
        raise ApiError(f"the body did not arrive within {RECEIVE_SECONDS} seconds", 408) from error
    return await run_in_threadpool(parse_object, data)


async def json_response(content: Callable[[], Any]) -> Response:
    """An answer whose JSON is computed in a thread: it may be large."""
    data = await run_in_threadpool(lambda: dump(content()))
    return Response(data, media_type="application/json")


def dump(value: Any) -> bytes:
    """JSON as compact UTF-8. Raises ValueError for NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, which is cancelled when the client disconnects: then None. The body must be read."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
