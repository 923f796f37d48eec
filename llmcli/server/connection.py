"""A connection to a client: uvicorn's, with bounds on how long a client may take to send and to read, and on how many
there are."""

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from llmcli.server.limits import MAX_CONNECTIONS, RECEIVE_SECONDS, UNREAD_SECONDS

SEND_BUFFER_BYTES = 65_536  # the system's megabytes would take minutes of unread text before a client counts as slow


class BoundedConnection(H11Protocol):
    """Closes a connection whose request does not arrive, or whose answer is not read."""

    _head_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._start_head_timer()

    def data_received(self, data: bytes) -> None:
        if self._awaits_request() and self._head_timer is None:
            self._start_head_timer()
        super().data_received(data)
        if not self._awaits_request():
            self._stop_head_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self._unread_timer or self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_unread_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def _awaits_request(self) -> bool:
        """Whether no request is being answered: the next one has not arrived, or only a part of its head."""
        return self.cycle is None or self.cycle.response_complete

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(RECEIVE_SECONDS, self._on_head_timer)

    def _on_head_timer(self) -> None:
        self._head_timer = None
        if self._awaits_request() and not self.transport.is_closing():
            self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
