"""A class: the code that its browsers send in place of an API key, the limits of each address, and the invitation.

The code is short enough to be typed from a projector. So it opens only what the page needs, and an address that
sends wrong codes is locked out for a while.
"""

import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from starlette.requests import HTTPConnection

from llmcli.server.errors import ApiError
from llmcli.server.limits import (
    CLASS_CONCURRENT,
    CLASS_REQUESTS,
    CLASS_SECONDS,
    CLASS_WRONG_CODES,
    MAX_CONNECTIONS,
)

ALPHABET = "CDFGHJKMNPRTVWXY3479"  # no vowels, which would make words, and no two characters that look alike
CODE_CHARACTERS = 6  # 64 million codes
# what the pages of `llm serve` and `llm train --watch` request
PAGE_ROUTES = re.compile(
    r"/v1/(models(/[^/]+/(page|examples))?|next|explain|memory|experts|(chat/)?completions)|/state|/model"
)
QUIET_MODULES = 4  # width of the margin of a QR code that its standard requires


def new_code() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(CODE_CHARACTERS))


@dataclass
class _Address:
    """What an address has sent in the current period."""

    began: float
    requests: int = 0
    wrong_codes: int = 0
    running: int = 0  # requests in progress, which may have begun earlier


@dataclass
class Classroom:
    """Admits the browsers of a class to the server at `url`."""

    url: str
    code: str = field(default_factory=new_code)
    clock: Callable[[], float] = time.monotonic
    _addresses: dict[str, _Address] = field(default_factory=dict)

    @property
    def link(self) -> str:
        """The URL with the code, which a browser keeps to itself: the page reads it and sends it as the key."""
        return f"{self.url}/#{self.code}"

    @cached_property
    def invitation(self) -> dict[str, Any]:
        """What the page shows for others to join; without segno, the QR code has no rows."""
        try:
            import segno
        except ImportError:
            return {"url": self.url, "code": self.code, "qr": []}
        rows = segno.make(self.link, micro=False).matrix_iter(border=QUIET_MODULES)
        return {"url": self.url, "code": self.code, "qr": ["".join(map(str, row)) for row in rows]}

    @contextmanager
    def admit(self, request: HTTPConnection, *, is_open: bool) -> Iterator[None]:
        """Count a request while it is answered. Raises ApiError for one beyond the limits of its address, and
        for one without the code, unless its route `is_open`."""
        address = self._address(request.client.host if request.client else "")
        address.requests += 1
        later = {"Retry-After": str(CLASS_SECONDS)}
        if address.wrong_codes >= CLASS_WRONG_CODES:
            message = f"too many wrong class codes from this address; try again in {CLASS_SECONDS} seconds"
            raise ApiError(message, 429, code="address_locked", headers=later)
        if address.requests > CLASS_REQUESTS or address.running >= CLASS_CONCURRENT:
            message = (
                f"too many requests from this address: at most {CLASS_REQUESTS} in {CLASS_SECONDS} seconds, and "
                f"{CLASS_CONCURRENT} at once; try again later"
            )
            raise ApiError(message, 429, code="too_many_requests", headers=later)
        if not is_open:
            self._check_code(request, address)
        address.running += 1
        try:
            yield
        finally:
            address.running -= 1

    def _address(self, name: str) -> _Address:
        now = self.clock()
        if len(self._addresses) > MAX_CONNECTIONS:  # forget those that send nothing
            self._addresses = {
                known: address
                for known, address in self._addresses.items()
                if address.running or now < address.began + CLASS_SECONDS
            }
        address = self._addresses.setdefault(name, _Address(now))
        if now >= address.began + CLASS_SECONDS:
            address.began, address.requests, address.wrong_codes = now, 0, 0
        return address

    def _check_code(self, request: HTTPConnection, address: _Address) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        typed = key if scheme.lower() == "bearer" else request.query_params.get("code", "")
        typed = re.sub(r"[\s-]", "", typed).upper()
        if not typed:
            raise ApiError("the class code is missing", 401, code="class_code_missing")
        if not hmac.compare_digest(typed.encode(), self.code.encode()):
            address.wrong_codes += 1
            if address.wrong_codes == CLASS_WRONG_CODES:
                address.began = self.clock()  # a locked address waits for the full time
            raise ApiError("the class code is wrong", 401, code="class_code_wrong")
        if not PAGE_ROUTES.fullmatch(request.scope["path"]):
            message = "a class code opens only what the page shows; for all routes, start the server with --api-key KEY"
            raise ApiError(message, 403, code="not_for_classes")
