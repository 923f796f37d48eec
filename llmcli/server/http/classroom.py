"""A class: the code that its browsers send instead of an API key, the limits per address, and the invitation.

The code is short, so that students can type it from a projector. Therefore it gives access only to the routes
that the page needs, and an address that sends wrong codes is refused for the rest of the minute.
"""

import hmac
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from starlette.requests import HTTPConnection

from llmcli.server import limits
from llmcli.server.errors import ApiError

ALPHABET = "CDFGHJKMNPRTVWXY3479"  # no vowels, which could form words, and no characters that look alike
CODE_CHARACTERS = 6  # 64 million codes
# routes that the pages of `llm serve` and `llm train --watch` request
PAGE_ROUTES = re.compile(
    r"/v1/(models(/[^/]+/(page|examples))?|next|explain|memory|experts|(chat/)?completions)|/state|/model"
)


def new_code() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(CODE_CHARACTERS))


@dataclass
class Classroom:
    """Admits the browsers of a class to the server at `url`."""

    url: str
    code: str = field(default_factory=new_code)
    clock: Callable[[], float] = time.monotonic
    _minute: float = -1
    # by address: requests and wrong codes in this minute, requests in progress
    _requests: Counter[str] = field(default_factory=Counter)
    _wrong_codes: Counter[str] = field(default_factory=Counter)
    _running: Counter[str] = field(default_factory=Counter)

    @property
    def link(self) -> str:
        """The URL with the code in the fragment, which browsers do not send: the page sends it as the key."""
        return f"{self.url}/#{self.code}"

    @cached_property
    def invitation(self) -> dict[str, Any]:
        """The data that the page shows so that others can join; without segno, the QR code has no rows."""
        try:
            import segno
        except ImportError:
            return {"url": self.url, "code": self.code, "qr": []}
        rows = ["".join(map(str, row)) for row in segno.make(self.link, micro=False).matrix_iter()]
        return {"url": self.url, "code": self.code, "qr": rows}

    @contextmanager
    def admit(self, request: HTTPConnection, *, is_open: bool) -> Iterator[None]:
        """Count a request while it is answered. Raises ApiError if its address exceeds a limit, or if the
        request lacks the code, unless its route `is_open`."""
        address = request.client.host if request.client else ""
        if (minute := self.clock() // 60) != self._minute:  # also forgets the addresses that send nothing
            self._minute = minute
            self._running = +self._running
            self._requests = Counter()
            self._wrong_codes = Counter()
        self._requests[address] += 1
        is_locked = not is_open and self._wrong_codes[address] >= limits.CLASS_WRONG_CODES
        is_full = self._running[address] >= limits.CLASS_CONCURRENT
        if is_locked or is_full or self._requests[address] > limits.CLASS_REQUESTS:
            what = "wrong class codes" if is_locked else "requests"
            message = f"too many {what} from this address; try again in a minute"
            code = "address_locked" if is_locked else "too_many_requests"
            raise ApiError(message, 429, code=code, headers={"Retry-After": "60"})
        if not is_open:
            self._check(request, address)
        self._running[address] += 1
        try:
            yield
        finally:
            self._running[address] -= 1

    def _check(self, request: HTTPConnection, address: str) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        typed = key if scheme.lower() == "bearer" else request.query_params.get("code", "")
        typed = re.sub(r"[\s-]", "", typed).upper()
        if not typed:
            raise ApiError("the class code is missing", 401, code="class_code_missing")
        if not hmac.compare_digest(typed.encode(), self.code.encode()):
            self._wrong_codes[address] += 1
            raise ApiError("the class code is wrong", 401, code="class_code_wrong")
        if not PAGE_ROUTES.fullmatch(request.scope["path"]):
            message = (
                "a class code gives access only to the page; "
                "for all routes, start the server with --api-key KEY"
            )
            raise ApiError(message, 403, code="not_for_classes")
