"""Ctrl-C and the other signals that ask a process to end."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType

SAME_REQUEST = 0.5  # seconds within which a second signal belongs to the same request
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # the last is Ctrl-Break and a closed window on Windows
Handler = Callable[[int, FrameType | None], object] | int | None
_cleanups: list[Callable[[], object]] = []  # callbacks of the `cleaning_up` contexts, in order


def stop_signals(*names: str) -> dict[signal.Signals, Handler]:
    """Return the signals that ask a process to end (default: NAMES) with their handlers, without those that
    the parent process ignores, as nohup does with SIGHUP, or that are not handled in Python."""
    numbers = [getattr(signal, name) for name in names or NAMES if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    return {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}


@contextmanager
def cleaning_up(cleanup: Callable[[], object]) -> Iterator[None]:
    """Call `cleanup` when this context ends, even if `end_process` ends the process in it."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)
        cleanup()


def end_process(number: int, frame: FrameType | None) -> None:
    """Handle a signal: raise KeyboardInterrupt or SystemExit. Where an exception is not safe, end the process
    immediately."""
    if _may_raise(frame):
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
    on_stop_requests(signal.SIG_IGN)
    try:
        with ExitStack() as stack:  # calls all, the last one first, even if one fails
            if number == signal.SIGINT:
                stack.callback(os.write, 2, b"interrupted\n")
            for cleanup in _cleanups:
                stack.callback(cleanup)
    finally:
        os._exit(128 + number)


def _may_raise(frame: FrameType | None) -> bool:
    """Return whether an exception raised here ends the program. Python drops one in a destructor and wraps
    one in `__set_name__`; native code that imports a module may abort."""
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if name in ("__del__", "__set_name__") or file.startswith("<frozen importlib"):
            return False
        frame = frame.f_back
    return True


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
    between two tokens. Unless `can_save`, the previous handlers are called; after a second request, that of
    Ctrl-C. One request may arrive as two signals: one from `timeout` or a shell, one from the kernel."""
    received = [] if received is None else received
    first_at = -math.inf if received else None  # a signal that was there before makes the next one the second

    def call_earlier(number: signal.Signals, frame: FrameType | None) -> None:
        handler = earlier.get(number)
        if callable(handler):
            handler(number, frame)
        else:  # the default, or Ctrl-C under nohup, after a second request by another signal
            end_process(number, frame)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        now = time.monotonic()
        if not (received or can_save()):
            call_earlier(signal.Signals(number), frame)
        elif first_at is None:
            first_at = now
            received.append(number)
            if show_note:
                show_note("ending the run and saving; press Ctrl-C again to quit without saving")
        elif now - first_at >= SAME_REQUEST:
            call_earlier(signal.SIGINT, frame)

    earlier = stop_signals() if show_note else stop_signals("SIGINT")
    with handled_by(handle, earlier):
        yield received
