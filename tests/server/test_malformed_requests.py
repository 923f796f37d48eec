"""Malformed requests, made from the published description and at random: always an error of the client's, in time.

LLMCLI_TEST_REQUESTS is how many of each kind, 100 by default.
"""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="needs pip install 'llmcli[serve]'")

from starlette.testclient import TestClient

from llmcli.server.app import create_app
from llmcli.server.models import Models
from llmcli.server.openapi import PATHS, SCHEMAS
from tests.server.conftest import URL

REQUESTS = int(os.environ.get("LLMCLI_TEST_REQUESTS", "100"))
POSTS = sorted(path for path, operations in PATHS.items() if "post" in operations)
JSON = {"content-type": "application/json"}
thorough = settings(max_examples=REQUESTS, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20),
    st.sampled_from([10**400, -1, 0, 1e308, "", "\x00", "\ud83d\ude00"]),
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def properties(path):
    """The fields of a route's body."""
    schema = PATHS[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rsplit("/", 1)[1]]
    return sorted(schema["properties"])


def check(response):
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in response.text and ".py" not in response.text


@pytest.mark.slow
@thorough
@given(st.data())
def test_random_fields(client, data):
    path = data.draw(st.sampled_from(POSTS))
    body = data.draw(st.dictionaries(st.sampled_from(properties(path)), values, max_size=6))
    body["max_tokens"] = body.get("max_tokens", 2) if body.get("max_tokens", 2) in (0, 1, 2, None, "x", -1) else 2
    check(client.post(path, content=json.dumps(body), headers=JSON))


@thorough
@given(st.sampled_from(POSTS), st.binary(max_size=200))
def test_random_bytes(client, path, body):
    response = client.post(path, content=body, headers=JSON)
    check(response)
    assert response.status_code >= 400


@thorough
@given(st.data())
def test_damaged_bodies(client, data):
    """A right body with some bytes replaced or removed."""
    body = bytearray(b'{"prompt": "The cat", "max_tokens": 2, "temperature": 0, "stop": ["a", "b"], "logprobs": 1}')
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    check(client.post("/v1/completions", content=bytes(body), headers=JSON))


@thorough
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]),
    st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
)
def test_random_paths(client, method, path):
    path = "/" + path.replace("?", "").replace("#", "").replace("%", "").replace("\\", "").lstrip("/")
    response = client.request(method, path)
    assert response.status_code < 500


@pytest.mark.slow
def test_schemathesis(served):
    """Requests that schemathesis makes from the description, right and wrong ones."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs pip install schemathesis")
    with TestClient(create_app(Models(served)), base_url=URL) as client:
        schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        for result in schema.get_all_operations():
            operation = result.ok()
            run_cases(operation, schemathesis.GenerationMode.POSITIVE, client)
            if operation.method == "post":  # without a body nothing can be wrong
                run_cases(operation, schemathesis.GenerationMode.NEGATIVE, client)


def run_cases(operation, mode, client):
    strategy = operation.as_strategy(generation_mode=mode)

    @settings(thorough, max_examples=max(5, REQUESTS // 20))
    @given(strategy)
    def run(case):
        body = case.body if isinstance(case.body, dict) else None
        if body is not None and isinstance(body.get("max_tokens"), int):
            body["max_tokens"] = min(body["max_tokens"], 2)
        if body is not None and isinstance(body.get("n"), int):
            body["n"] = min(body["n"], 2)
        try:
            data = json.dumps(case.body) if operation.method == "post" else None
        except (TypeError, ValueError):
            return
        response = client.request(operation.method.upper(), case.formatted_path, content=data, headers=JSON)
        check(response)

    run()
