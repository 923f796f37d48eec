"""Shared by the routes: models, the engine, receiving requests and sending answers."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from llmcli.generation.engine.engine import Engine
from llmcli.models.ngram_runtime import network_of
from llmcli.models.runtime import Check, Runtime
from llmcli.server.api.models import Models, ServedModel
from llmcli.server.api.schema import Body, Operation, parse_object
from llmcli.server.errors import ApiError
from llmcli.server.http.access import check_body
from llmcli.server.http.classroom import Classroom
from llmcli.server.http.guard import SCOPE_KEY, LogEntry
from llmcli.server.limits import (
    LARGE_BODY_BYTES,
    MAX_ANALYSES,
    MAX_PREPARING,
    RECEIVE_SECONDS,
    REQUEST_SECONDS,
)

T = TypeVar("T")


@dataclass
class Service:
    """The state of the server."""

    models: Models
    engine: Engine
    classroom: Classroom | None
    loading: bool = False  # the first model is being loaded
    analyses: int = 0  # analyses in progress
    preparing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_PREPARING))


@dataclass(frozen=True)
class Call:
    """A request to a route. The methods run on the event loop."""

    request: Request
    service: Service
    model: ServedModel  # the requested model, or the first one
    entry: LogEntry
    is_large: bool = False  # whether reading the body takes long

    async def in_thread(self, function: Callable[[], T], *, takes_long: bool = False) -> T:
        """Run a function in a thread. With `takes_long`, it waits while too many such functions are running,
        so that other requests get threads and processor time. Raises ClientDisconnect if the client leaves
        before it begins."""
        return await while_connected(self.request.receive, self._when_free(function, takes_long=takes_long))

    async def _when_free(self, function: Callable[[], T], *, takes_long: bool = False) -> T:
        async with self.service.preparing if takes_long or self.is_large else nullcontext():
            return await run_in_threadpool(function)

    async def analyze(self, function: Callable[[Runtime], T]) -> T:
        """Run a function on a fork of the model's runtime, in a thread of the engine. The runtime raises an
        exception once the client has left or the time is up. Raises ApiError and ClientDisconnect."""

        def start(check: Check) -> Awaitable[T]:
            def run(runtime: Runtime) -> T:
                network_of(runtime).check = check
                return function(runtime)

            return asyncio.wrap_future(self.service.engine.run(self.model.name, run))

        return await self._bounded(start)

    async def search(self, function: Callable[[Check], T]) -> T:
        """Like `analyze`, for a function that takes seconds and needs no runtime; it runs in a separate
        thread, and should call its argument regularly."""
        return await self._bounded(lambda check: self._when_free(lambda: function(check)))

    async def _bounded(self, start: Callable[[Check], Awaitable[T]]) -> T:
        is_over = threading.Event()

        def check() -> None:
            if is_over.is_set():
                raise ClientDisconnect  # or the time is up: nobody needs the result

        try:
            return await while_connected(self.request.receive, self._in_turn(start, check))
        finally:
            is_over.set()

    async def _in_turn(self, start: Callable[[Check], Awaitable[T]], check: Check) -> T:
        """Run an analysis; in a class, after the others of this address, so that they fill no queue."""
        service = self.service
        async with service.classroom.turn(self.request) if service.classroom else nullcontext():
            if service.analyses >= MAX_ANALYSES:
                raise ApiError(
                    f"{MAX_ANALYSES} analyses are in progress; try again later", 429, code="queue_full"
                )
            service.analyses += 1
            try:
                return await asyncio.wait_for(start(check), REQUEST_SECONDS)
            except asyncio.TimeoutError as error:
                raise ApiError(
                    f"the answer took longer than {REQUEST_SECONDS} seconds", 503, code="timeout"
                ) from error
            finally:
                service.analyses -= 1


async def respond(operation: Operation, request: Request) -> Response:
    """Answer a request. The route's handler receives a Call and the body, and returns a Response or a value
    to send as JSON. It runs in a thread, unless it is a coroutine."""
    service = request.app.state.service
    entry = request.scope[SCOPE_KEY]
    body = None
    data = b""
    name = request.path_params.get("id") or request.query_params.get("model")
    if operation.body is not None:
        data = await _receive(request)
        body = await run_in_threadpool(
            _read_body, operation.body, data, operation.check_model, service.models
        )
        name = body.model
    call = Call(request, service, service.models.find(name or None), entry, len(data) > LARGE_BODY_BYTES)
    if body is not None:
        entry.model = call.model.name
    arguments = (call,) if body is None else (call, body)
    handler = operation.handler
    answer = await (
        handler(*arguments) if iscoroutinefunction(handler) else call.in_thread(lambda: handler(*arguments))
    )
    return answer if isinstance(answer, Response) else await call.in_thread(lambda: JSONResponse(answer))


def _read_body(
    body: type[Body], data: bytes, check_model: Callable[[Any], None] | None, models: Models
) -> Body:
    """Read a body, after the check of the model that it names."""
    values = parse_object(data)
    name = values.get("model")
    if check_model is not None and isinstance(name, str | None):
        check_model(models.find(name or None))
    return body.read(values)


async def _receive(request: Request) -> bytes:
    """Receive the body of a request. Raises ApiError."""
    check_body(request.headers)
    try:
        return await asyncio.wait_for(request.body(), RECEIVE_SECONDS)
    except asyncio.TimeoutError as error:
        raise ApiError(f"the body did not arrive within {RECEIVE_SECONDS} seconds", 408) from error


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; if the client disconnects, cancel it and raise ClientDisconnect. The body must have been
    read."""

    async def disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientDisconnect
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
