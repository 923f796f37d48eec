"""A class: its code, what it opens, and the limits of each address."""

import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import pytest
from starlette.testclient import TestClient

from llmcli.generation.next_words import NO_WORDS
from llmcli.server import limits
from llmcli.server.http import analysis_routes, service
from llmcli.server.http import app as application
from llmcli.server.http.access import OPEN_PATHS, Access
from llmcli.server.http.classroom import ALPHABET, CODE_CHARACTERS, PAGE_ROUTES, Classroom, network_of, new_code
from llmcli.server.http.listening import bind
from llmcli.server.limits import CLASS_CONCURRENT, CLASS_NETWORK_WRONG_CODES, CLASS_WRONG_CODES
from tests.server.conftest import app_of

URL, CODE = "http://192.168.1.20:8000", "K7MPR4"
ADDRESSES = ("192.168.1.30", "192.168.1.31")


class Clock:
    seconds = 1200.0  # a minute begins

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def students(served, clock):
    """Clients of one server, from two addresses."""
    app = app_of(served[:1], access=Access(None, frozenset(), None, Classroom(URL, CODE, clock)))
    with TestClient(app, base_url=URL, client=(ADDRESSES[0], 1)) as first:
        yield first, TestClient(app, base_url=URL, client=(ADDRESSES[1], 1))


def ask(client, code=CODE, path="/v1/models"):
    """The status and the code of the error."""
    answer = client.get(path, headers={"authorization": f"Bearer {code}".encode()} if code else {})
    return answer.status_code, None if answer.is_success else answer.json()["error"]["code"]


def test_codes_differ_and_have_no_characters_that_look_alike() -> None:
    codes = {new_code() for _ in range(1000)}
    assert len(codes) > 990 and all(re.fullmatch(r"[A-Z3-9]{6}", code) for code in codes)
    used = set("".join(codes))
    assert len(used) == 20  # 64 million codes
    for alike in ("0OQD", "1IL7", "2Z", "5S", "8B", "6G", "UV", "A4E3"):
        assert len(used & set(alike)) <= (2 if alike == "A4E3" else 1), alike
    assert not used & set("AEIOU")  # no words


def test_a_code_may_be_typed_in_lower_case_and_in_parts(students) -> None:
    for typed in (CODE, "k7mpr4", "K7M PR4", "k7m-pr4 "):
        assert ask(students[0], typed) == (200, None)
    assert ask(students[0], "", f"/v1/models?code={CODE}") == (200, None)
    for path in OPEN_PATHS:
        assert students[0].get(path).status_code in (200, 503)  # loading
    assert ask(students[0], "") == (401, "class_code_missing")
    for wrong in ("K7MPR", "K7MPR44", "K7MPR3", "ключ", "Ａ"):
        assert ask(students[0], wrong) == (401, "class_code_wrong")


def test_an_address_that_guesses_is_refused_for_the_rest_of_the_minute(students, clock) -> None:
    guessing, other = students
    for _ in range(CLASS_WRONG_CODES):
        assert ask(guessing, "") == (401, "class_code_missing")  # which is no guess
        assert ask(guessing, "CCCCCC") == (401, "class_code_wrong")
        clock.seconds += 1
    assert ask(guessing) == (429, "address_locked")
    assert guessing.get("/").status_code == 200  # the page, which says so
    assert ask(other) == (200, None)
    clock.seconds = 1259.9
    assert ask(guessing) == (429, "address_locked")
    clock.seconds = 1260
    assert ask(guessing) == (200, None)
    assert ask(guessing, "CCCCCC") == (401, "class_code_wrong")


def test_a_device_with_many_addresses_tries_few_codes(students, clock) -> None:
    """The addresses of an IPv6 network count together, except those that have sent the code: a class shares it."""
    app = students[0].app

    def client(address: str) -> TestClient:
        return TestClient(app, base_url=URL, client=(address, 1))

    student, outside = client("2001:db8:0:1::5"), client("2001:db8:0:2::5")
    assert ask(student) == (200, None)
    answers = [ask(client(f"2001:db8:0:1:{n:x}::1"), "CCCCCC") for n in range(2 * CLASS_NETWORK_WRONG_CODES)]
    assert answers == [
        *[(401, "class_code_wrong")] * CLASS_NETWORK_WRONG_CODES,
        *[(429, "address_locked")] * CLASS_NETWORK_WRONG_CODES,
    ]
    assert ask(client("2001:db8:0:1:f::1")) == (429, "address_locked")
    assert ask(student) == ask(outside) == ask(students[0]) == (200, None)
    clock.seconds += 60
    assert ask(client("2001:db8:0:1:f::1")) == (200, None)
    assert len(ALPHABET) ** CODE_CHARACTERS / 400 > 60 * 24 * CLASS_NETWORK_WRONG_CODES  # codes in a day
    mapped = [client(f"::ffff:192.0.2.{n}") for n in range(1, 3)]  # IPv4 devices of a server that listens to both
    for _ in range(CLASS_WRONG_CODES):
        assert ask(mapped[0], "CCCCCC") == (401, "class_code_wrong")
    assert ask(mapped[0]) == (429, "address_locked") and ask(mapped[1]) == (200, None)
    assert network_of("192.0.2.1") is None and network_of("2001:db8::1") != network_of("2001:db8:0:1::1")


def test_an_address_does_one_analysis_at_a_time(students, monkeypatch) -> None:
    """So its analyses take no more than one of the places."""
    release = threading.Event()
    monkeypatch.setattr(service, "MAX_ANALYSES", 2)
    monkeypatch.setattr(analysis_routes, "next_words", lambda *_, **__: release.wait(30) and NO_WORDS)

    def post(client) -> int:
        key = {"authorization": f"Bearer {CODE}"}
        return client.post("/v1/next", json={"prompt": "The"}, headers=key).status_code

    classroom = students[0].app.state.service.classroom
    with ThreadPoolExecutor(CLASS_CONCURRENT + 1) as threads:
        asked = [threads.submit(post, client) for client in [students[0]] * CLASS_CONCURRENT + [students[1]]]
        while classroom._requests.total() < len(asked):
            time.sleep(0.01)
        release.set()
        assert [one.result(30) for one in asked] == [200] * len(asked)


def test_the_addresses_of_the_past_are_forgotten(students, clock) -> None:
    classroom = students[0].app.state.service.classroom
    for client in students:
        assert ask(client) == (200, None)
    assert set(classroom._requests) == set(classroom._running) == set(ADDRESSES)
    clock.seconds += 60
    assert ask(students[0]) == (200, None)
    assert set(classroom._requests) == set(classroom._running) == {ADDRESSES[0]}


def test_an_address_has_a_number_of_requests(students, clock, monkeypatch) -> None:
    monkeypatch.setattr(limits, "CLASS_REQUESTS", 20)
    busy, other = students
    assert [ask(busy) for _ in range(20)] == [(200, None)] * 20
    refused = busy.get("/v1/models", headers={"authorization": f"Bearer {CODE}"})
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "too_many_requests"
    assert refused.headers["retry-after"] == "60"
    assert ask(other) == (200, None)
    clock.seconds += 60
    assert ask(busy) == (200, None)


def test_an_address_has_a_number_of_requests_at_once(students, monkeypatch) -> None:
    busy, other = students
    running, release = threading.Semaphore(0), threading.Event()

    def wait(call):
        running.release()
        release.wait(30)
        return {}

    busy.app.router.routes[:] = [route for route in busy.app.router.routes if route.path != "/v1/models"] + [
        application.Route("/v1/models", application.partial(application.respond, application.Operation("/", wait)))
    ]
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(busy))) for _ in range(CLASS_CONCURRENT)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert running.acquire(timeout=30)
    assert ask(busy, CODE, "/v1/models/text/page") == (429, "queue_full")  # for which the page asks again
    assert busy.get("/v1/models/text/page").headers["retry-after"] == "1"
    assert ask(other, CODE, "/v1/models/text/page") == (200, None)
    release.set()
    for thread in threads:
        thread.join()
    assert answers == [(200, None)] * CLASS_CONCURRENT and ask(busy, CODE, "/v1/models/text/page") == (200, None)


def test_a_class_may_do_what_its_pages_do(students) -> None:
    """Every route that the scripts of the pages request is open to it, and no other."""
    source = "".join((files("llmcli.pages") / "live" / name).read_text("utf-8") for name in ("http.js", "watch.js"))
    requested = set(re.findall(r'"(/v1/[\w/]+|/state|/model)[?"]', source))
    of_a_model = set(re.findall(r"`\$\{path\}(/\w+)`", source))
    assert len(requested) == 9 and of_a_model == {"/page", "/examples"}
    requested |= {f"/v1/models/{{id}}{end}" for end in of_a_model}
    offered = {operation.path for operation in application.OPERATIONS} | {"/state", "/model"}
    assert {path for path in offered if PAGE_ROUTES.fullmatch(path)} == requested
    for path in offered - requested - OPEN_PATHS:
        assert ask(students[0], CODE, path.replace("{id}", "text")) == (403, "not_for_classes")


def test_a_request_of_a_class_is_one_text(students) -> None:
    for body, status in (
        ({"prompt": "The"}, 200), ({"prompt": ["The"]}, 200), ({"prompt": "The", "n": 2}, 403),
        ({"prompt": ["The", "A"]}, 403), ({"prompt": "The", "structured_outputs": {"choice": [" a", " b"]}}, 403),
    ):  # fmt: skip
        answer = students[0].post(
            "/v1/completions", json={"max_tokens": 2} | body, headers={"authorization": f"Bearer {CODE}"}
        )
        assert answer.status_code == status, body


def test_a_class_code_is_made_only_for_other_computers_and_without_a_key() -> None:
    for host, key, has_code in (("127.0.0.1", None, False), ("0.0.0.0", None, True), ("0.0.0.0", "secret", False)):
        with bind(host, 0) as listener:
            access = Access.to(listener, host, key)
            assert bool(access.classroom) == has_code and (access.hosts is None) == (host == "0.0.0.0")
            if access.classroom:
                name, _, port = access.classroom.url.removeprefix("http://").rpartition(":")
                assert name != host and int(port) == listener.getsockname()[1]
                socket.create_connection((name, int(port)), timeout=10).close()


def test_the_qr_code_is_that_of_the_link(monkeypatch) -> None:
    segno = pytest.importorskip("segno", reason="needs segno")
    invitation = Classroom(URL, CODE).invitation
    assert (invitation["url"], invitation["code"]) == (URL, CODE)
    expected = [list(row) for row in segno.make(f"{URL}/#{CODE}", micro=False).matrix]
    margin, rows = 4, [[int(module) for module in row] for row in invitation["qr"]]
    assert [row[margin:-margin] for row in rows[margin:-margin]] == expected
    assert not any(any(row) for row in rows[:margin] + rows[-margin:]) and len(rows) == len(rows[0])
    monkeypatch.setitem(sys.modules, "segno", None)
    assert Classroom(URL, CODE).invitation == {"url": URL, "code": CODE, "qr": []}
