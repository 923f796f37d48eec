"""Command-line entry point: prepares the standard streams and signals, then runs the app."""

import gc
import os
import signal
import sys

from llmcli.cli.terminal import streams
from llmcli.signals import end_process, on_stop_requests
from llmcli.version import __version__

FIRST_COLLECTION = 100_000  # objects; the modules of a short command have fewer


def main() -> None:
    """Run the command line; never returns."""
    is_closed = sys.stdout is None
    streams.prepare()
    # results would be lost, or written to the next file opened, which reuses the descriptor
    if is_closed:
        from llmcli.cli.terminal import console
        from llmcli.errors import FAILURE

        console.fail("standard output is closed; to keep the results: > FILE, to discard them: > /dev/null")
        sys.exit(FAILURE)
    on_stop_requests(end_process)
    try:
        if sys.argv[1:] == ["--version"]:
            _print_version()
        else:
            _delay_garbage_collection()
            _run_app()
    finally:
        on_stop_requests(signal.SIG_IGN)  # the process is exiting; a signal must not interrupt it


def _print_version() -> None:
    """Print the version before Typer is imported, which takes ten times as long."""
    code = 0
    try:
        sys.stdout.write(f"llmcli {__version__}\n")
        sys.stdout.flush()
    except OSError as error:
        from llmcli.cli.error_report import report

        code = report(error)
    sys.exit(code)


def _delay_garbage_collection() -> None:
    """Collect no garbage before FIRST_COLLECTION objects exist. A short command has hardly any besides its
    modules, and visiting these again and again takes a twentieth of its time."""
    usual = gc.get_threshold()

    def restore(phase: str, info: object) -> None:
        gc.set_threshold(*usual)
        gc.callbacks.remove(restore)

    gc.set_threshold(FIRST_COLLECTION)
    gc.callbacks.append(restore)


def _run_app() -> None:
    import warnings

    # for numpy: BLAS's threads are slow while other programs run (models/matrix_product.py)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from llmcli.cli.app import app

    # numpy's warnings about damaged weights: the logits are checked, and that error is clearer
    warnings.filterwarnings("ignore", ".* encountered in ", RuntimeWarning, r"llmcli\.")
    if streams.WINDOWS:
        streams.enable_escape_codes()
    app()
