"""The routes that generate text: /v1/completions and /v1/chat/completions, whole or streamed."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmcli.server.api.chat import ChatCompletion
from llmcli.server.api.completions import Completion
from llmcli.server.api.models import Models
from llmcli.server.api.running import Run
from llmcli.server.engine.requests import StoppingError
from llmcli.server.errors import CLIENT_LEFT, ApiError, failed
from llmcli.server.http.request_log import LogEntry, entry_of
from llmcli.server.http.service import Service, dump, json_response, read_object, service_of, while_connected

Answer = Completion | ChatCompletion


async def completions(request: Request) -> Response:
    """POST /v1/completions."""
    return await _generate(request, Completion.read)


async def chat_completions(request: Request) -> Response:
    """POST /v1/chat/completions."""
    return await _generate(request, ChatCompletion.read)


async def _generate(request: Request, read: Callable[[dict[str, Any], Models], Answer]) -> Response:
    service, entry = service_of(request), entry_of(request.scope)
    body = await read_object(request)
    answer = await run_in_threadpool(read, body, service.models)
    entry.model, entry.prompt = answer.model.name, answer.prompt_text
    if answer.settings.stream:
        return EventStream(answer, service, entry)
    response = await while_connected(request.receive, _whole(answer, service, entry))
    return response or Response(status_code=CLIENT_LEFT)


async def _whole(answer: Answer, service: Service, entry: LogEntry) -> Response:
    """The answer when its texts are complete."""
    async with Run(service.engine, answer.requests) as run:
        try:
            texts = await run.finish()
            return await json_response(lambda: answer.answer(texts))
        finally:
            _note(run, service, entry)


def _note(run: Run, service: Service, entry: LogEntry) -> None:
    """Note the figures of a run in the log and the metrics."""
    entry.prompt_tokens, entry.new_tokens = run.prompt_tokens, run.completion_tokens
    entry.seconds_to_first, entry.answer = run.seconds_to_first, "\n".join(text.text for text in run.texts)
    if run.seconds_to_first is not None:
        service.metrics.add_first_token(run.seconds_to_first)


class EventStream(Response):
    """An answer in server-sent events. It begins with the first event of the engine, so that an error before has a
    status of its own; a later one is sent as an event."""

    def __init__(self, answer: Answer, service: Service, entry: LogEntry) -> None:
        super().__init__(media_type="text/event-stream; charset=utf-8", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._answer, self._service, self._entry = answer, service, entry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send(send))
        except asyncio.CancelledError:  # the server ends, and the time for answers in progress is over
            if not self._entry.status:
                raise
            await send(_part(_event(failed(StoppingError()).body)))
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send) -> None:
        async with Run(self._service.engine, self._answer.requests) as run:
            messages = self._messages(run)
            try:
                first = await anext(messages)
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send(_part(first))
                async for message in messages:
                    await send(_part(message))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                await messages.aclose()
                _note(run, self._service, self._entry)

    async def _messages(self, run: Run) -> AsyncGenerator[bytes, None]:
        """The text of the stream, in parts."""
        answer, is_begun = self._answer, False
        try:
            async for item in run.events():
                if item is None:
                    is_begun = True
                    yield b": the answer is being computed\n\n"
                    continue
                number, event = item
                for chunk in answer.chunks(number, event, run.texts[number]):
                    is_begun = True
                    yield _event(chunk)
        except ApiError as error:
            if not is_begun:
                raise
            yield _event(error.body)
            return
        if answer.settings.include_usage:
            yield _event(answer.usage_chunk(run.texts))
        yield b"data: [DONE]\n\n"


def _event(value: Any) -> bytes:
    return b"data: " + dump(value) + b"\n\n"


def _part(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}
