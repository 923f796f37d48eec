"""Malformed requests to a process, made from the published description and at random: always an error of the client's,
which tells nothing of the server's files and code. LLMCLI_TEST_REQUESTS is their number, 100 by default.
"""

import http.client
import json
import os
import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings

pytest.importorskip("starlette", reason='needs pip install "llmcli[serve]"')

from tests.server.processes import serving
from tests.server.random_requests import any_request

REQUESTS = int(os.environ.get("LLMCLI_TEST_REQUESTS", "100"))
LEAKS = re.compile(rb'Traceback|File \\?"|\w\.py\b|/home/|/tmp/|/usr/|/root|site-packages|object at 0x')
GROWTH = 50  # MB that they may cost


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
            max_examples=REQUESTS, suppress_health_check=[*HealthCheck], derandomize=True, database=None,
            phases=[Phase.generate],
        )  # fmt: skip
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
