"""Rendering of untrusted chat templates in a separate process with limits on time, memory and output.

The process is started for the first template and serves all others; it ends with this process.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmcli.data.child_process import ChildProcess
from llmcli.data.conversations.messages import Message
from llmcli.errors import LLMError

SECONDS = 5.0  # time limit for all renderings of a call

Job = tuple[Sequence[Message], bool]  # messages, and whether to add a generation prompt


class TemplateRefusalError(LLMError):
    """The template refuses the messages; many refuse two consecutive turns of one role."""


@dataclass(frozen=True)
class Rendering:
    """The text that a template produces from messages."""

    text: str
    answers: list[tuple[int, int]]  # spans of {% generation %} blocks: first character, one past the last


def render(source: str, variables: Mapping[str, Any], jobs: Sequence[Job]) -> list[Rendering]:
    """Render a template for each job. Raises LLMError if it fails, TemplateRefusalError if it refuses the messages."""
    sent = [([{"role": m.role, "content": m.content} for m in messages], prompt) for messages, prompt in jobs]
    answer = _process.ask({"template": source, "variables": dict(variables), "jobs": sent})
    if "refused" in answer:
        raise TemplateRefusalError(f"the model's chat template refuses these messages: {answer['refused']}")
    if "error" in answer:
        raise LLMError(f"the model's chat template cannot be rendered: {answer['error']}")
    return [Rendering(text, [(start, end) for start, end in spans]) for text, spans in answer["results"]]


class _Process:
    """The process of template_worker.py, started on first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: ChildProcess | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            process = self._started()
            try:
                answer: dict[str, Any] = json.loads(process.ask(json.dumps(request).encode("ascii") + b"\n", SECONDS))
                return answer
            except BaseException as error:  # including Ctrl-C: a late answer would be mistaken for the next one
                self._stop()
                if isinstance(error, TimeoutError):
                    raise LLMError(
                        f"the model's chat template ran for over {SECONDS:g} seconds and was stopped"
                    ) from None
                if isinstance(error, EOFError):
                    raise LLMError("the process that rendered the model's chat template ended: it may have needed too "
                                   "much memory") from None  # fmt: skip
                raise

    def _started(self) -> ChildProcess:
        """Return the process, ready for a request. Raises LLMError if it cannot be started."""
        if self._running is None or not self._running.is_running:
            self._stop()
            try:
                self._running = ChildProcess("llmcli.data.conversations.template_worker")
            except (OSError, EOFError) as error:  # TimeoutError is an OSError
                raise LLMError(
                    "the process that renders chat templates did not start; it needs jinja2: pip install jinja2"
                ) from error
        return self._running

    def _stop(self) -> None:
        process, self._running = self._running, None
        if process is not None:
            process.stop()


_process = _Process()
