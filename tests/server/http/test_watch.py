"""The server of the page of a run, by HTTP."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from llmcli.errors import LLMError
from llmcli.server.http.watch import WatchServer

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[WatchServer, int]]:
    watch = WatchServer(b"<!DOCTYPE html>", "127.0.0.1", 0)
    [address] = watch.urls
    assert address.startswith("http://127.0.0.1:")
    yield watch, int(address.rpartition(":")[2])
    watch.stop()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 1)


def get(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    result = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return result


def test_the_page_and_the_newest_state_of_the_run(server: tuple[WatchServer, int]) -> None:
    watch, port = server
    status, headers, body = get(port, "/")
    assert (status, body) == (200, b"<!DOCTYPE html>")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert get(port, "/state")[2] == b"{}"
    watch.state = b'{"phase": "running"}'
    assert get(port, "/state")[2] == watch.state and get(port, "/state")[1]["cache-control"] == "no-store"


def test_only_pages_of_this_computer_may_read_it(server: tuple[WatchServer, int]) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        assert get(server[1], "/state", **headers)[0] == 403
    assert get(server[1], "/state", "POST")[0] == 405 and get(server[1], "/v1/models")[0] == 404


def test_the_page_of_the_model_is_made_once_it_is_asked_for(server: tuple[WatchServer, int]) -> None:
    watch, port = server
    assert get(port, "/model")[0] == 404
    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"page")
        if len(made) == 1:
            raise LLMError("a page has at most 64 MB")
        return made[-1]

    watch.offer("食べ物.html", make)
    assert get(port, "/model")[::2] == (400, b"a page has at most 64 MB")
    assert get(port, "/model")[::2] == get(port, "/model")[::2] == (200, b"page") and len(made) == 2
    assert "content-disposition" not in get(port, "/model")[1]
    named = "attachment; filename*=UTF-8''%E9%A3%9F%E3%81%B9%E7%89%A9.html"
    assert get(port, "/model?download")[1]["content-disposition"] == named


def test_at_the_end_every_open_page_gets_the_last_state() -> None:
    watch = WatchServer(b"<!DOCTYPE html>", "127.0.0.1", 0)
    port = int(watch.urls[0].rpartition(":")[2])
    assert get(port, "/state")[2] == b"{}"
    watch.state = b'{"phase": "saved"}'
    end = threading.Thread(target=watch.stop)
    end.start()
    assert get(port, "/state")[2] == watch.state
    time.sleep(0.5)  # a page asks every second: another one asks now
    assert get(port, "/state")[2] == watch.state
    end.join()
