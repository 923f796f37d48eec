"""Requests to a server on this computer, and what is wrong with its answers."""

import http.client
import json
import re
import socket
from dataclasses import dataclass
from typing import Any

PATIENCE = 60  # seconds after which a server hangs
JSON = {"Content-Type": "application/json"}
ERROR_KEYS = {"message", "type", "param", "code"}
LEAKS = re.compile(rb'Traceback|File \\?"|\w\.py\b|/home/|/tmp/|/usr/|/root|site-packages|object at 0x')


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: dict[str, str]  # by names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """The answer to a request."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        client.request(method, path, body, JSON if headers is None else headers)
        response = client.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read())
    finally:
        client.close()


def complete(port: int, **fields: object) -> Answer:
    """The answer to a greedy completion."""
    return ask(port, "POST", "/v1/completions", json.dumps({"prompt": "Anna likes", "temperature": 0} | fields))


def ask_raw(port: int, data: bytes) -> list[int]:
    """The statuses of all answers to these bytes, until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        answer = b""
        try:
            client.sendall(data)
            while block := client.recv(65536):
                answer += block
        except ConnectionError:  # it is closed before all was read
            pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def problems(answer: Answer, *expected: int, of: object = "") -> list[str]:
    """Nothing for an answer with one of the statuses, or any below 500 if none is given, that tells nothing of the
    server's files and code; else a line that says what is wrong. An error has the shape of OpenAI's."""
    asked = str(of)[:200]
    if answer.status not in expected if expected else answer.status >= 500:
        return [f"{asked}: status {answer.status}, expected {expected}: {answer.body[:200]!r}"]
    if answer.status < 400 or not answer.body:
        return []
    if LEAKS.search(answer.body):
        return [f"{asked}: an error tells of files or code: {answer.body[:300]!r}"]
    try:
        is_right = answer.json["error"].keys() == ERROR_KEYS
    except (ValueError, KeyError, TypeError, AttributeError):
        is_right = False
    return [] if is_right else [f"{asked}: an error of another shape: {answer.body[:200]!r}"]
