"""The socket that the server listens on, and the loop that serves it until a signal ends it."""

import errno
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from uvicorn.server import HANDLED_SIGNALS

from llmcli.errors import LLMError, usage
from llmcli.server.http.connection import BoundedConnection
from llmcli.server.limits import DRAIN_SECONDS

BACKLOG = 128
KEEP_ALIVE_IDLE_SECONDS = 30  # that a connection stays open between two requests


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises LLMError for an unknown host and for a port that cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise usage(f"--host {host} is not known; give a name or address of this computer: --host 127.0.0.1") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would allow two servers on one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _bind_error(error, host, port) from error
    return listener


def _bind_error(error: OSError, host: str, port: int) -> LLMError:
    match error.errno:
        case errno.EADDRINUSE:
            return LLMError(f"port {port} is in use by another program; choose another: --port {port % 65535 + 1}")
        case errno.EACCES:
            return LLMError(f"port {port} may not be used here; choose one from 1024 on: --port 8000")
        case errno.EADDRNOTAVAIL:
            return usage(f"--host {host} is not an address of this computer; give one: --host 127.0.0.1")
        case _:
            return LLMError(f"{host}:{port} cannot be listened on: {error.strerror or error}")


def is_loopback(listener: socket.socket) -> bool:
    """Whether only programs on this computer can connect."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def url(listener: socket.socket) -> str:
    """The address in a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Leaves signals ignored that the parent process set to be ignored."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        ignored = [number for number in HANDLED_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
        with super().capture_signals():
            if threading.current_thread() is threading.main_thread():
                for number in ignored:
                    signal.signal(number, signal.SIG_IGN)
            yield


class Server:
    """Serves an application on a socket, in the foreground."""

    def __init__(self, app: Starlette) -> None:
        config = uvicorn.Config(
            app,
            http=BoundedConnection,
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
        self._server = _Server(config)

    def run(self, listener: socket.socket) -> None:
        """Serve until SIGINT or SIGTERM, whose handlers before run afterwards, or until `stop`."""
        self._server.run([listener])

    def stop(self) -> None:
        """End the loop after the answers in progress."""
        self._server.should_exit = True
