"""Ctrl-C and the other signals that ask a process to end.

Imports little, since the entry point installs its handler before importing anything else.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

RETRY_SECONDS = 0.05
SAME_REQUEST = 0.5  # seconds within which a second signal belongs to the same request
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # the last is Ctrl-Break and a closed window on Windows
Handler = Callable[[int, FrameType | None], object] | int | None


def stop_signals(*names: str) -> dict[signal.Signals, Handler]:
    """Return the signals that ask a process to end (default: NAMES) with their handlers, without those that
    the parent process ignores, as nohup does with SIGHUP, or that are not handled in Python."""
    numbers = [getattr(signal, name) for name in names or NAMES if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    return {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}


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


def on_stop_requests(handler: Handler) -> None:
    """Handle stop signals with `handler` from now on. With signal.SIG_DFL they end the process immediately,
    even while it waits in native code; signal.SIG_IGN is for a process that is already ending."""
    for number in stop_signals():
        signal.signal(number, handler)


@contextmanager
def handled_by(handler: Handler, earlier: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """In this context, handle signals with `handler` instead of their `earlier` handlers."""
    try:
        for number in earlier:
            signal.signal(number, handler)
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)


@contextmanager
def stop_requests(
    can_save: Callable[[], bool] = lambda: True,
    show_note: Callable[[str], None] | None = None,
    received: list[int] | None = None,
) -> Iterator[list[int]]:
    """Collect the first stop signal in the list `received` instead of raising an exception, so that a run can
    end and save. `show_note` tells the user; without it, only Ctrl-C is collected, as for an answer that ends
    between two tokens. A second request raises KeyboardInterrupt. Unless `can_save`, the previous handlers
    are called. One request may arrive as two signals: one from `timeout` or a shell, one from the kernel."""
    received = [] if received is None else received
    first_at = -math.inf if received else None  # a signal that was there before makes the next one the second

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        now = time.monotonic()
        if not (received or can_save()):
            before = earlier[signal.Signals(number)]
            if callable(before):
                before(number, frame)
            elif before is signal.SIG_DFL:
                raise SystemExit(128 + number)
            return
        if first_at is None:
            first_at = now
            received.append(number)
            if show_note:
                show_note("ending the run and saving; press Ctrl-C again to quit without saving")
        elif now - first_at >= SAME_REQUEST:
            end_process(signal.SIGINT, frame)

    earlier = stop_signals() if show_note else stop_signals("SIGINT")
    with handled_by(handle, earlier):
        yield received
