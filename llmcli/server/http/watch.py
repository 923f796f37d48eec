"""The server of `llm train --watch`: a page that shows a run, in a thread with its own event loop.

It is independent of training: the run passes texts to the server, and never waits for it.
"""

import math
import threading
import time
from collections.abc import Callable
from functools import cache
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from llmcli.errors import LLMError
from llmcli.server.http.access import Access
from llmcli.server.http.guard import Guard
from llmcli.server.http.listening import Server, bind, urls

HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
OPEN_SECONDS = 2.0  # a page that asked for the state within this time is open: it asks every second
ENDING_SECONDS = 0.5  # time for answers in progress at the end; their thread is a daemon


class WatchServer:
    """Serves the page of a run at `urls`, its `state` as JSON, and, once the model is saved, the page of the
    model."""

    def __init__(self, page: bytes, host: str, port: int) -> None:
        """Start serving. Raises LLMError."""
        self._page = page
        self.state = b"{}"
        self._shown = self.state
        self._shown_since = -math.inf
        self._asked = -math.inf  # time of the last request for the state
        self._model: tuple[str, Callable[[], bytes]] | None = None
        self._making = threading.Lock()
        self._listener = bind(host, port)
        self.urls = urls(self._listener)
        access = Access.to(self._listener, host)
        self.classroom = access.classroom
        routes = [
            Route("/", self._show),
            Route("/state", self._show_state),
            Route("/model", self._show_model),
        ]
        guard = Middleware(Guard, access=access, log=lambda line: None)
        self._server = Server(Starlette(routes=routes, middleware=[guard]))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)
        self._thread.start()

    def offer(self, name: str, make: Callable[[], bytes]) -> None:
        """Offer the page of the finished model under a file name; `make` is called when it is requested."""
        self._model = name, cache(make)

    def stop(self) -> None:
        """Stop serving, once all open pages have the last state, and the page of the model is built if it was
        requested."""
        while self._is_awaited():
            time.sleep(0.05)
        self._server.stop()
        with self._making:
            self._model = None
        self._thread.join(ENDING_SECONDS)
        self._listener.close()

    def _is_awaited(self) -> bool:
        """Return whether an open page may not have the last state yet."""
        since = self._shown_since if self._shown is self.state else self._asked
        return time.monotonic() < since + OPEN_SECONDS

    async def _show(self, _: Request) -> Response:
        policy = {"Content-Security-Policy": "frame-ancestors 'none'"}  # the page itself declares the rest
        return HTMLResponse(self._page, headers=HEADERS | policy)

    async def _show_state(self, _: Request) -> Response:
        self._asked = time.monotonic()
        if self._shown is not self.state:
            self._shown, self._shown_since = self.state, self._asked
        return Response(self._shown, media_type="application/json", headers=HEADERS)

    def _show_model(self, request: Request) -> Response:
        with self._making:
            if self._model is None:
                return PlainTextResponse("the model is not finished yet", 404, HEADERS)
            name, make = self._model
            try:
                made = make()
            except LLMError as error:
                return PlainTextResponse(str(error), 400, HEADERS)
        saved = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
        return HTMLResponse(made, headers=HEADERS | (saved if "download" in request.query_params else {}))
