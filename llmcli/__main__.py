"""Entry point of the commands `llm` and `llmcli`, and of `python -m llmcli`.

Installs the Ctrl-C handler before anything else is imported.
"""

import os
import signal
import sys

from llmcli.cli import signals


def main() -> None:
    """Run the command line; never returns."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a process started with nohup ignores it
        signal.signal(signal.SIGINT, signals.end_process)
    try:
        from llmcli.cli import process_start

        process_start.remember()
        from llmcli.cli import app

        app.main()
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
