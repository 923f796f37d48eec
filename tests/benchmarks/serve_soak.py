"""Sixteen clients of `llm serve` that come, go, cut off and send rubbish: memory, and the time to the first token.

    python -m tests.benchmarks.serve_soak MODEL --minutes 30

The clients run on loopback, and stop after the given time. Each line is a minute: requests, errors, the server's
memory, and the median and the 99th percentile of the time to the first token.
"""

import argparse
import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from pathlib import Path

from tests.server.processes import Served, serving

CLIENTS, MAX_MINUTES = 16, 120
PROMPTS = ("I like to", "The cat", "りんご", "We went to the", "She reads")


class Counts:
    """What the clients saw, since the last report."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.ends: Counter[str] = Counter()
        self.first: list[float] = []
        self.all_first: list[float] = []

    def add(self, end: str, first: float | None = None) -> None:
        with self._lock:
            self.ends[end] += 1
            if first is not None:
                self.first.append(first)
                self.all_first.append(first)

    def take(self) -> tuple[Counter[str], list[float]]:
        with self._lock:
            taken = self.ends, self.first
            self.ends, self.first = Counter(), []
        return taken


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def stream(port: int, counts: Counts, rng: random.Random, *, cut_off: bool) -> None:
    """A text that is read to its end, or left after a few tokens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = {"prompt": rng.choice(PROMPTS), "max_tokens": rng.randint(1, 200), "stream": True}
    started = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read1(1)
    first = time.perf_counter() - started
    if response.status == 429:
        response.read()
        counts.add("429")
    elif cut_off:
        connection.sock.close() if connection.sock else None
        counts.add("cut off", first)
    else:
        counts.add("complete" if response.read().endswith(b"[DONE]\n\n") else "LOST", first)
    connection.close()


def rubbish(port: int, counts: Counts, rng: random.Random) -> None:
    """Bytes that are no request, or a request that is wrong."""
    if rng.random() < 0.5:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client, contextlib.suppress(OSError):
            client.sendall(rng.randbytes(rng.randint(1, 2000)))
            if rng.random() < 0.5:
                client.shutdown(socket.SHUT_WR)
                client.recv(1000)
        counts.add("rubbish")
        return
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = rng.choice([b"{", b'{"prompt": 5}', b'{"prompt": "a", "n": -1}', b"[1]", b'{"prompt": ""}', b"\xff"])
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    counts.add("rubbish" if connection.getresponse().status == 400 else "WRONG STATUS")
    connection.close()


def client(port: int, counts: Counts, seed: int, until: float) -> None:
    rng = random.Random(seed)
    while time.monotonic() < until:
        kind = rng.random()
        try:
            if kind < 0.25:
                rubbish(port, counts, rng)
            else:
                stream(port, counts, rng, cut_off=kind < 0.5)
        except OSError as error:
            counts.add(f"ERROR {type(error).__name__}")
        time.sleep(rng.random() * 0.2)


def report(minute: float, served: Served, counts: Counts) -> None:
    ends, first = counts.take()
    figures = f"{served.megabytes:7.1f} MB  first token: median {1000 * percentile(first, 0.5):6.1f} ms, p99 "
    print(
        f"{minute:5.1f} min  {figures}{1000 * percentile(first, 0.99):6.1f} ms  {dict(sorted(ends.items()))}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    arguments = parser.parse_args()
    minutes = min(arguments.minutes, MAX_MINUTES)
    with serving(arguments.model, options=("-q",)) as served:
        counts, started = Counts(), time.monotonic()
        until = started + 60 * minutes
        threads = [threading.Thread(target=client, args=(served.port, counts, n, until)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            time.sleep(min(60, max(0.1, until - time.monotonic())))
            report((time.monotonic() - started) / 60, served, counts)
        for thread in threads:
            thread.join()
        report((time.monotonic() - started) / 60, served, counts)
        median, late = (percentile(counts.all_first, share) for share in (0.5, 0.99))
        print(f"{len(counts.all_first):,} texts; first token: p50 {median:.4f} s, p99 {late:.4f} s")


if __name__ == "__main__":
    main()
