"""The socket that the server listens on, its connections, and the loop that serves it until a signal ends it."""

import asyncio
import errno
import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import HANDLED_SIGNALS

from llmcli.errors import LLMError, usage
from llmcli.server.limits import DRAIN_SECONDS, MAX_CONNECTIONS, RECEIVE_SECONDS, UNREAD_SECONDS

KEEP_ALIVE_IDLE_SECONDS = 30  # a connection stays open between two requests
SEND_BUFFER_BYTES = 65_536  # the system's megabytes would take minutes of unread text before a client counts as slow


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises LLMError for an unknown host and for a port that cannot be used."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise usage(f"--host {host} is not known; give a name or address of this computer: --host 127.0.0.1") from error
    takes_ipv4 = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(address, family=family, dualstack_ipv6=takes_ipv4)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise usage(f"--host {host} is not an address of this computer; give one: --host 127.0.0.1") from error
        is_used = error.errno == errno.EADDRINUSE
        reason = "is in use by another program" if is_used else f"cannot be used: {error.strerror}"
        raise LLMError(f"port {port} {reason}; choose another: --port {max(1024, port % 65535 + 1)}") from error


def is_loopback(listener: socket.socket) -> bool:
    """Whether only programs on this computer can connect."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def url(listener: socket.socket) -> str:
    """The address in a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Connection(H11Protocol):
    """Closes a connection whose request does not arrive, or whose answer is not read. When there are too many, one that
    is not being answered makes room for the next."""

    def connection_made(self, transport: Any) -> None:
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._since = self.loop.time()  # when its last request began
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        open_ones = [one for one in self.connections if isinstance(one, _Connection) and not one.transport.is_closing()]
        if len(open_ones) > MAX_CONNECTIONS:
            idle = [one for one in open_ones if one is not self and one._rank() < 3]
            min(idle, key=lambda one: (one._rank(), one._since), default=self).transport.abort()
        if not transport.is_closing():
            self._start_head_timer()

    def _rank(self) -> int:
        """0: it awaits a request; 1: the body has not arrived; 2: the answer is not read; 3: it is being answered."""
        if self._awaits_request():
            return 0
        return 1 if self.cycle.more_body else 2 if "unread" in self._timers else 3

    def _awaits_request(self) -> bool:
        """Whether no request is being answered: the next one has not arrived, or only a part of its head."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        if self._awaits_request() and "head" not in self._timers:
            self._start_head_timer()
        super().data_received(data)
        if not self._awaits_request():
            self._stop_timer("head")

    def pause_writing(self) -> None:
        super().pause_writing()
        if "unread" not in self._timers:
            self._timers["unread"] = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_timer("unread")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer("head")
        self._stop_timer("unread")
        super().connection_lost(exc)

    def _start_head_timer(self) -> None:
        self._since = self.loop.time()
        self._timers["head"] = self.loop.call_later(RECEIVE_SECONDS, self._on_head_timer)

    def _on_head_timer(self) -> None:
        del self._timers["head"]
        if self._awaits_request() and not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()


class Server(uvicorn.Server):
    """Serves an application on a socket, in the foreground: `run([socket])` ends at SIGINT, SIGTERM or `stop`."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Connection,
                ws="none",
                lifespan="on",
                loop="asyncio",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_IDLE_SECONDS,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals ignored that the parent process set to be ignored."""
        ignored = [number for number in HANDLED_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
        with super().capture_signals():
            if threading.current_thread() is threading.main_thread():
                for number in ignored:
                    signal.signal(number, signal.SIG_IGN)
            yield

    def stop(self) -> None:
        """End after the answers in progress."""
        self.should_exit = True
