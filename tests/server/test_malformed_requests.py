"""Malformed requests, made from the published description and at random: always an error of the client's, in time.

LLMCLI_TEST_REQUESTS is how many of each kind, 100 by default.
"""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings

pytest.importorskip("starlette", reason='needs pip install "llmcli[serve]"')

from starlette.testclient import TestClient

from llmcli.server.api.models import Models
from llmcli.server.http.app import create_app
from tests.server.conftest import URL
from tests.server.random_requests import any_request

REQUESTS = int(os.environ.get("LLMCLI_TEST_REQUESTS", "100"))
JSON = {"content-type": "application/json"}
thorough = settings(max_examples=REQUESTS, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def check(response):
    assert response.status_code < 500, response.text
    if response.status_code >= 400 and response.content:  # the answer to HEAD has no body
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in response.text and ".py" not in response.text


@pytest.mark.slow
@thorough
@given(any_request)
def test_random_requests(client, request_):
    method, path, body = request_
    check(client.request(method, path, content=body, headers=JSON))


@pytest.mark.slow
def test_schemathesis(served):
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
