"""Routes that generate text, whole or streamed: /v1/completions and /v1/chat/completions."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from llmcli.generation.engine.requests import stopping
from llmcli.server.api.answers import Answer, chat_completion, completion
from llmcli.server.api.bodies import ChatBody, CompletionBody, GenerationBody
from llmcli.server.api.running import RunningRequests
from llmcli.server.errors import ApiError, as_api_error
from llmcli.server.http.service import Call, while_connected


async def completions(call: Call, body: CompletionBody) -> Response:
    """Continue prompts."""
    call.entry.prompt = body.prompt if isinstance(body.prompt, str) else str(body.prompt)
    return await _generate(call, body, partial(completion, body, call.model))


async def chat_completions(call: Call, body: ChatBody) -> Response:
    """Answer a conversation."""
    call.entry.prompt = body.messages[-1].message.content
    return await _generate(call, body, partial(chat_completion, body, call.model, call.service.models))


async def _generate(call: Call, body: GenerationBody, prepare: Callable[[], Answer]) -> Response:
    name, grammar, _ = body.constraint
    is_class = call.service.classroom is not None
    answer = None if is_class and name else await call.in_thread(prepare, takes_long=grammar is not None)
    if answer is None or (is_class and len(answer.requests) > 1):
        message = (
            "a class code allows one prompt, with n=1 and without constraints on the text; "
            "an API key allows more"
        )
        raise ApiError(message, 403, code="not_for_classes")
    if body.stream:
        return EventStream(call, answer)
    return await while_connected(call.request.receive, _whole(call, answer))


async def _whole(call: Call, answer: Answer) -> Response:
    """Answer when all texts are complete."""
    async with RunningRequests(call.service.engine, answer.requests) as running:
        try:
            texts = await running.finish()
            return await run_in_threadpool(lambda: JSONResponse(answer.whole(texts)))
        finally:
            _note(running, call)


def _note(running: RunningRequests, call: Call) -> None:
    """Add the figures of the requests to the log entry."""
    entry = call.entry
    texts = running.texts
    entry.prompt_tokens = sum(text.started.prompt_tokens for text in texts if text.started)
    entry.new_tokens = sum(
        len(text.tokens) if text.finished is None else text.finished.tokens for text in texts
    )
    entry.seconds_to_first = running.seconds_to_first
    entry.answer = "\n".join(text.text for text in texts)


class EventStream(Response):
    """An answer as server-sent events. It begins with the engine's first event, so that an earlier error gets
    an HTTP status; a later error is sent as an event."""

    def __init__(self, call: Call, answer: Answer) -> None:
        super().__init__(media_type="text/event-stream; charset=utf-8", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._call = call
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientDisconnect):
                await while_connected(receive, self._send(send))
        except asyncio.CancelledError:
            # the server is shutting down, and the time for answers in progress is over
            if not self._call.entry.status:
                raise
            await send(_part(_event(as_api_error(stopping()).body), more=False))

    async def _send(self, send: Send) -> None:
        call, answer = self._call, self._answer

        async def write(data: bytes, *, more: bool = True) -> None:
            if not call.entry.status:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send(_part(data, more=more))

        async with RunningRequests(call.service.engine, answer.requests) as running:
            try:
                async for item in running.events():
                    if item is None:
                        await write(b": the answer is being computed\n\n")
                    elif chunk := answer.chunk(*item, running.texts[item[0]]):
                        await write(_event(chunk))
                if answer.body.stream_options is not None and answer.body.stream_options.include_usage:
                    await write(_event(answer.usage_chunk(running.texts)))
                await write(b"data: [DONE]\n\n", more=False)
            except ApiError as error:
                if not call.entry.status:
                    raise
                await write(_event(error.body), more=False)
            finally:
                _note(running, call)


def _event(value: Any) -> bytes:
    data = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"data: {data}\n\n".encode()


def _part(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}
