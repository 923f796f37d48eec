"""Who may use the server: Host, Origin, key and body of a request; nothing else leaks."""

import pytest

from llmcli.server.http.access import Access
from tests.server.conftest import client_of
from tests.server.wrong_requests import FOREIGN_HOSTS, LOCAL_HOSTS, WRONG_TYPES


@pytest.fixture(scope="module")
def guarded(served):
    access = Access(frozenset({"localhost", "127.0.0.1", "::1"}), frozenset({"https://good.example"}), "secret", None)
    with client_of(served, access=access) as client:
        yield client


def test_only_names_of_this_computer_are_hosts(client):
    for host in LOCAL_HOSTS:
        assert client.get("/health", headers={"host": host}).status_code == 200, host
    for host in FOREIGN_HOSTS:
        response = client.get("/health", headers={"host": host})
        assert response.status_code == 403 and response.json()["error"]["code"] == "host_not_allowed", host


def test_origins(client, guarded):
    for host in ("localhost:3000", "127.0.0.1:8000", "[::1]"):
        origin = f"http://{host}"
        response = client.get("/v1/models", headers={"host": host, "origin": origin})
        assert response.status_code == 200  # of the same origin, so a browser needs no permission
    for origin in (
        "https://evil.com", "null", "http://localhost.evil.com", "https://good.example", "http://localhost:3000",
        "http://127.0.0.1:3000", "http://localhost:8000", "http://127.0.0.1", "http://x@127.0.0.1:8000", "file://",
    ):  # fmt: skip
        response = client.get("/v1/models", headers={"origin": origin})
        assert response.status_code == 403 and "access-control-allow-origin" not in response.headers
    assert not any(name.startswith("access-control") for name in client.get("/v1/models").headers)
    key = {"authorization": "Bearer secret", "origin": "https://good.example"}
    response = guarded.get("/v1/models", headers=key)
    assert response.status_code == 200 and response.headers["access-control-allow-origin"] == "https://good.example"
    refused = guarded.get("/v1/models", headers={"origin": "https://good.example"})  # whose reason a page may read
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://good.example"


def test_a_preflight_request_needs_no_key(guarded):
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}
    response = guarded.options("/v1/completions", headers=asked | {"origin": "https://good.example"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-headers"] == "authorization, content-type"
    assert guarded.options("/v1/completions", headers=asked | {"origin": "https://evil.com"}).status_code == 400


def test_a_key_is_needed_where_one_is_set(guarded):
    assert guarded.get("/health").status_code == 200
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}, {"authorization": "Bearer é"}):
        response = guarded.get("/v1/models", headers={k: v.encode() for k, v in header.items()})
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
        assert "secret" not in response.text
    assert guarded.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200


def test_a_wrong_route_is_told_before_a_wrong_body(client):
    assert client.post("/v1/nowhere", content=b"x").status_code == 404
    assert client.post("/v1/models", content=b"x").status_code == 405
    assert client.post("/v1/completions", content=b"x").status_code == 415


def test_a_body_must_be_json(client):
    for kind in WRONG_TYPES:
        response = client.post("/v1/completions", content=b'{"prompt": "x"}', headers={"content-type": kind})
        assert response.status_code == 415
    charset = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/completions", content=b'{"prompt": "The"}', headers=charset).status_code == 200


def test_an_unexpected_error_says_nothing_to_the_client(served, monkeypatch):
    from llmcli.server.http import info_routes

    lines = []

    def fail(*_, **__):
        raise RuntimeError("a secret of /home/me")

    monkeypatch.setattr(info_routes, "HTMLResponse", fail)
    with client_of(served, log=lines.append) as client:
        response = client.get("/")
    assert response.status_code == 500 and "secret" not in response.text and "RuntimeError" not in response.text
    assert any("RuntimeError: a secret" in line for line in lines)
