"""Who may use the server: the Host and Origin headers and the API key of a request.

A page of any website, and of any other program on this computer, can send requests to a server on the computer where
the browser runs. Those from other origins carry an Origin header, which is checked; a name that a website resolved to
127.0.0.1 (DNS rebinding) is in the Host header, which is checked too.
"""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass

from llmcli.server.errors import ApiError
from llmcli.server.limits import MAX_BODY_BYTES

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN_PATHS = frozenset({"/", "/health", "/v1/health"})  # without a key
PREFLIGHT_SECONDS = 600  # that a browser may remember the answer
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{1,5})?")  # nothing else, such as a user before it

Headers = Mapping[str, str]


@dataclass(frozen=True)
class Access:
    """What is checked of each request."""

    hosts: frozenset[str] | None = LOOPBACK_NAMES  # names in the Host header; None: any, which a key makes safe
    origins: frozenset[str] = frozenset()  # besides the server's own; "*": any
    api_key: str | None = None

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raise ApiError for a request that must not be answered."""
        _check_framing(headers)
        self._check_host(headers.get("host", ""))
        self._check_origin(headers)
        if is_preflight(method, headers):
            return
        if self.api_key is not None and path not in OPEN_PATHS:
            self._check_key(headers.get("authorization", ""), self.api_key)

    def _check_host(self, host: str) -> None:
        if self.hosts is not None and _name(host) not in self.hosts:
            names = ", ".join(sorted(self.hosts))
            raise ApiError(
                f"the Host header must name this computer ({names}), found {host[:100]!r}", 403, code="host_not_allowed"
            )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is not None and not self._is_allowed(origin, headers.get("host", "")):
            raise ApiError(
                f"requests from pages of {origin[:100]!r} are not allowed; to allow them, start the server with "
                "--cors-origin and this origin",
                403,
                code="origin_not_allowed",
            )

    def _is_allowed(self, origin: str, host: str) -> bool:
        own = (f"http://{host.lower()}", f"https://{host.lower()}")
        return "*" in self.origins or origin in self.origins or origin in own

    def _check_key(self, authorization: str, key: str) -> None:
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
            problem = "wrong" if authorization else "missing"
            raise ApiError(
                f"the API key is {problem}; send it as the header Authorization: Bearer KEY",
                401,
                code="invalid_api_key",
            )

    def cors_headers(self, method: str, headers: Headers) -> dict[str, str]:
        """The headers that let a page of an allowed origin read the answer."""
        origin = headers.get("origin")
        if origin is None or not self._is_allowed(origin, headers.get("host", "")):
            return {}
        allowed = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if is_preflight(method, headers):
            allowed |= {
                "Access-Control-Allow-Methods": "GET, POST",
                "Access-Control-Allow-Headers": headers.get("access-control-request-headers", ""),
                "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
            }
        return allowed


def is_preflight(method: str, headers: Headers) -> bool:
    """Whether a browser asks if it may send a request."""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _name(host: str) -> str | None:
    """The name in a Host header, without the port; None if it is not a name or an address alone.

    >>> _name("[::1]:8000"), _name("LOCALHOST:80"), _name("evil.com@localhost"), _name("localhost/evil")
    ('::1', 'localhost', None, None)
    """
    found = _HOST.fullmatch(host.lower())
    return found and (found[1] or found[2])


def _check_framing(headers: Headers) -> None:
    """Raise ApiError for a request with two lengths: programs disagree on where it ends and the next one begins (RFC
    9112, 6.3)."""
    if "content-length" in headers and "transfer-encoding" in headers:
        raise ApiError("the body must have a Content-Length or a Transfer-Encoding, found both", closes_connection=True)


def check_body(headers: Headers) -> None:
    """Raise ApiError for a body that is not read: another type than JSON, or too large."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            f"the body must be JSON; send it with the header Content-Type: application/json, found {kind[:100]!r}", 415
        )
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > MAX_BODY_BYTES:
        raise too_large()


def too_large() -> ApiError:
    """The error for a body that is too large."""
    return ApiError(f"the body must have at most {MAX_BODY_BYTES:,} bytes", 413)
