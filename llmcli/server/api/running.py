"""The generation requests of one HTTP request: submitted to the engine, awaited and cancelled together."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from functools import partial

from llmcli.errors import LLMError
from llmcli.generation.engine.engine import Engine
from llmcli.generation.engine.requests import Event, Finished, Generated, GenerationRequest, Token
from llmcli.generation.engine.sequence import GeneratedSequence
from llmcli.server.errors import ApiError, as_api_error
from llmcli.server.limits import KEEP_ALIVE_SECONDS, REQUEST_SECONDS, UNREAD_TOKENS


class RunningRequests:
    """A context manager for requests in the engine; it cancels unfinished requests on exit."""

    def __init__(self, engine: Engine, requests: Sequence[GenerationRequest]) -> None:
        self._engine = engine
        self._requests = requests
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[tuple[int, Event]] = deque()  # at most UNREAD_TOKENS, plus one per text
        # numbers of the requests that are paused until the client has read their tokens
        self._paused: set[int] = set()
        # guards `_arrived` and `_paused`, and blocks events until their request is in `_submitted`
        self._lock = threading.RLock()
        self._is_woken = False  # the event loop has been notified
        self._has_arrived = asyncio.Event()
        self._submitted: list[GeneratedSequence] = []
        self._submitted_at = time.monotonic()
        self.seconds_to_first: float | None = None
        self.texts = [Generated() for _ in requests]

    async def __aenter__(self) -> "RunningRequests":
        """Submit the requests. Raises LLMError if the engine's queue is full or it cannot run."""
        try:
            for number, request in enumerate(self._requests):
                with self._lock:
                    self._submitted.append(self._engine.submit(request, partial(self._receive, number), self))
        except LLMError:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for submitted, text in zip(self._submitted, self.texts, strict=False):
            if text.finished is None:
                self._engine.cancel(submitted)

    def _receive(self, number: int, event: Event) -> None:
        """Runs in the engine's thread."""
        with self._lock:
            self._arrived.append((number, event))
            if len(self._arrived) > UNREAD_TOKENS:
                self._paused.add(number)
                self._engine.pause(self._submitted[number], True)
        if not self._is_woken and not self._loop.is_closed():
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_woken = False
        if self._arrived:  # otherwise, they have been read since
            self._has_arrived.set()

    async def _wait(self, seconds: float) -> None:
        """Wait for an event or for some seconds. (Before Python 3.12, `asyncio.wait_for` loses a cancellation
        that arrives together with a result.)"""
        self._has_arrived.clear()
        timer = self._loop.call_later(seconds, self._has_arrived.set)
        try:
            await self._has_arrived.wait()
        finally:
            timer.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Event] | None]:
        """Yield (number of the request, event) until all have finished; None after KEEP_ALIVE_SECONDS without
        events. Raises ApiError if a request fails, or after REQUEST_SECONDS."""
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
            with self._lock:
                number, event = self._arrived.popleft()
                if len(self._arrived) <= UNREAD_TOKENS // 2:  # resume once half the backlog is read
                    for paused in self._paused:
                        self._engine.pause(self._submitted[paused], False)
                    self._paused.clear()
            if isinstance(event, ApiError):
                raise event
            if isinstance(event, Exception):
                raise as_api_error(event) from event
            if isinstance(event, Token) and self.seconds_to_first is None:
                self.seconds_to_first = time.monotonic() - self._submitted_at
            self.texts[number].add(event)
            left -= isinstance(event, Finished)
            yield number, event

    async def finish(self) -> list[Generated]:
        """Wait until all texts are complete, and return them. Raises ApiError like `events`."""
        async for _ in self.events():
            pass
        return self.texts
