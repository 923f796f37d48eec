"""What the server counts, in Prometheus' text format: https://prometheus.io/docs/instrumenting/exposition_formats/."""

from collections import Counter
from collections.abc import Iterable, Iterator

FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class Metrics:
    """Counts of HTTP requests, and of seconds to the first token. Used on the event loop only."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()  # (route, status)
        self._first_token: Counter[float] = Counter()  # bucket -> texts
        self._first_token_seconds = 0.0

    def add_request(self, route: str, status: int) -> None:
        self._requests[route, status] += 1

    def add_first_token(self, seconds: float) -> None:
        """The time from the arrival of a request to its first token."""
        self._first_token_seconds += seconds
        self._first_token[next((limit for limit in FIRST_TOKEN_BUCKETS if seconds <= limit), float("inf"))] += 1

    def lines(self) -> Iterator[str]:
        """The lines of these counts."""
        requests = [
            (f'{{route="{route}",status="{status}"}}', count) for (route, status), count in self._requests.items()
        ]
        yield from family("http_requests_total", "counter", "HTTP requests by route and status.", requests)
        yield from self._histogram("time_to_first_token_seconds")

    def _histogram(self, name: str) -> Iterator[str]:
        total, samples = 0, []
        for limit in (*FIRST_TOKEN_BUCKETS, float("inf")):
            total += self._first_token[limit]
            label = "+Inf" if limit == float("inf") else f"{limit:g}"
            samples.append((f'_bucket{{le="{label}"}}', total))
        yield from family(name, "histogram", "Seconds from a request to its first token.", samples)
        yield f"llmcli_{name}_sum {self._first_token_seconds:.6f}"
        yield f"llmcli_{name}_count {total}"


def family(name: str, kind: str, meaning: str, samples: Iterable[tuple[str, float]]) -> Iterator[str]:
    """The lines of one metric; a sample is (labels, value).

    >>> list(family("tokens_total", "counter", "New tokens.", [("", 3)]))[-1]
    'llmcli_tokens_total 3'
    """
    yield f"# HELP llmcli_{name} {meaning}"
    yield f"# TYPE llmcli_{name} {kind}"
    for labels, value in samples:
        yield f"llmcli_{name}{labels} {value:g}"
