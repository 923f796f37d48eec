"""Ctrl-C and the other signals that ask a process to end.

Imports little, since the entry point installs its handler before importing anything else.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

RETRY_SECONDS = 0.05
SAME_REQUEST = 0.5  # seconds within which a second signal belongs to the same request


def termination_signals() -> list[signal.Signals]:
    """List the signals besides SIGINT that ask a process to end, without ignored ones."""
    names = ("SIGTERM", "SIGHUP", "SIGBREAK")  # the last is Ctrl-Break and a closed window on Windows
    return _not_ignored(*(number for name in names if (number := getattr(signal, name, None)) is not None))


def stop_signals() -> list[signal.Signals]:
    """List SIGINT and the termination signals, without ignored ones."""
    return [*_not_ignored(signal.SIGINT), *termination_signals()]


def _not_ignored(*numbers: signal.Signals) -> list[signal.Signals]:
    """Leave out signals that the parent process ignores, as nohup does with SIGHUP."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def end_process(number: int, frame: FrameType | None) -> None:
    """Handle a signal: raise KeyboardInterrupt or SystemExit. If Python would lose the exception here, retry
    shortly afterwards."""
    if _loses_exceptions(frame):
        timer = threading.Timer(RETRY_SECONDS, _send, [number])
        timer.daemon = True
        timer.start()
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        raise SystemExit(128 + number)


def _loses_exceptions(frame: FrameType | None) -> bool:
    """Return whether Python would drop or wrap an exception raised here: in a destructor, in importlib or in
    `__set_name__`."""
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if name in ("__del__", "__set_name__") or (name == "cb" and file.startswith("<frozen importlib")):
            return True
        frame = frame.f_back
    return False


def _send(number: int) -> None:
    if hasattr(signal, "pthread_kill"):  # also interrupts a system call in which the main thread is waiting
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        import _thread

        _thread.interrupt_main(signal.Signals(number))


def on_stop_requests(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Handle stop signals with `handler` from now on. With signal.SIG_DFL they end the process immediately,
    even while it waits in native code; signal.SIG_IGN is for a process that is already ending."""
    for number in stop_signals():
        signal.signal(number, handler)


@contextmanager
def stop_requests(
    can_save: Callable[[], bool] = lambda: True, show_note: Callable[[str], None] | None = None
) -> Iterator[list[int]]:
    """Collect the first stop signal in a list instead of raising an exception, so that a run can end and
    save. `show_note` tells the user; without it, only Ctrl-C is collected, so that an answer can end between
    two tokens. A second request raises KeyboardInterrupt. Unless `can_save`, the previous handlers are
    called. One request may arrive as two signals: one from `timeout` or a shell, one from the kernel."""
    received: list[int] = []
    first_at = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        now = time.monotonic()
        if not (received or can_save()):
            earlier = handlers[signal.Signals(number)]
            if callable(earlier):
                earlier(number, frame)
            elif earlier is signal.SIG_DFL:
                raise SystemExit(128 + number)
            return
        if not received:
            first_at = now
            received.append(number)
            if show_note:
                show_note("ending the run and saving; press Ctrl-C again to quit without saving")
        elif now - first_at >= SAME_REQUEST:
            end_process(signal.SIGINT, frame)

    numbers = stop_signals() if show_note else _not_ignored(signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, handle)
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
