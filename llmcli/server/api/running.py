"""The generation requests of one HTTP request: submitted to the engine, awaited and cancelled together."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TypeVar

from llmcli.errors import LLMError
from llmcli.server.engine.engine import Engine, Ticket
from llmcli.server.engine.requests import Event, Failed, Finished, Request, Started, Token
from llmcli.server.errors import ApiError, failed
from llmcli.server.limits import KEEP_ALIVE_SECONDS, REQUEST_SECONDS, UNREAD_TOKENS

T = TypeVar("T")


@dataclass
class Generated:
    """What has arrived of one text."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    started: Started | None = None
    finished: Finished | None = None
    _sent: int = 0  # tokens

    def take_unsent(self) -> list[Token]:
        """The tokens since the last call."""
        tokens, self._sent = self.tokens[self._sent :], len(self.tokens)
        return tokens

    def add(self, event: Event) -> None:
        match event:
            case Started():
                self.started = event
            case Token():
                self.text += event.text
                self.tokens.append(event)
            case Finished():
                self.finished = event


class Run:
    """Requests in the engine. As a context manager: at its end all of them are cancelled that have not finished."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self._engine, self._requests = engine, requests
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[tuple[int, Event]] = deque()  # no more than UNREAD_TOKENS and one of each text
        self._paused: set[int] = set()  # numbers of the requests that wait until this is read
        self._lock = threading.Lock()  # guards these two together
        self._is_woken = False  # the event loop will see what has arrived
        self._waiter: asyncio.Future[None] | None = None
        self._tickets: list[Ticket] = []
        self._submitted_at = time.monotonic()
        self.seconds_to_first: float | None = None
        self.texts = [Generated() for _ in requests]

    async def __aenter__(self) -> "Run":
        """Raises LLMError as the engine does, when its queue is full or it cannot run."""
        try:
            for number, request in enumerate(self._requests):
                self._tickets.append(self._engine.submit(request, partial(self._receive, number)))
        except LLMError:
            self._cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()

    def _cancel(self) -> None:
        for ticket, text in zip(self._tickets, self.texts, strict=False):
            if text.finished is None:
                ticket.cancel()

    def _receive(self, number: int, event: Event) -> None:
        """In the engine's thread."""
        with self._lock:
            self._arrived.append((number, event))
            if len(self._arrived) > UNREAD_TOKENS and number < len(self._tickets):
                self._paused.add(number)
                self._tickets[number].pause()
        if not self._is_woken and not self._loop.is_closed():
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_woken = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, seconds: float) -> None:
        """Wait until something arrives, or for some seconds. (`asyncio.wait_for` loses a cancellation that comes
        together with a result, before Python 3.12.)"""
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(seconds, self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Event] | None]:
        """(number of the request, event) until all have finished; None when nothing has come for KEEP_ALIVE_SECONDS.

        Raises ApiError if one fails, or after REQUEST_SECONDS.
        """
        left = len(self._requests)
        while left:
            seconds = min(KEEP_ALIVE_SECONDS, self._submitted_at + REQUEST_SECONDS - time.monotonic())
            if seconds <= 0:
                raise ApiError(f"the answer took longer than {REQUEST_SECONDS} seconds", 503, code="timeout")
            if not self._arrived:
                await self._wait(seconds)
            if not self._arrived:
                yield None
                continue
            number, event = self._take()
            if isinstance(event, Failed):
                raise failed(event.error) from event.error
            if isinstance(event, Token) and self.seconds_to_first is None:
                self.seconds_to_first = time.monotonic() - self._submitted_at
            self.texts[number].add(event)
            left -= isinstance(event, Finished)
            yield number, event

    def _take(self) -> tuple[int, Event]:
        """The first that has arrived. The requests go on when half of what had been waiting is read."""
        with self._lock:
            taken = self._arrived.popleft()
            if self._paused and len(self._arrived) <= UNREAD_TOKENS // 2:
                for number in self._paused:
                    self._tickets[number].resume()
                self._paused.clear()
        return taken

    async def finish(self) -> list[Generated]:
        """All texts, when they are complete. Raises ApiError as `events` does."""
        async for _ in self.events():
            pass
        return self.texts

    @property
    def prompt_tokens(self) -> int:
        """Of all requests that began."""
        return sum(text.started.prompt_tokens for text in self.texts if text.started)

    @property
    def completion_tokens(self) -> int:
        return sum(len(text.tokens) if text.finished is None else text.finished.tokens for text in self.texts)


def usage_json(texts: Sequence[Generated], n: int) -> dict[str, object]:
    """The tokens of all texts; a prompt counts once for its n texts."""
    prompt = sum(text.started.prompt_tokens for text in texts[::n] if text.started)
    cached = sum(text.started.cached_tokens for text in texts[::n] if text.started)
    completion = sum(text.finished.tokens for text in texts if text.finished)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
