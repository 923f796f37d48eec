"""The server's socket, its connections, and the loop that serves until a signal."""

import errno
import ipaddress
import math
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import HANDLED_SIGNALS

from llmcli.errors import LLMError, command_line, usage
from llmcli.server.limits import DRAIN_SECONDS, MAX_CONNECTIONS, RECEIVE_SECONDS, UNREAD_SECONDS

KEEP_ALIVE_IDLE_SECONDS = 30  # how long a connection stays open between requests
SEND_BUFFER_BYTES = 65_536  # with the default of several MB, slow clients would be noticed only after minutes


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises LLMError for an unknown host and for a port that cannot be used."""
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise usage(
            f"{command_line(['--host', host])} is not known; give a name or address of this computer: "
            "--host 127.0.0.1"
        ) from error
    takes_ipv4 = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(address, family=family, dualstack_ipv6=takes_ipv4)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise usage(
                f"--host {host} is not an address of this computer; give its address, such as "
                "--host 127.0.0.1"
            ) from error
        is_used = error.errno == errno.EADDRINUSE
        reason = "is in use by another program" if is_used else f"cannot be used: {error.strerror}"
        raise LLMError(
            f"port {port} {reason}; choose another: --port {max(1024, port % 65535 + 1)}"
        ) from error


def is_loopback(listener: socket.socket) -> bool:
    """Return whether only programs on this computer can connect."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def urls(listener: socket.socket) -> list[str]:
    """Return the URL for a browser on this computer and, if the server listens on all addresses, the URLs for
    other computers on the network."""
    host, port = listener.getsockname()[:2]
    hosts = [host]
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        is_ipv4 = ":" not in host or socket.has_dualstack_ipv6()
        hosts = [
            "127.0.0.1" if is_ipv4 else "::1",
            *_network_addresses(socket.AF_INET if is_ipv4 else socket.AF_INET6),
        ]
    return [f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host in hosts]


def _network_addresses(family: socket.AddressFamily) -> list[str]:
    """Return the address that this computer uses to reach others or, in a network without a default route,
    all addresses of its host name."""
    # addresses reserved for documentation
    example = "192.0.2.1" if family == socket.AF_INET else "2001:db8::1"
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((example, 9))  # only chooses a route: UDP sends nothing yet
        except OSError:
            with suppress(OSError):  # the host name may have no address
                addresses = {
                    str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, family)
                }
                return sorted(name for name in addresses if not ipaddress.ip_address(name).is_loopback)
            return []
        return [probe.getsockname()[0]]


class _Connection(H11Protocol):
    """A connection that is closed if its request does not arrive, or if its answer is not read. If there are
    too many connections, a connection without an answer in progress is closed to admit the next."""

    def connection_made(self, transport: Any) -> None:
        self._since = self.loop.time()  # start of its last request
        # since when the head of a request, and the client reading its answer, are awaited; infinity: not now
        self._head_since = self._since
        self._unread_since = math.inf
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        connections = [
            c for c in self.connections if isinstance(c, _Connection) and not c.transport.is_closing()
        ]
        if len(connections) > MAX_CONNECTIONS:
            idle = [c for c in connections if c is not self and c._rank() < 3]
            min(idle, key=lambda c: (c._rank(), c._since), default=self).transport.abort()

    def close_if_late(self) -> None:
        now = self.loop.time()
        if now - self._head_since >= RECEIVE_SECONDS:
            self.transport.close()
        if now - self._unread_since >= UNREAD_SECONDS:
            self.transport.abort()

    def _rank(self) -> int:
        """Return 0 if the connection is waiting for a request, 1 if the body has not arrived, 2 if the client
        does not read the answer, 3 if the request is being answered. The lowest rank is closed first."""
        if self._awaits_request():
            return 0
        if self.cycle.more_body:
            return 1
        return 2 if self._unread_since < math.inf else 3

    def _awaits_request(self) -> bool:
        """Return whether no request is in progress, that is, the head of the next request has not completely
        arrived."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        if self._awaits_request() and self._head_since == math.inf:
            self._since = self._head_since = self.loop.time()
        super().data_received(data)
        if not self._awaits_request():
            self._head_since = math.inf

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = min(self._unread_since, self.loop.time())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = math.inf


class Server(uvicorn.Server):
    """Serves an application on a socket, in the foreground: `run([socket])` ends at SIGINT, SIGTERM or
    `stop`."""

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

    async def on_tick(self, counter: int) -> bool:
        """Close late connections; called ten times a second."""
        for connection in [*self.server_state.connections]:
            if isinstance(connection, _Connection):
                connection.close_if_late()
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Keep ignoring the signals that the parent process ignored."""
        ignored = [number for number in HANDLED_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
        with super().capture_signals():
            if threading.current_thread() is threading.main_thread():
                for number in ignored:
                    signal.signal(number, signal.SIG_IGN)
            yield

    def stop(self) -> None:
        """Shut down after finishing the answers in progress."""
        self.should_exit = True
