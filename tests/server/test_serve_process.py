"""The process of `llm serve`: how it starts, what it refuses, slow and rude clients, and how it ends."""

import http.client
import itertools
import json
import re
import signal
import socket
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace

import pytest

pytest.importorskip("starlette", reason='needs pip install "llmcli[serve]"')

from llmcli.generation.engine.requests import EngineLimits
from llmcli.server.http import listening, service
from llmcli.server.http.listening import Server, bind, urls
from llmcli.server.limits import MAX_BODY_BYTES
from tests.platforms import posix
from tests.server.conftest import app_of
from tests.server.processes import serving
from tests.server.wrong_requests import DAMAGED_HEADS

pytestmark = pytest.mark.slow
LONG = {"prompt": "The", "max_tokens": 30_000, "n": 8, "temperature": 0, "stream": True}
START = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
HEAD = START + b"Content-Length: "
QUICK = {"DRAIN_SECONDS": 0.5}  # instead of three


def request(served, body, path="/v1/completions"):
    client = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    client.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return client


def post(served, body, path="/v1/completions"):
    return request(served, body, path).getresponse()


def statuses(served, data):
    """The statuses of all answers to bytes, until the server closes the connection."""
    answer = b""
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as client, suppress(ConnectionError):
        client.sendall(data)  # after an error the server may close the connection before it has read all
        while block := client.recv(65536):
            answer += block
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def is_dropped(client):
    """Whether the server has closed a connection, on which it is sent one more byte."""
    try:
        client.send(b"x")
        return client.recv(65536) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def wait_until(is_so):
    for _ in range(6000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("not within a minute")


@pytest.fixture(scope="module")
def running(served):
    with serving(served[0]) as process:
        yield process


def test_every_address_that_is_shown_can_be_opened():
    """Of a server that listens on all addresses: this computer's, and another where there is a network."""
    for host in ["127.0.0.1", "0.0.0.0", "::"]:
        if host == "::" and not socket.has_dualstack_ipv6():
            pytest.skip("needs IPv6")
        with bind(host, 0) as listener:
            shown = urls(listener)
            assert shown[0] == f"http://127.0.0.1:{listener.getsockname()[1]}", host
            assert len(shown) <= (1 if host == "127.0.0.1" else 2), host
            for url in shown:
                name, _, port = url.removeprefix("http://").rpartition(":")
                socket.create_connection((name.strip("[]"), int(port)), timeout=10).close()


def test_a_network_without_a_way_out_has_the_addresses_of_the_computers_name(monkeypatch):
    def refuse(*_):
        raise OSError("Network is unreachable")

    def resolve(name, _, family):
        assert (name, family) == (socket.gethostname(), socket.AF_INET)
        return [(family, 0, 0, "", (address, 0)) for address in ("127.0.1.1", "192.168.1.20", "192.168.1.20")]

    with bind("0.0.0.0", 0) as listener:
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        port = listener.getsockname()[1]
        assert urls(listener) == [f"http://127.0.0.1:{port}", f"http://192.168.1.20:{port}"]
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        assert urls(listener) == [f"http://127.0.0.1:{port}"]


def test_without_a_key_other_computers_need_the_class_code_that_is_printed(served):
    with serving(served[0], options=("--host", "0.0.0.0")) as process:
        [(code, address)] = re.findall(r"^class code (\w{6}), or open (http://\S+)/#\1$", process.log, re.M)
        assert address.rpartition(":")[2] == str(process.port) and "\x1b" not in process.log  # no QR code in a file
        for key, status in (("", 401), ("WRONG", 401), (code, 200)):
            client = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
            client.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert client.getresponse().status == status
        assert process.log.count(code) == 2  # it is not in the log of requests


def test_by_default_only_this_computer_is_listened_to(running):
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", running.port), timeout=1)


def test_after_a_damaged_head_nothing_is_taken_for_another_request(running):
    hidden = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    lengths = [b"Content-Length: %b\r\n" % value for value in (b"+5", b"5_0", b"0x5", b"5, 6")]
    for head, close in itertools.product([*DAMAGED_HEADS, *lengths], (b"Connection: close\r\n", b"")):
        found = statuses(running, START + close + head + b"\r\n0\r\n\r\n" + hidden)
        assert found and set(found) <= {400, 431}, (head, close)
        assert post(running, {"prompt": "The"}).status == 200, (head, close)


def test_a_large_body_is_refused_before_it_has_arrived(running):
    size = MAX_BODY_BYTES + 1
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b" " * size)
    for rest in (b"Content-Length: %d\r\n\r\n" % size, b"Transfer-Encoding: chunked\r\n\r\n" + chunks):
        assert statuses(running, START + b"Connection: close\r\n" + rest) == [413], rest[:30]


def test_clients_that_send_byte_by_byte_delay_no_other_and_are_dropped(served):
    with serving(served[0], limits={"RECEIVE_SECONDS": 1.0}) as process, ExitStack() as stack:
        for start in (START, HEAD + b"1000000\r\n\r\n"):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", process.port)))
            client.sendall(start)
            client.setblocking(False)
            assert post(process, {"prompt": "The"}).status == 200
            wait_until(lambda client=client: is_dropped(client))
        assert post(process, {"prompt": "The"}).status == 200


@contextmanager
def served_here(app):
    """An application that is served in this process until the end of the block, as an object with its port."""
    server, listener = Server(app), bind("127.0.0.1", 0)
    with ThreadPoolExecutor(1) as threads, listener:
        ended = threads.submit(server.run, [listener])
        try:
            yield SimpleNamespace(port=listener.getsockname()[1])
        finally:
            server.stop()
            ended.result(60)


def test_more_requests_that_do_not_arrive_than_connections_shut_nobody_out(served, monkeypatch):
    for part in [b"POST /v1/completions HTTP", HEAD + b"9\r\n\r\n{", b"GET /health HTTP/1.1\r\n"]:
        monkeypatch.setattr(listening, "MAX_CONNECTIONS", 8)
        monkeypatch.setattr(listening, "RECEIVE_SECONDS", 600)
        monkeypatch.setattr(service, "RECEIVE_SECONDS", 600)
        with served_here(app_of(served)) as here, ExitStack() as stack:
            for _ in range(30):
                stack.enter_context(socket.create_connection(("127.0.0.1", here.port), timeout=60)).sendall(part)
            for path in ("/health", "/v1/models"):
                with urllib.request.urlopen(f"http://127.0.0.1:{here.port}{path}", timeout=60) as answer:
                    assert answer.status == 200, part


def test_more_unread_answers_than_places_and_connections_shut_nobody_out(served, monkeypatch):
    monkeypatch.setattr(listening, "UNREAD_SECONDS", 600)
    monkeypatch.setattr(listening, "MAX_CONNECTIONS", 6)
    body = json.dumps(LONG | {"logprobs": 5, "n": 1}).encode()
    with served_here(app_of(served, limits=EngineLimits(concurrent=2))) as here, ExitStack() as stack:
        for _ in range(10):
            unread = stack.enter_context(socket.socket())
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            unread.settimeout(60)
            unread.connect(("127.0.0.1", here.port))
            unread.sendall(HEAD + b"%d\r\n\r\n" % len(body) + body)
            unread.recv(1)
        assert post(here, {"prompt": "The"}).status == 200


@pytest.mark.parametrize("leaves", [False, True])
def test_answers_that_nobody_reads_are_dropped_and_so_are_those_of_clients_that_left(served, monkeypatch, leaves):
    monkeypatch.setattr(listening, "UNREAD_SECONDS", 600 if leaves else 0.2)
    app = app_of(served)
    body = json.dumps(LONG | {"logprobs": 5}).encode()
    with served_here(app) as here, socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.connect(("127.0.0.1", here.port))
        unread.sendall(HEAD + b"%d\r\n\r\n" % len(body) + body)
        engine = app.state.service.engine
        wait_until(lambda: len(engine.active) == 8)
        if leaves:
            unread.close()
        wait_until(lambda: not engine.active)
        sent = 0 if leaves else sum(map(len, iter(lambda: unread.recv(65536), b"")))
    assert sent < 500_000  # so much was taken by the system's buffers


@posix
def test_a_signal_ends_it_in_the_middle_of_an_answer(served):
    for number, code in [(signal.SIGTERM, 143), (signal.SIGINT, 130)]:
        with serving(served[0], limits=QUICK) as process:
            whole, streamed = request(process, LONG | {"stream": False}), post(process, LONG)
            assert streamed.read(10), number  # both texts are being generated
            process.process.send_signal(number)
            end = streamed.read()
            assert end.endswith(b"\n\n") and b'"code":"stopping"' in end.splitlines()[-2], number
            response = whole.getresponse()
            assert (response.status, json.loads(response.read())["error"]["code"]) == (503, "stopping"), number
            assert process.process.wait(60) == code, number


@posix
def test_an_interrupt_that_the_parent_ignores_stays_ignored(served):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with serving(served[0]) as process:
            process.process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.process.wait(0.5)
            assert urllib.request.urlopen(f"{process.url}/health").status == 200
            process.process.send_signal(signal.SIGTERM)
            assert process.process.wait(30) == 143
    finally:
        signal.signal(signal.SIGINT, before)


@posix
def test_a_short_answer_is_finished_after_the_signal(served):
    with serving(served[0]) as process:
        response = post(process, LONG | {"max_tokens": 400, "n": 1})
        assert response.read(10)
        process.process.send_signal(signal.SIGTERM)
        assert response.read().endswith(b"data: [DONE]\n\n")
        assert process.process.wait(30) == 143


def test_a_port_in_use_is_one_line(running, served, llm):
    result = llm("serve", "-m", served[0], "--port", running.port)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1 and f"port {running.port} is in use" in result.stderr
