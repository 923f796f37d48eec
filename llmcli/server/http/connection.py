"""A connection to a client: uvicorn's, with bounds on how long a client may take to send and to read, and on how many
there are. When there are too many, one that is not being answered makes room for the next."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from llmcli.server.limits import MAX_CONNECTIONS, RECEIVE_SECONDS, UNREAD_SECONDS

SEND_BUFFER_BYTES = 65_536  # the system's megabytes would take minutes of unread text before a client counts as slow


class BoundedConnection(H11Protocol):
    """Closes a connection whose request does not arrive, or whose answer is not read."""

    _head_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None
    _since = 0.0  # when its last request began

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        open_ones = [one for one in self.connections if isinstance(one, BoundedConnection) and one._is_open()]
        if len(open_ones) > MAX_CONNECTIONS:
            (self._least_needed(open_ones) or self).transport.abort()
        if not transport.is_closing():
            self._start_head_timer()

    def _least_needed(self, connections: "Sequence[BoundedConnection]") -> "BoundedConnection | None":
        """The connection that makes room for this one: the oldest that awaits a request, else the oldest whose body has
        not arrived, else the oldest whose answer is not read; None if all are being answered."""
        ranked = [(rank, one._since, one) for one in connections if (rank := one._rank()) is not None and one != self]
        return min(ranked, key=lambda one: one[:2])[2] if ranked else None

    def _is_open(self) -> bool:
        return not self.transport.is_closing()

    def _rank(self) -> int | None:
        if self._awaits_request():
            return 0
        if self.cycle.more_body:
            return 1
        return 2 if self._unread_timer is not None else None

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
        self._since = self.loop.time()
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
