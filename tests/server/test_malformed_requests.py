"""Malformed requests, made from the published description and at random: always an error of the client's.

LLMCLI_TEST_REQUESTS is their number, 100 by default.
"""

import os

import pytest
from hypothesis import HealthCheck, given, settings

pytest.importorskip("starlette", reason='needs pip install "llmcli[serve]"')


from tests.server.random_requests import any_request

REQUESTS = int(os.environ.get("LLMCLI_TEST_REQUESTS", "100"))
JSON = {"content-type": "application/json"}


@pytest.mark.slow
@settings(max_examples=REQUESTS, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(any_request)
def test_random_requests(client, request_):
    method, path, body = request_
    response = client.request(method, path, content=body, headers=JSON)
    assert response.status_code < 500, response.text
    if response.status_code >= 400 and response.content:  # the answer to HEAD has no body
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in response.text and ".py" not in response.text
