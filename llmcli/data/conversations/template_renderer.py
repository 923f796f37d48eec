"""Rendering of untrusted chat templates in a separate process with limits on time, memory and output.

The process is started for the first template and serves all others; it ends with this process.
"""

import atexit
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmcli.data.conversations.messages import Message
from llmcli.errors import LLMError

SECONDS = 5.0  # for all renderings of a call
START_SECONDS = 60.0  # for the process to start on a busy machine
# the child finds the same modules as this process
_COMMAND = "import sys; sys.path[:] = sys.argv[1:]; from llmcli.data.conversations.template_worker import main; main()"

Job = tuple[Sequence[Message], bool]  # messages, and whether to add a generation prompt


class TemplateRefusalError(LLMError):
    """The template refuses the messages; many refuse two consecutive turns of one role."""


@dataclass(frozen=True)
class Rendering:
    """The text that a template produces from messages."""

    text: str
    answers: list[tuple[int, int]]  # spans of {% generation %} blocks: first character, one past the last


def render(source: str, variables: Mapping[str, Any], jobs: Sequence[Job]) -> list[Rendering]:
    """Render a jinja2 template for each job. Raises LLMError if it is invalid or exceeds a limit, and
    TemplateRefusalError if it refuses the messages."""
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
        self._running: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            try:
                return _exchange(self._started(), json.dumps(request).encode("ascii") + b"\n", SECONDS)
            except BaseException:  # including Ctrl-C: a late answer would be mistaken for the next one
                self._stop()
                raise

    def _started(self) -> subprocess.Popen[bytes]:
        """Return the process, ready for a request. Raises LLMError if it cannot be started."""
        if self._running is not None and self._running.poll() is None:
            return self._running
        self._stop()
        try:
            self._running = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, *sys.path],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,  # signals from the terminal go to this process only
            )  # fmt: skip
            atexit.register(self._stop)
            _exchange(self._running, b"", START_SECONDS)
        except (OSError, LLMError) as error:
            raise LLMError(
                f"the process that renders chat templates did not start ({error}); it needs jinja2: pip install jinja2"
            ) from error
        return self._running

    def _stop(self) -> None:
        process, self._running = self._running, None
        if process is None:
            return
        atexit.unregister(self._stop)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]  # both are pipes


def _exchange(process: subprocess.Popen[bytes], line: bytes, seconds: float) -> dict[str, Any]:
    """Send a line and wait for the answer. Raises LLMError if that takes over `seconds`, or if the process ends."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None
    received: list[bytes] = []

    def exchange() -> None:
        with contextlib.suppress(OSError, ValueError):  # the process ended, or was killed
            stdin.write(line)
            stdin.flush()
            received.append(stdout.readline())

    thread = threading.Thread(target=exchange, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        process.kill()
        thread.join()
        raise LLMError(f"the model's chat template ran for over {seconds:g} seconds and was stopped")
    if not received or not received[0].endswith(b"\n"):
        raise LLMError("the process that rendered the model's chat template ended: it may have needed too much memory")
    answer: dict[str, Any] = json.loads(received[0])
    return answer


_process = _Process()
