"""Access checks: the Host and Origin headers and the API key of a request.

A page on any website can send requests to a server on the browser's computer. The Origin header then names
the website; if the website's name resolves to 127.0.0.1 (DNS rebinding), the Host header names it.
"""

import hmac
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmcli.server.errors import ApiError
from llmcli.server.http.classroom import Classroom
from llmcli.server.http.listening import is_loopback, urls
from llmcli.server.limits import MAX_BODY_BYTES

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN_PATHS = frozenset({"/", "/health", "/v1/health"})  # no key required
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{1,5})?")  # only a host and a port

Headers = Mapping[str, str]


@dataclass(frozen=True)
class Access:
    """The access rules for all requests."""

    # allowed in the Host header; None: any, which is safe with a key or a class code
    hosts: frozenset[str] | None
    origins: frozenset[str]  # allowed besides the server's own; "*": any
    api_key: str | None
    classroom: Classroom | None  # admits requests if there is no key

    @classmethod
    def to(
        cls, listener: socket.socket, host: str, api_key: str | None = None, origins: Iterable[str] = ()
    ) -> "Access":
        """Return the rules of a server on `host`. If other computers can connect and there is no key, a class
        code is needed."""
        hosts = LOOPBACK_NAMES | {host.lower()} if is_loopback(listener) else None
        classroom = Classroom(urls(listener)[-1]) if hosts is None and api_key is None else None
        return cls(hosts, frozenset(origins), api_key, classroom)

    def check(self, path: str, headers: Headers) -> None:
        """Raise ApiError for a request that is not allowed."""
        if "content-length" in headers and "transfer-encoding" in headers:
            # implementations disagree on where such a request ends (request smuggling; RFC 9112, 6.3)
            message = "the body must have a Content-Length or a Transfer-Encoding, found both"
            raise ApiError(message, headers={"Connection": "close"})
        host = headers.get("host", "")
        origin = headers.get("origin")
        if self.hosts is not None and _name(host) not in self.hosts:
            names = ", ".join(sorted(self.hosts))
            message = f"the Host header must name this computer ({names}), found {host[:100]!r}"
            raise ApiError(message, 403, code="host_not_allowed")
        own = (f"http://{host.lower()}", f"https://{host.lower()}")
        if origin is not None and "*" not in self.origins and origin not in {*own, *self.origins}:
            raise ApiError(
                f"requests from pages of {origin[:100]!r} are not allowed; llm serve allows those of an "
                "origin that --cors-origin names",
                403,
                code="origin_not_allowed",
            )
        if self.api_key is not None and path not in OPEN_PATHS:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(
                key.strip().encode(), self.api_key.encode()
            ):
                problem = "wrong" if scheme else "missing"
                message = f"the API key is {problem}; send it as the header Authorization: Bearer KEY"
                raise ApiError(message, 401, code="invalid_api_key")


def _name(host: str) -> str | None:
    """Return the name in a Host header without the port; None if the header has anything else.

    >>> _name("[::1]:8000"), _name("LOCALHOST:80"), _name("evil.com@localhost"), _name("localhost/evil")
    ('::1', 'localhost', None, None)
    """
    match = _HOST.fullmatch(host.lower())
    return match and (match[1] or match[2])


def check_body(headers: Headers) -> None:
    """Raise ApiError for a body that is not JSON or too large, before it is read."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            "the body must be JSON; send it with the header Content-Type: application/json, "
            f"found {kind[:100]!r}",
            415,
        )
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > MAX_BODY_BYTES:
        raise too_large()


def too_large() -> ApiError:
    return ApiError(f"the body must have at most {MAX_BODY_BYTES:,} bytes", 413)
