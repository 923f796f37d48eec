"""Child processes that handle untrusted files, templates and grammars: starting, limiting and stopping them.

The parent uses `ChildProcess`; the child calls `answer_requests`. A request is a line of JSON on its stdin.
The answer on its stdout consists of frames: a line of JSON, whose key "data" is the number of bytes that
follow it.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from llmcli.errors import LLMError

Frame: TypeAlias = tuple[dict[str, Any], bytes]  # (header, data)
START_SECONDS = 60.0  # time to start on a busy machine
_ORPHAN_SECONDS = 10.0  # per request in the child, longer than any parent waits, in case the parent has died
# with this process's sys.path, so that the child finds the same modules
_COMMAND = (
    "import importlib, sys; name, sys.path[:] = sys.argv[1], sys.argv[2:]; "
    "importlib.import_module(name).main()"
)


class ChildProcess:
    """A process that runs the `main` of a module. The first request starts it, as does the next request after
    it ended; it ends with this process."""

    def __init__(self, module: str, problem: str) -> None:
        """`problem` is the message of the error if the process does not start."""
        self._module = module
        self._problem = problem
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process unless it is running. Raises LLMError."""
        if self.is_running:
            return
        self.stop()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, self._module, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's signals must reach only the parent
            )
            atexit.register(self.stop)
            self._answer(None, START_SECONDS)  # the first frame of `answer_requests`
        except BaseException as error:
            self.stop()  # its first frame may be unread
            if isinstance(error, OSError | EOFError):  # a TimeoutError is an OSError
                raise LLMError(self._problem) from error
            raise

    def frames(self, request: Mapping[str, Any] | None) -> Iterator[Frame]:
        """Send a request, if any, and yield the frames (header, data) of the answer. Raises EOFError if the
        process ends. `start` was called before."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            if request is not None:
                process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
                process.stdin.flush()
            while True:
                # a malicious document that has taken over the process may send anything
                header: dict[str, Any] = json.loads(process.stdout.readline())
                size = header.get("data", 0)
                data = process.stdout.read(size) if size else b""
                if len(data) < size:
                    raise EOFError
                yield header, data
        except (OSError, ValueError) as error:
            raise EOFError from error

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer to a request, which is a single header. Raises LLMError if the process does not
        start, TimeoutError, or EOFError if it ended."""
        with self._lock:
            self.start()
            return self._answer(request, seconds)

    def _answer(self, request: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
        started = time.monotonic()
        timer = threading.Timer(seconds, self.kill)
        try:
            timer.start()
            return next(self.frames(request))[0]
        except BaseException as error:
            # also after Ctrl-C: a late answer would be mistaken for the answer to the next request
            self.stop()
            if isinstance(error, EOFError) and time.monotonic() - started >= seconds:
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()

    def kill(self) -> None:
        """Kill the process, from any thread; call `stop` afterwards."""
        if process := self._process:
            process.kill()

    def stop(self) -> int:
        """Kill the process if it is running. Returns its exit status, which is negative for a signal."""
        atexit.unregister(self.stop)
        process = self._process
        self._process = None
        if process is None:
            return 0
        process.kill()
        status = process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(OSError):
                pipe.close()
        return status


# ---- in the child

WriteFrame: TypeAlias = Callable[..., None]  # writes a frame: (header, data)


def answer_requests(answer: Callable[[Any, WriteFrame], Mapping[str, Any]], memory: int) -> None:
    """Answer requests, using at most `memory` bytes if the system can limit them. `answer` returns the header
    of the last frame, and may write frames before it. Discards the output of libraries, and leaves Ctrl-C to
    the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with os.fdopen(os.dup(1), "wb") as answers, contextlib.suppress(BrokenPipeError):
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)

        def write(header: Mapping[str, Any], data: bytes = b"") -> None:
            answers.write(json.dumps(header).encode("ascii") + b"\n" + data)
            answers.flush()

        write({})
        for line in sys.stdin.buffer:
            end_after(_ORPHAN_SECONDS)
            last = answer(json.loads(line), write)
            end_after(0)
            write(last)


def end_after(seconds: float) -> float:
    """Make the system, if it can, end this process after some seconds (0: never), in case its parent has
    died. Returns the remaining seconds of the previous limit."""
    if hasattr(signal, "setitimer") and hasattr(signal, "ITIMER_REAL"):
        return signal.setitimer(signal.ITIMER_REAL, seconds)[0]
    return 0.0
