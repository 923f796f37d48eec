"""Malformed requests to a process, made from the published description and at random: always an error of the client's,
which tells nothing of the server's files and code. LLMCLI_TEST_REQUESTS is their number, 100 by default.
"""

import http.client
import json
import os
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette", reason='needs pip install "llmcli[serve]"')

from llmcli.server.api.schema import openapi
from llmcli.server.http.app import OPERATIONS
from tests.server.processes import serving
from tests.server.wrong_requests import RIGHT

REQUESTS = int(os.environ.get("LLMCLI_TEST_REQUESTS", "100"))
LEAKS = re.compile(rb'Traceback|File \\?"|\w\.py\b|/home/|/tmp/|/usr/|/root|site-packages|object at 0x')
GROWTH = 50  # MB that they may cost


DESCRIPTION = openapi(OPERATIONS)
PATHS = DESCRIPTION["paths"]
POSTS = sorted(path for path, operations in PATHS.items() if "post" in operations)
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
def path_requests(draw: Any) -> Request:
    """Any method for any path."""
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]))
    path = draw(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=30))
    for character in "?#%\\":
        path = path.replace(character, "")
    return method, "/" + path.lstrip("/"), b""


any_request = st.one_of(*[field_requests()] * 3, byte_requests, path_requests())


def answer_to(port, method, path, body):
    """(status, body)"""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    client.request(method, path, body, {"Content-Type": "application/json"})
    response = client.getresponse()
    answer = response.status, response.read()
    client.close()
    return answer


@pytest.mark.slow
def test_random_requests(served):
    question = ("POST", "/v1/completions", b'{"prompt": "The cat", "temperature": 0}')
    with serving(served[1]) as process:
        before, memory = json.loads(answer_to(process.port, *question)[1])["choices"], process.megabytes

        @settings(
            max_examples=REQUESTS,
            suppress_health_check=[*HealthCheck],
            derandomize=True,
            database=None,
            phases=[Phase.generate],
        )
        @given(any_request)
        def send(request):
            status, body = answer_to(process.port, *request)
            assert status < 500, body
            if status >= 400 and body:  # the answer to HEAD has no body
                assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
                assert not LEAKS.search(body), body

        send()
        assert not process.megabytes - memory > GROWTH  # not a number where it is not known
        assert json.loads(answer_to(process.port, *question)[1])["choices"] == before
        assert not re.search(r"Traceback|error:|Exception| 5\d\d ", process.log)
