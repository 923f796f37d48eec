"""Requests in the engine: a full queue, clients that leave, models that cannot be loaded, and the log."""

import asyncio
import itertools
import json
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

import pytest
from starlette.requests import ClientDisconnect

from llmcli.config import SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError, usage
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
from llmcli.formats.training_record import TrainingRecord
from llmcli.generation.engine import engine
from llmcli.generation.engine.requests import EngineLimits, Finished, GenerationRequest, Started, Token
from llmcli.generation.next_words import next_words
from llmcli.generation.token_healing import Prompt
from llmcli.server.api import prompts, running
from llmcli.server.api.models import ServedModel
from llmcli.server.errors import ApiError, as_api_error
from llmcli.server.http import analysis_routes
from llmcli.server.limits import LARGE_BODY_BYTES, MAX_ANALYSES, MAX_PREPARING
from tests.models.test_ngram_cache import WEIGHTS
from tests.sample_models import run
from tests.server.conftest import app_of, client_of, models_of

HEADERS = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]


async def leave(app, body, path="/v1/completions", began=None):
    """Send a request, and disconnect when it has begun; by default, a moment later."""
    sent, left = [], asyncio.Event()
    parts = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive():
        if parts:
            return parts.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    if began is not None:
        asyncio.get_running_loop().run_in_executor(None, began.wait, 60).add_done_callback(lambda _: left.set())
    else:
        asyncio.get_running_loop().call_later(0.1, left.set)
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": b"", "query_string": b"",
        "headers": HEADERS, "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80), "client": None,
        "root_path": "", "asgi": {"version": "3.0", "spec_version": "2.3"}, "state": {},
    }  # fmt: skip
    await asyncio.wait_for(app(scope, receive, send), 60)
    return sent


def test_a_client_that_leaves_frees_its_place(served):
    """Its answer is not streamed; test_serve_process.py has one that is."""
    app = app_of(served)

    async def story():
        async with app.router.lifespan_context(app):
            await leave(app, {"prompt": "The", "max_tokens": 30_000, "temperature": 0})
            engine = app.state.service.engine
            for _ in range(100):
                if not (engine.active or engine.waiting):
                    break
                await asyncio.sleep(0.05)
            assert (engine.active, engine.waiting) == ([], [])

    asyncio.run(story())


def test_a_full_queue_is_a_429(served):
    with client_of(served, limits=EngineLimits(concurrent=1, queue=2)) as client:
        response = client.post("/v1/completions", json={"prompt": "The", "n": 32, "max_tokens": 2000})
        assert response.status_code == 429 and response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "queue_full"
        assert client.post("/v1/completions", json={"prompt": "The", "stream": True, "n": 32}).status_code == 429
        assert client.post("/v1/completions", json={"prompt": "The"}).status_code == 200


def test_the_first_model_that_cannot_be_loaded_is_reported(served, monkeypatch):
    from llmcli.server.api import models

    def fail(*_, **__):
        raise LLMError(f"{served[0]}: damaged")

    monkeypatch.setattr(models, "open_runtime", fail)
    errors, notes = [], []
    with client_of(served[:1], notes.append, on_load_error=errors.append) as client:
        response = client.post("/v1/completions", json={"prompt": "The"})
        assert response.status_code == 503 and str(served[0].parent) not in response.text
        while client.get("/health").status_code == 503:  # until it knows that it is not loading any more
            time.sleep(0.01)
    assert "damaged" in str(errors[0]) and any("could not be loaded" in note for note in notes)


def test_two_files_of_one_name_are_refused(served, tmp_path):
    other = tmp_path / "text.safetensors"
    other.write_bytes(served[0].read_bytes())
    for second in (other, served[0]):
        with pytest.raises(LLMError, match="would both be served as text; rename or leave out one of them"):
            models_of([served[0], second])


def test_a_name_that_json_cannot_hold_is_refused(served, tmp_path):
    path = tmp_path / "bad\udcff.safetensors"
    try:
        path.write_bytes(served[0].read_bytes())
    except (OSError, UnicodeError):
        pytest.skip("this file system has only names in UTF-8")
    with pytest.raises(LLMError, match="not UTF-8 text; rename the file"):
        models_of([path])


def test_a_model_whose_file_changed_before_its_first_use_is_not_loaded(served, tmp_path):
    for is_deleted in [False, True]:
        path, notes = tmp_path / "later.safetensors", []
        path.write_bytes(served[0].read_bytes())
        with client_of([*served, path], on_note=notes.append) as client:
            path.unlink()
            if not is_deleted:
                path.write_bytes(served[1].read_bytes())
            answers = [
                client.post("/v1/completions", json={"model": "later", "prompt": "The"}),
                client.get("/v1/models/later/card"),
            ]
            assert client.post("/v1/completions", json={"prompt": "The"}).status_code == 200, is_deleted
        for answer in answers:
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "model_not_loaded", is_deleted
        assert any(("can no longer be read" if is_deleted else "was replaced") in note for note in notes), is_deleted


def test_a_model_directory_is_the_same_until_a_file_of_the_model_changes(served, tmp_path):
    assert run("export", served[0], tmp_path / "model", "--to", "hf").exit_code == 0
    model = ServedModel(tmp_path / "model", None)
    (tmp_path / "model" / "server.log").write_text("a line")
    model.check_unchanged()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ApiError, match="was replaced"):
        model.check_unchanged()


def test_an_explanation_never_reads_a_file_that_was_replaced(served, tmp_path):
    path = tmp_path / "text.safetensors"
    path.write_bytes(served[0].read_bytes())
    explained, other = ServedModel(path, None), ServedModel(path, None)
    explained.readable_runtime(explained.source)
    path.write_bytes(served[1].read_bytes())
    explained.readable_runtime(explained.source)  # it is in memory
    with pytest.raises(ApiError, match="was replaced"):
        other.readable_runtime(other.source)


def test_a_model_in_memory_is_explained_whatever_became_of_its_file(served, tmp_path, short_search):
    for has_cache in [False, True]:
        for is_deleted in [False, True]:
            path = tmp_path / "text.safetensors"
            record = {"ngram_cache": WEIGHTS._asdict()} if has_cache else {}
            save(path, replace(load(served[0]), record=TrainingRecord.from_json(record)))
            with client_of([path]) as client:
                expected = client.post("/v1/next", json={"prompt": "The cat"}).json()["next"]
                if is_deleted:
                    path.unlink()
                else:
                    os.truncate(path, 1000)
                found = client.post("/v1/explain", json={"prompt": "The cat"}).json()["next"]
                assert [one["probability"] for one in found] == [one["probability"] for one in expected]
                card = client.get("/v1/models/text/card")  # is read from the file
            assert card.status_code == 503, (has_cache, is_deleted)
            assert re.match("the file of text (was replaced|can no longer be read)", card.json()["error"]["message"])


def fail_to_start(monkeypatch, name):
    """Let the next start of a thread of this name fail."""
    start = threading.Thread.start

    def fail_or_start(thread):
        if thread.name == name:
            monkeypatch.setattr(threading.Thread, "start", start)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_or_start)


COMPLETE = {"prompt": "The cat", "max_tokens": 2}


def test_a_thread_that_cannot_be_started_fails_one_request_at_most(served, monkeypatch, short_search):
    """Several models: none is loaded at the start."""
    for name, path in [
        ("load-model", "/v1/completions"),
        ("load-model", "/v1/next"),
        ("analysis", "/v1/next"),
        ("engine", "/v1/next"),
        ("engine", "/v1/completions"),
        ("prepare-model", "/v1/completions"),
    ]:
        with client_of(served) as client:
            if name == "engine":
                client.app.state.service.engine.close()
                client.app.state.service.engine._is_closed = False
            fail_to_start(monkeypatch, name)
            body = COMPLETE if "completions" in path else {"prompt": "The cat", "n": 1}
            first = client.post(path, json=body)
            if name != "prepare-model":
                assert (first.status_code, first.json()["error"]["code"]) == (503, "unavailable"), first.text
                assert "could not start a thread" in first.json()["error"]["message"], (name, path)
                assert (client.get("/health").status_code == 503) == (name == "engine"), (name, path)
            assert client.post(path, json=body).status_code == 200, (name, path)
            assert client.get("/health").json() == {"status": "ok"}, (name, path)


def test_the_only_model_is_loaded_later_where_no_thread_could_be_started(served, monkeypatch):
    errors = []
    fail_to_start(monkeypatch, "load-model")
    with client_of(served[:1], on_load_error=errors.append) as client:
        assert client.post("/v1/completions", json=COMPLETE).status_code in (200, 503)
        assert client.post("/v1/completions", json=COMPLETE).status_code == 200
        assert client.get("/health").json() == {"status": "ok"} and not errors


@pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError("a secret")])
def test_an_engine_that_ends_fails_its_requests_and_starts_again(served, monkeypatch, error):
    lines, texts = [], []
    admit = engine.Engine._admit

    def fail(self):
        if self.waiting:
            monkeypatch.setattr(engine.Engine, "_admit", admit)
            raise error
        admit(self)

    with client_of(served, log=lines.append) as client:
        texts.append(client.post("/v1/completions", json=COMPLETE).json()["choices"])
        monkeypatch.setattr(engine.Engine, "_admit", fail)
        failed = client.post("/v1/completions", json=COMPLETE)
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "unavailable")
        assert "engine ended" in failed.json()["error"]["message"] and "secret" not in failed.text
        assert any(type(error).__name__ in line for line in lines)
        health = client.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "failed"
        assert "engine ended" in health.json()["error"]
        assert client.get("/health").json() == {"status": "ok"}  # it was started again
        assert client.post("/v1/completions", json=COMPLETE).status_code == 200


@pytest.mark.parametrize("path", ["/v1/next", "/v1/explain", "/v1/memory"])
def test_an_analysis_ends_when_its_client_leaves(served, monkeypatch, path):
    """It goes on until it asks whether anybody waits, and then ends."""
    began, left, ended = threading.Event(), threading.Event(), threading.Event()

    def analysis(subject, *_, check=None, **__):
        check = check or subject.check
        check()
        began.set()
        left.wait(60)
        try:
            check()
        except ClientDisconnect:
            ended.set()
            raise

    for name in ("next_words", "explain", "find_verbatim"):
        monkeypatch.setattr(analysis_routes, name, analysis)
    monkeypatch.setattr(analysis_routes, "training_texts", lambda _: [])
    app = app_of(served)

    async def story():
        async with app.router.lifespan_context(app):
            sent = await leave(app, {"prompt": "The"} if path != "/v1/memory" else {"text": "x"}, path, began)
            assert sent[0]["status"] == 499 and app.state.service.analyses == 0
            left.set()
            assert await asyncio.to_thread(ended.wait, 60)

    asyncio.run(story())


def test_what_is_not_read_waits_and_others_have_its_place(served, monkeypatch):
    monkeypatch.setattr(running, "UNREAD_TOKENS", 8)

    async def story():
        app = app_of(served, limits=EngineLimits(concurrent=2))
        async with app.router.lifespan_context(app):
            process = app.state.service.engine
            asked = [
                GenerationRequest("text", Prompt([5, 6]), SamplingConfig(max_tokens=n, temperature=0))
                for n in (60, 60, 5)
            ]
            async with running.RunningRequests(process, asked[:2]) as unread:
                async with running.RunningRequests(process, asked[2:]) as read:
                    texts = [await asyncio.wait_for(read.finish(), 60)]
                assert len(unread._arrived) <= 8 + 2
                texts.append(await asyncio.wait_for(unread.finish(), 60))
            async with running.RunningRequests(process, asked[:1]) as alone:
                texts.append(await alone.finish())
            return [[token.id for token in text.tokens] for run in texts for text in run]

    short, first, second, alone = asyncio.run(story())
    assert first == second == alone and short == alone[:5]


def test_a_stream_has_a_comment_only_after_a_wait_without_events():
    """Here, the first two events are read before the event loop learns that they have arrived."""

    async def story():
        process = running.RunningRequests(None, [GenerationRequest("text", Prompt([5, 6]), SamplingConfig())])
        process._receive(0, Started(2, 0))
        process._receive(0, Token(5, b"a", 0.0))
        asyncio.get_running_loop().call_later(0.1, process._receive, 0, Finished("length", 1))
        return [item async for item in process.events()]

    assert [type(event) for _, event in asyncio.run(story())] == [Started, Token, Finished]


def test_what_is_not_read_gives_up_its_memory_for_others(served, monkeypatch):
    monkeypatch.setattr(running, "UNREAD_TOKENS", 2)

    async def story():
        app = app_of(served, limits=EngineLimits(live_bytes=1))  # one at a time
        async with app.router.lifespan_context(app):
            process = app.state.service.engine
            long, short = (
                GenerationRequest("text", Prompt([5, 6]), SamplingConfig(max_tokens=n, temperature=0)) for n in (60, 5)
            )
            async with running.RunningRequests(process, [long]) as unread:
                async with running.RunningRequests(process, [short]) as read:
                    await asyncio.wait_for(read.finish(), 60)
                with pytest.raises(ApiError, match="was not read, and other requests needed its memory") as error:
                    await unread.finish()
            assert error.value.status == 503

    asyncio.run(story())


def test_the_log_has_a_line_a_request_and_contents_only_if_asked(served):
    for with_contents in [False, True]:
        lines = []
        with client_of(served, log=lines.append, log_contents=with_contents) as client:
            client.post("/v1/completions", json={"prompt": "Zebra\nsecret", "max_tokens": 3})
            client.get("/nowhere?q=secret")
        assert lines[0].startswith("POST /v1/completions 200 model=text prompt=") and "new=3" in lines[0], with_contents
        assert any(line.startswith("GET /nowhere 404") for line in lines), with_contents
        assert any("Zebra" in line for line in lines) == with_contents, with_contents
        assert all("\n" not in line for line in lines), with_contents


def test_too_many_analyses_are_refused_and_the_engine_goes_on(served, monkeypatch):
    """The first analysis ends when all but as many as are allowed have been refused."""
    full = threading.Event()
    monkeypatch.setattr("llmcli.generation.next_words.max_evaluations", lambda parameters: 4)
    monkeypatch.setattr(analysis_routes, "next_words", lambda *values, **_: full.wait(60) and next_words(*values))
    with client_of(served) as client, ThreadPoolExecutor(24) as threads:
        asked = [threads.submit(client.post, "/v1/next", json={"prompt": "The cat"}) for _ in range(24)]
        refused = list(itertools.islice(as_completed(asked, 60), 24 - MAX_ANALYSES))
        full.set()
        assert {one.result().status_code for one in refused} == {429}
        assert [one.result().status_code for one in asked if one not in refused] == [200] * MAX_ANALYSES
        assert client.post("/v1/completions", json={"prompt": "The"}).status_code == 200
        assert client.post("/v1/next", json={"prompt": "The cat"}).status_code == 200


def test_grammars_that_are_being_compiled_delay_no_other_request(served, monkeypatch):
    """Not even more of them than there are threads."""
    compile_grammar, go_on, begun = prompts.compile_grammar, threading.Event(), []

    def wait(*arguments, **options):
        begun.append(arguments)
        assert go_on.wait(60)
        return compile_grammar(*arguments, **options)

    monkeypatch.setattr(prompts, "compile_grammar", wait)
    body = {"prompt": "The", "max_tokens": 2}
    with client_of(served) as client, ThreadPoolExecutor(50) as pool:
        slow = [
            pool.submit(client.post, "/v1/completions", json=body | {"structured_outputs": {"regex": "[ab]+"}})
            for _ in range(45)
        ]
        while not begun:
            time.sleep(0.01)
        try:
            assert pool.submit(client.post, "/v1/completions", json=body).result(30).status_code == 200
        finally:
            go_on.set()
        assert {response.result().status_code for response in slow} == {200}


@pytest.mark.parametrize("path", ["/tokenize", "/v1/completions", "/v1/next"])
def test_large_bodies_delay_no_small_ones(served, monkeypatch, short_search, path: str):
    """Only MAX_PREPARING of them are tokenized at a time."""
    encode, go_on, begun = Tokenizer.encode, threading.Event(), []

    def wait(tokenizer: Tokenizer, text: str) -> list[int]:
        if len(text) > LARGE_BODY_BYTES:
            begun.append(text)
            assert go_on.wait(60)
        return encode(tokenizer, text)

    monkeypatch.setattr(Tokenizer, "encode", wait)
    large, small = ({"prompt": text, "truncate_prompt_tokens": -1} for text in ("a " * LARGE_BODY_BYTES, "The"))
    if path == "/tokenize":
        large, small = {"prompt": large["prompt"]}, {"prompt": "The"}
    with client_of(served) as client, ThreadPoolExecutor(50) as pool:
        slow = [pool.submit(client.post, path, json=large) for _ in range(MAX_ANALYSES - 1)]
        while len(begun) < MAX_PREPARING:
            time.sleep(0.01)
        try:
            assert pool.submit(client.post, path, json=small).result(30).status_code == 200
            assert len(begun) == MAX_PREPARING
        finally:
            go_on.set()
        assert {response.result().status_code for response in slow} == {200}


def test_an_error_of_the_arguments_is_the_client_s_and_a_lack_of_threads_or_memory_is_temporary():
    for error, status in {
        usage("the grammar is too complex"): 400, LLMError("the model produced NaN"): 500, RuntimeError("another"): 500,
        RuntimeError("can't start new thread"): 503, MemoryError(): 503,
    }.items():  # fmt: skip
        answer = as_api_error(error)
        assert answer.status == status and (answer.code == "unavailable") == (status == 503), error
