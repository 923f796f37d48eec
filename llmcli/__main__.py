"""Entry point of the commands `llm` and `llmcli`, and of `python -m llmcli`.

Installs a handler for Ctrl-C before it imports more.
"""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Entry point of the installed commands. Like `run`, but ends the process immediately: finalizing Python
    takes a fifth of the time of a short command, and seconds with torch on a busy machine."""
    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, int):
            _exit_at_once(end.code)
        raise


def _exit_at_once(code: int) -> None:
    """Wait for other threads, run the registered exit functions, and end the process. Returns if output
    cannot be written, since Python's own exit reports that."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return
    os._exit(code)


def run() -> None:
    """Run the command line; never returns."""
    # nohup starts a process that ignores SIGINT
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)
    try:
        from llmcli.cli import process_start

        process_start.remember()
        from llmcli.cli import main as command_line

        command_line.main()
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
        sys.exit(128 + signal.SIGINT)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C until the command line does: an exception during imports may be lost."""
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(128 + number)


if __name__ == "__main__":
    main()
