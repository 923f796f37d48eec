"""A class: the code that its browsers send instead of an API key, the limits per address, and the invitation.

The code is short, so that students can type it from a projector. Therefore it gives access only to the routes
that the page needs, and an address that sends wrong codes is refused for the rest of the minute. A device may
have any number of addresses in its IPv6 network, which a class usually shares; after many wrong codes from
such a network, only its addresses that have already sent the code are served.
"""

import asyncio
import hmac
import ipaddress
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

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


def _address(request: HTTPConnection) -> str:
    return request.client.host if request.client else ""


def network_of(address: str) -> str | None:
    """Return the IPv6 network of an address, the first 64 bits; None for IPv4, also inside an IPv6 address.

    >>> network_of("2001:db8::1:2"), network_of("fe80::1%eth0"), network_of("::ffff:192.0.2.1")
    ('2001:db8::/64', 'fe80::/64', None)
    """
    with suppress(ValueError):  # not an address: a client in a test
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is None:
            return str(ipaddress.ip_network((ip, 64), strict=False))
    return None


@dataclass
class Classroom:
    """Admits the browsers of a class to the server at `url`."""

    url: str
    code: str = field(default_factory=new_code)
    clock: Callable[[], float] = time.monotonic
    _minute: float = -1
    # by address: requests and wrong codes in this minute, requests in progress; wrong codes also by network
    _requests: Counter[str] = field(default_factory=Counter)
    _wrong_codes: Counter[str | None] = field(default_factory=Counter)
    _running: Counter[str] = field(default_factory=Counter)
    _admitted: set[str] = field(default_factory=set)  # addresses that have sent the code
    # by address: held by its analysis in progress
    _turns: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

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
        address = _address(request)
        if (minute := self.clock() // 60) != self._minute:  # also forgets the addresses that send nothing
            self._minute = minute
            self._running = +self._running
            self._admitted &= self._requests.keys()
            self._requests = Counter()
            self._wrong_codes = Counter()
        self._requests[address] += 1
        is_locked = not is_open and self._is_locked(address)
        if is_locked or self._requests[address] > limits.CLASS_REQUESTS:
            what = "wrong class codes" if is_locked else "requests"
            message = f"too many {what} from this address; try again in a minute"
            code = "address_locked" if is_locked else "too_many_requests"
            raise ApiError(message, 429, code=code, headers={"Retry-After": "60"})
        if self._running[address] >= limits.CLASS_CONCURRENT:
            message = f"{limits.CLASS_CONCURRENT} requests from this address are in progress; try again later"
            raise ApiError(message, 429, code="queue_full")
        if not is_open:
            self._check(request, address)
        self._running[address] += 1
        try:
            yield
        finally:
            self._running[address] -= 1

    def turn(self, request: HTTPConnection) -> asyncio.Lock:
        """Return the lock of an address, which does one analysis at a time."""
        return self._turns.setdefault(_address(request), asyncio.Lock())

    def _is_locked(self, address: str) -> bool:
        guessed = self._wrong_codes[network_of(address)] >= limits.CLASS_NETWORK_WRONG_CODES
        is_new = address not in self._admitted
        return self._wrong_codes[address] >= limits.CLASS_WRONG_CODES or (guessed and is_new)

    def _check(self, request: HTTPConnection, address: str) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        typed = key if scheme.lower() == "bearer" else request.query_params.get("code", "")
        typed = re.sub(r"[\s-]", "", typed).upper()
        if not typed:
            raise ApiError("the class code is missing", 401, code="class_code_missing")
        if not hmac.compare_digest(typed.encode(), self.code.encode()):
            self._wrong_codes.update(filter(None, (address, network_of(address))))
            raise ApiError("the class code is wrong", 401, code="class_code_wrong")
        self._admitted.add(address)
        if not PAGE_ROUTES.fullmatch(request.scope["path"]):
            message = (
                "a class code gives access only to the page; "
                "for all routes, start the server with --api-key KEY"
            )
            raise ApiError(message, 403, code="not_for_classes")
