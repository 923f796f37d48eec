"""Entry point of the commands `llm` and `llmcli`, and of `python -m llmcli`.

Installs the Ctrl-C handler before anything else is imported.
"""

import os
import signal
import sys
import threading
from types import FrameType

RETRY_SECONDS = 0.05


def main() -> None:
    """Run the command line; never returns."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a process started with nohup ignores it
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from llmcli.cli import process_start

        process_start.remember()
        from llmcli.cli import app

        app.main()
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
        sys.exit(130)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but not in the middle of an import: try again shortly after.

    There the exception can be lost: importlib's callbacks print and drop it, and class creation wraps it in another.
    """
    if _is_importing(frame):
        timer = threading.Timer(RETRY_SECONDS, _send_interrupt)
        timer.daemon = True
        timer.start()
        return
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _send_interrupt() -> None:
    if hasattr(signal, "pthread_kill"):  # also ends a system call that the main thread waits in
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        import _thread

        _thread.interrupt_main()


if __name__ == "__main__":
    main()
