"""Random requests for the routes of the server, as hypothesis strategies of (method, path, body)."""

import json
from typing import Any

from hypothesis import strategies as st

from llmcli.server.api.schema import openapi
from llmcli.server.http.app import OPERATIONS
from tests.server.wrong_requests import RIGHT

DESCRIPTION = openapi(OPERATIONS)
PATHS = DESCRIPTION["paths"]
POSTS = sorted(path for path, operations in PATHS.items() if "post" in operations)
RIGHT_BODY = b'{"prompt": "The cat", "max_tokens": 2, "temperature": 0, "stop": ["a", "b"], "logprobs": 1}'
Request = tuple[str, str, bytes]

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20),
    st.sampled_from([10**400, -1, 0, 1e308, "", "\x00", "\ud83d\ude00"]),
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
sensible = st.sampled_from([0, 1, 2, 0.5, True, False, ["a"], "chat", "text"])


def properties(path: str) -> list[str]:
    """The fields of a route's body."""
    reference = PATHS[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    return sorted(DESCRIPTION["components"]["schemas"][reference.rpartition("/")[2]]["properties"])


@st.composite
def field_requests(draw: Any) -> Request:
    """Known fields of a route with random values, in half of the requests beside right ones; two tokens at most."""
    path = draw(st.sampled_from(POSTS))
    right = {name: RIGHT[name] for name in properties(path) if name in RIGHT} if draw(st.booleans()) else {}
    names = st.sampled_from([name for name in properties(path) if name not in right] or properties(path))
    body = right | draw(st.dictionaries(names, sensible | values if right else values, max_size=3 if right else 6))
    body["max_tokens"] = body.get("max_tokens", 2) if body.get("max_tokens", 2) in (0, 1, 2, None, "x", -1) else 2
    return "POST", path, json.dumps(body).encode()


byte_requests = st.tuples(st.just("POST"), st.sampled_from(POSTS), st.binary(max_size=200))


@st.composite
def damaged_requests(draw: Any) -> Request:
    """A right body with some bytes replaced or removed."""
    body = bytearray(RIGHT_BODY)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body) - 1))
        body[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return "POST", "/v1/completions", bytes(body)


@st.composite
def path_requests(draw: Any) -> Request:
    """Any method for any path."""
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]))
    path = draw(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=30))
    for character in "?#%\\":
        path = path.replace(character, "")
    return method, "/" + path.lstrip("/"), b""


any_request = st.one_of(*[field_requests()] * 3, byte_requests, damaged_requests(), path_requests())
