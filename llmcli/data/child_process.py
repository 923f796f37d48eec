"""Child processes that handle untrusted files, templates and grammars: starting, limiting and stopping them.

The parent uses `ChildProcess`, whose child calls `become_child` and `end_after`, or `Worker`, whose child
calls `answer_requests`. Requests are lines on its stdin.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

START_SECONDS = 60.0  # time to start on a busy machine
# the child finds the same modules as this process
_COMMAND = "import importlib, sys; name, sys.path[:] = sys.argv[1], sys.argv[2:]; importlib.import_module(name).main()"


class ChildProcess:
    """A running process; it ends with this one."""

    def __init__(self, module: str) -> None:
        """Run the `main` of a module. Raises OSError, TimeoutError or EOFError if it does not start."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, module, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # signals of the terminal are for this process alone
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin = self._process.stdin
        self.stdout = self._process.stdout
        self.pid = self._process.pid
        atexit.register(self.stop)
        try:
            self.ask(b"", START_SECONDS)  # the line of `become_child`
        except BaseException:
            self.stop()
            raise

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, line: bytes) -> None:
        """Raises OSError if the process has ended."""
        self._stdin.write(line)
        self._stdin.flush()

    def ask(self, line: bytes, seconds: float) -> bytes:
        """Send a line and return the answer. Raises EOFError without one, or TimeoutError after killing the
        process."""
        received: list[bytes] = []

        def exchange() -> None:
            with contextlib.suppress(OSError, ValueError):  # the process ended, or was killed
                self.send(line)
                received.append(self.stdout.readline())

        thread = threading.Thread(target=exchange, daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            self.kill()
            thread.join()
            raise TimeoutError
        if not received or not received[0].endswith(b"\n"):
            raise EOFError
        return received[0]

    def kill(self) -> None:
        """Kill the process, from any thread; call `stop` afterwards."""
        self._process.kill()

    def stop(self) -> int:
        """Kill the process if it is running. Returns its exit status, which is negative for a signal."""
        atexit.unregister(self.stop)
        self._process.kill()
        status = self._process.wait()
        for pipe in (self._stdin, self.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        return status


class NotStartedError(Exception):
    """A child process could not be started."""


class Worker:
    """A process that answers requests in JSON, one at a time. It is started for the first request, and again
    after one that it did not answer."""

    def __init__(self, module: str) -> None:
        """The `main` of a module runs in the process."""
        self._module = module
        self._lock = threading.Lock()
        self.running: ChildProcess | None = None

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer. Raises NotStartedError, TimeoutError, or EOFError if the process ended."""
        with self._lock:
            process = self._started()
            try:
                answer: dict[str, Any] = json.loads(
                    process.ask(json.dumps(request).encode("ascii") + b"\n", seconds)
                )
                return answer
            except BaseException:  # including Ctrl-C: a late answer would be mistaken for the next one
                self.stop()
                raise

    def _started(self) -> ChildProcess:
        if self.running is None or not self.running.is_running:
            self.stop()
            try:
                self.running = ChildProcess(self._module)
            except (OSError, EOFError) as error:  # TimeoutError is an OSError
                raise NotStartedError from error
        return self.running

    def stop(self) -> None:
        """End the process, if it is running."""
        process, self.running = self.running, None
        if process is not None:
            process.stop()


# ---- in the child


def become_child(memory: int) -> IO[bytes]:
    """Limit the memory of this process to that many bytes, if the system can do that, and return the file for
    answers. The output of libraries is discarded, and Ctrl-C in the terminal is left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    answers = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    answers.write(b"ready\n")
    answers.flush()
    return answers


def answer_requests(answer: Callable[[Any], Mapping[str, Any]], memory: int, seconds: float) -> None:
    """Answer the requests of a `Worker` with at most `memory` bytes; one that takes more `seconds` ends the
    process."""
    with become_child(memory) as answers:
        for line in sys.stdin.buffer:
            end_after(seconds)
            data = json.dumps(answer(json.loads(line)))
            end_after(0)
            answers.write(data.encode("ascii") + b"\n")
            answers.flush()


def end_after(seconds: float) -> float:
    """End this process after some seconds, if the system can do that (0: never): its parent may have died.
    Returns the seconds that were left."""
    if hasattr(signal, "setitimer") and hasattr(signal, "ITIMER_REAL"):
        return signal.setitimer(signal.ITIMER_REAL, seconds)[0]
    return 0.0
