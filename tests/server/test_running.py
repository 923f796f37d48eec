"""Requests in the engine: a full queue, clients that leave, models that cannot be loaded, and the log."""

import asyncio
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest
from starlette.testclient import TestClient

from llmcli.errors import LLMError
from llmcli.generation.next_words import next_words
from llmcli.server import analysis_routes
from llmcli.server.app import Hooks, create_app
from llmcli.server.errors import ModelLoadError
from llmcli.server.limits import MAX_ANALYSES
from llmcli.server.models import Models, ServedModel
from llmcli.server.requests import Limits
from tests.sample_models import run
from tests.server.conftest import URL

HEADERS = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]


async def leave_after(app, body, messages):
    """Send a request, and disconnect after that many messages of the answer."""
    sent, left = [], asyncio.Event()
    parts = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive():
        if parts:
            return parts.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if len(sent) >= messages:
            left.set()

    if not messages:
        asyncio.get_running_loop().call_later(0.1, left.set)
    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"", "query_string": b"",
        "headers": HEADERS, "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80), "client": None,
        "root_path": "", "asgi": {"version": "3.0", "spec_version": "2.3"}, "state": {},
    }  # fmt: skip
    await asyncio.wait_for(app(scope, receive, send), 60)
    return sent


@pytest.mark.parametrize(("stream", "messages"), [(True, 5), (False, 0)])
def test_a_client_that_leaves_frees_its_place(served, stream, messages):
    app = create_app(Models(served))

    async def story():
        async with app.router.lifespan_context(app):
            body = {"prompt": "The", "max_tokens": 30_000, "stream": stream, "temperature": 0}
            await leave_after(app, body, messages)
            engine = app.state.service.engine
            for _ in range(100):
                if engine.stats().counts.cancelled == 1:
                    break
                await asyncio.sleep(0.05)
            assert engine.stats().counts.cancelled == 1 and engine.stats().active == 0

    asyncio.run(story())


def test_a_full_queue_is_a_429(served):
    with TestClient(create_app(Models(served), limits=Limits(concurrent=1, queue=2)), base_url=URL) as client:
        response = client.post("/v1/completions", json={"prompt": "The", "n": 32, "max_tokens": 2000})
        assert response.status_code == 429 and response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "queue_full"
        assert client.post("/v1/completions", json={"prompt": "The", "stream": True, "n": 32}).status_code == 429
        assert client.post("/v1/completions", json={"prompt": "The"}).status_code == 200


def test_the_first_model_that_cannot_be_loaded_is_reported(served, monkeypatch):
    from llmcli.server import models

    def fail(*_, **__):
        raise LLMError(f"{served[0]}: damaged")

    monkeypatch.setattr(models, "open_runtime", fail)
    errors, notes = [], []
    app = create_app(Models(served[:1], on_note=notes.append), hooks=Hooks(on_load_error=errors.append))
    with TestClient(app, base_url=URL) as client:
        response = client.post("/v1/completions", json={"prompt": "The"})
        assert response.status_code == 503 and str(served[0].parent) not in response.text
        assert client.get("/health").status_code == 200  # it is not loading any more
    assert "damaged" in str(errors[0]) and any("could not be loaded" in note for note in notes)


def test_two_files_of_one_name_are_refused(served, tmp_path):
    other = tmp_path / "text.safetensors"
    other.write_bytes(served[0].read_bytes())
    with pytest.raises(LLMError, match="would both be served as text"):
        Models([served[0], other])


def test_a_model_that_is_named_twice_is_refused(served):
    with pytest.raises(LLMError, match="is named twice"):
        Models([served[0], served[0]])


def test_a_name_that_json_cannot_hold_is_refused(served, tmp_path):
    path = tmp_path / "bad\udcff.safetensors"
    try:
        path.write_bytes(served[0].read_bytes())
    except (OSError, UnicodeError):
        pytest.skip("this file system has only names in UTF-8")
    with pytest.raises(LLMError, match="not UTF-8 text; rename the file"):
        Models([path])


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_model_whose_file_changed_before_its_first_use_is_not_loaded(served, tmp_path, is_deleted):
    path, notes = tmp_path / "later.safetensors", []
    path.write_bytes(served[0].read_bytes())
    with TestClient(create_app(Models([*served, path], on_note=notes.append)), base_url=URL) as client:
        path.unlink()
        if not is_deleted:
            path.write_bytes(served[1].read_bytes())
        answers = [
            client.post("/v1/completions", json={"model": "later", "prompt": "The"}),
            client.get("/v1/models/later/card"),
        ]
        assert client.post("/v1/completions", json={"prompt": "The"}).status_code == 200
    for answer in answers:
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "model_not_loaded"
    assert any(("cannot be read" if is_deleted else "was replaced") in note for note in notes)


def test_a_model_directory_is_the_same_until_a_file_of_the_model_changes(served, tmp_path):
    assert run("export", served[0], tmp_path / "model", "--to", "hf").exit_code == 0
    model = ServedModel(tmp_path / "model")
    (tmp_path / "model" / "server.log").write_text("a line")
    model.check_unchanged()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(LLMError, match="was replaced"):
        model.check_unchanged()


def test_an_explanation_never_reads_a_file_that_was_replaced(served, tmp_path):
    path = tmp_path / "text.safetensors"
    path.write_bytes(served[0].read_bytes())
    explained, other = ServedModel(path), ServedModel(path)
    explained.readable_runtime(explained.source)
    path.write_bytes(served[1].read_bytes())
    explained.readable_runtime(explained.source)  # it is in memory
    with pytest.raises(ModelLoadError, match="was replaced"):
        other.readable_runtime(other.source)


@pytest.mark.parametrize("with_contents", [False, True])
def test_the_log_has_a_line_a_request_and_contents_only_if_asked(served, with_contents):
    lines = []
    app = create_app(Models(served), hooks=Hooks(log=lines.append), log_contents=with_contents)
    with TestClient(app, base_url=URL) as client:
        client.post("/v1/completions", json={"prompt": "Zebra\nsecret", "max_tokens": 3})
        client.get("/nowhere?q=secret")
    assert lines[0].startswith("POST /v1/completions 200 model=text prompt=") and "new=3" in lines[0]
    assert any(line.startswith("GET /nowhere 404") for line in lines)
    assert any("Zebra" in line for line in lines) == with_contents
    assert all("\n" not in line for line in lines)


def test_too_many_analyses_are_refused_and_the_engine_goes_on(served, monkeypatch):
    """The first analysis ends when all but as many as are allowed have been refused."""
    full = threading.Event()
    monkeypatch.setattr(
        analysis_routes, "next_words", lambda *values: full.wait(60) and next_words(*values[:-1], limit=4)
    )
    with TestClient(create_app(Models(served)), base_url=URL) as client, ThreadPoolExecutor(24) as threads:
        asked = [threads.submit(client.post, "/v1/next", json={"prompt": "The cat"}) for _ in range(24)]
        refused = list(itertools.islice(as_completed(asked, 60), 24 - MAX_ANALYSES))
        full.set()
        assert {one.result().status_code for one in refused} == {429}
        assert [one.result().status_code for one in asked if one not in refused] == [200] * MAX_ANALYSES
        assert client.post("/v1/completions", json={"prompt": "The"}).status_code == 200
        assert client.post("/v1/next", json={"prompt": "The cat"}).status_code == 200
