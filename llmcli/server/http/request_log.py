"""One line of the log for each request, without its contents unless they are asked for."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

MAX_LOGGED_PATH, MAX_LOGGED_TEXT = 100, 2_000  # characters
SCOPE_KEY = "llmcli.log"  # where a request's entry is found in its ASGI scope


@dataclass
class LogEntry:
    """A request; what is not known until its end is filled in while it is answered."""

    method: str
    path: str
    status: int = 0
    model: str | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    seconds_to_first: float | None = None
    prompt: str | None = None  # these two are only logged if they are asked for
    answer: str | None = None
    error: str | None = None  # for the log alone
    began: float = field(default_factory=time.monotonic)

    @property
    def line(self) -> str:
        """The line.

        >>> LogEntry("GET", "/health", 200, began=time.monotonic()).line
        'GET /health 200 0.00s'
        """
        parts = [self.method, self.path[:MAX_LOGGED_PATH], str(self.status or "disconnected")]
        counts = {"model": self.model, "prompt": self.prompt_tokens, "new": self.new_tokens}
        parts += [f"{name}={value}" for name, value in counts.items() if value is not None]
        if self.seconds_to_first is not None:
            parts.append(f"first={self.seconds_to_first:.3f}s")
        parts.append(f"{time.monotonic() - self.began:.2f}s")
        return " ".join(parts) + (f" error: {self.error}" if self.error else "")

    @property
    def content_lines(self) -> list[str]:
        """The texts of the request and of its answer, each on a line."""
        texts = {"prompt": self.prompt, "answer": self.answer}
        return [
            f"  {name}: {json.dumps(text[:MAX_LOGGED_TEXT], ensure_ascii=False)}"
            for name, text in texts.items()
            if text is not None
        ]


def entry_of(scope: Any) -> LogEntry:
    """The entry of a request."""
    entry = scope[SCOPE_KEY]
    assert isinstance(entry, LogEntry)
    return entry
