"""`llm serve` under abuse: foreign pages, false lengths, slow and vanishing clients, absurd fields, random requests.

One server in a process of its own; the checks S1 to S10 follow each other, and afterwards it must answer as before.
"""

import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from llmcli.data.conversations.chat_template import CHATML, with_chat_template
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
from tests.reliability.http_answers import PATIENCE, ask, ask_raw, complete, problems
from tests.reliability.runs import invoke, small_model
from tests.server.processes import Served, serving
from tests.server.random_requests import Request, any_request
from tests.server.wrong_requests import DAMAGED_HEADS, FOREIGN_HOSTS, LOCAL_HOSTS, WRONG, WRONG_TYPES, wrong_fields

FULL_TRIES = 2000
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
CLOSE = b"Connection: close\r\n"
TOO_LARGE = 2_000_000  # bytes of a body
SLOW_CLIENTS = 200
LONG = {"max_tokens": 30_000, "stream": True}
GROWTH = 50  # MB that random requests may cost


def abused_server(where: Path, tries: int) -> list[str]:
    """R26: one server takes all of the abuse, `tries` random requests among it. With fewer than FULL_TRIES, nothing
    is timed, and what tests/server checks as well is left out."""
    path = where / "chat.safetensors"
    small_model(where / "text.safetensors")
    save(path, replace(load(where / "text.safetensors"), tokenizer_config_json=with_chat_template("{}", CHATML)))
    is_full = tries >= FULL_TRIES
    with serving(path) as served:
        port = served.port
        before = complete(port, max_tokens=20).body
        failures = [*_addresses(port), *_foreign_requests(port), *_bodies(port), *_lengths(port)]
        failures += [*_wrong_fields(port), *_slow_clients(port)] if is_full else []
        failures += _leaving_clients(port, served.process.pid, is_full)
        memory = served.megabytes
        failures += _random_requests(port, tries)
        if served.megabytes - memory > GROWTH:
            failures.append(f"random requests cost {served.megabytes - memory:.0f} MB")
        if _text(complete(port, max_tokens=20).body) != _text(before):
            failures.append("it does not write the text that it wrote before")
        failures += _port_in_use(port, path) + _log_problems(served.log)
        failures += _ends(served, signal.SIGTERM, 143, is_busy=is_full)
    if is_full:
        with serving(path) as served:
            failures += _ends(served, signal.SIGINT, 130, is_busy=True)
    return failures


def _text(body: bytes) -> str:
    return str(json.loads(body)["choices"][0]["text"])


# ---- S1 to S3: who may ask


def _addresses(port: int) -> list[str]:
    """S1: it listens on 127.0.0.1 alone; tests/server/test_serve_process.py has another address, with a code."""
    listening = []
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/net/{table}").read_text("ascii").splitlines()[1:]]
        listening += [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
    return [] if listening == [f"0100007F:{port:04X}"] else [f"it listens on {listening}"]


def _foreign_requests(port: int) -> list[str]:
    """S2, S3: other names of this computer, pages of other origins, and forms are refused; no CORS header by itself."""
    failures = []
    for host in LOCAL_HOSTS + FOREIGN_HOSTS:
        expected = 200 if host in LOCAL_HOSTS else 403
        failures += problems(ask(port, "GET", "/v1/models", headers={"Host": host}), expected, of=f"Host {host}")
    for origin in ("http://evil.com", "null", "file://", f"http://127.0.0.1.evil.com:{port}"):
        answer = ask(port, "GET", "/v1/models", headers={"Origin": origin})
        failures += problems(answer, 403, of=f"Origin {origin}")
        if "access-control-allow-origin" in answer.headers:
            failures.append(f"a page of {origin} may read the answer")
    for kind in WRONG_TYPES:
        answer = ask(port, "POST", "/v1/completions", b'{"prompt": "x"}', {"Content-Type": kind})
        failures += problems(answer, 415, of=f"Content-Type {kind}")
    if any(name.startswith("access-control") for name in complete(port, max_tokens=1).headers):
        failures.append("a CORS header without an Origin")
    return failures


# ---- S4: bodies and their lengths


def _bodies(port: int) -> list[str]:
    """A body that is too large is refused before it is read, or as soon as it is."""
    chunks = b"%x\r\n%b\r\n" % (TOO_LARGE, b" " * TOO_LARGE)
    requests = {
        "declared": HEAD + CLOSE + b"Content-Length: %d\r\n\r\n" % TOO_LARGE,
        "in chunks": HEAD + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",
    }
    found = {name: ask_raw(port, request) for name, request in requests.items()}
    return [f"a large body, {name}: {statuses}" for name, statuses in found.items() if statuses != [413]]


def _lengths(port: int) -> list[str]:
    """False and contradictory lengths are a 400, and what follows them is not taken for another request."""
    failures = []
    hidden = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for head in [*DAMAGED_HEADS, *(b"Content-Length: %b\r\n" % value for value in (b"+5", b"5_0", b"0x5", b"5, 6"))]:
        for close in (CLOSE, b""):
            statuses = ask_raw(port, HEAD + close + head + b"\r\n0\r\n\r\n" + hidden)
            if not statuses or not set(statuses) <= {400, 431}:
                failures.append(f"{head[:50]!r}{close!r}: {statuses}")
    return failures


# ---- S5 and S7: slow clients, and those that leave


def _slow_clients(port: int) -> list[str]:
    """S5: clients that send a byte a second do not delay others, and are dropped."""
    half = SLOW_CLIENTS // 2
    starts = [HEAD] * half + [HEAD + b"Content-Length: 1000\r\n\r\n"] * half
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in starts]
        for client, start in zip(clients, starts, strict=True):
            client.sendall(start)
        open_clients = set(clients)
        sender = threading.Thread(target=_trickle, args=(open_clients, ended))
        sender.start()
        try:
            failures = []
            for _ in range(5):
                began = time.monotonic()
                failures += problems(complete(port, max_tokens=5), 200, of="a client beside slow ones")
                if time.monotonic() - began > 2:
                    failures.append(f"beside slow clients an answer took {time.monotonic() - began:.1f} s")
            sender.join(PATIENCE)
        finally:
            ended.set()
            sender.join()
    return failures + [f"{len(open_clients)} slow clients are still connected"] * bool(open_clients)


def _trickle(clients: set[socket.socket], ended: threading.Event) -> None:
    """Send a byte a second to each, until it closes the connection."""
    while clients and not ended.wait(1):
        for client in list(clients):
            try:
                client.setblocking(False)
                client.send(b"x")
                if client.recv(65536) == b"":
                    clients.discard(client)
            except BlockingIOError:
                continue
            except OSError:
                clients.discard(client)


def _leaving_clients(port: int, pid: int, is_timed: bool) -> list[str]:
    """S7: a full queue is a 429; clients that leave free the places and the CPU."""
    body = json.dumps({"prompt": "Anna likes", "temperature": 0, "n": 32} | LONG).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
    begun = [threading.Event() for _ in clients]
    for client, event in zip(clients, begun, strict=True):
        client.sendall(request)
        # an unread stream gives up its place
        threading.Thread(target=_read_all, args=[client, event], daemon=True).start()
    for event in begun:
        event.wait(PATIENCE)
    # 16 texts are in progress, and 48 wait
    failures = _until(lambda: complete(port, n=32, max_tokens=5).status == 429, "the queue is not full")
    for number, client in enumerate(clients, start=1):
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        limit = 1 if is_timed else PATIENCE
        failures += _until(lambda: complete(port, n=32, max_tokens=5).status == 200, f"{number} left", limit)
    if is_timed:
        began = _cpu_ticks(pid)
        time.sleep(2)
        if _cpu_ticks(pid) - began > 10:
            failures.append(f"{_cpu_ticks(pid) - began} of 200 ticks of CPU are used for nobody")
    return failures


def _read_all(client: socket.socket, begun: threading.Event) -> None:
    with contextlib.suppress(OSError), client:
        while client.recv(1 << 16):
            begun.set()


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _until(is_so: Callable[[], bool], otherwise: str, seconds: float = PATIENCE) -> list[str]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_so():
            return []
        time.sleep(0.02)
    return [] if is_so() else [f"after {seconds} s: {otherwise}"]


# ---- S6, S8 and S10: fields and random requests; each error is checked for what it tells


def _wrong_fields(port: int) -> list[str]:
    """S6: values outside the bounds are a 400 that says so."""
    rows = [(path, body) for path in WRONG for _, _, body in wrong_fields(path)]
    for value in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 5000, "1" + "0" * 400):
        rows += [("/v1/completions", f'{{"prompt": "x", "{name}": {value}}}') for name in ("temperature", "n", "seed")]
    return [line for path, body in rows for line in problems(ask(port, "POST", path, body), 400, 404, of=(path, body))]


def _random_requests(port: int, tries: int) -> list[str]:
    """S8: no random request is an error of the server's."""
    failures: list[str] = []

    @settings(max_examples=tries, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(any_request)
    def send(request: Request) -> None:
        try:
            failures.extend(problems(ask(port, *request), of=request))
        except OSError as error:
            failures.append(f"{request}: {error!r}")

    send()
    return failures


def _log_problems(log: str) -> list[str]:
    lines = [line for line in log.splitlines() if re.search(r"Traceback|error:|Exception| 5\d\d ", line)]
    return [f"in the log: {line}" for line in lines[:20]]


# ---- S9: the end


def _port_in_use(port: int, path: Path) -> list[str]:
    answer = invoke("serve", "-m", str(path), "--port", str(port))
    is_line = answer.stderr.count("\n") == 1 and f"port {port} is in use" in answer.stderr
    return [] if answer.exit_code == 1 and is_line else [f"a port in use: {answer.exit_code}, {answer.stderr}"]


def _ends(served: Served, number: signal.Signals, code: int, *, is_busy: bool) -> list[str]:
    """A signal ends it with its exit code; with answers in progress within 5 s, and these are told."""
    failures = []
    with _long_answer(served.port) if is_busy else contextlib.nullcontext() as client:
        began = time.monotonic()
        served.process.send_signal(number)
        if client and b'"code":"stopping"' not in b"".join(iter(lambda: client.recv(65536), b"")):
            failures.append(f"{number.name}: the answer in progress ends without an error")
        if served.process.wait(PATIENCE) != code:
            failures.append(f"{number.name}: exit code {served.process.returncode}")
        if is_busy and time.monotonic() - began > 5:
            failures.append(f"{number.name}: it ends after {time.monotonic() - began:.1f} s")
    return failures


@contextlib.contextmanager
def _long_answer(port: int) -> Iterator[socket.socket]:
    """A connection with an answer in progress."""
    body = json.dumps({"prompt": "Anna likes", "temperature": 0, "n": 8} | LONG).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        client.recv(10)
        yield client
