"""Reporting an exception: one line on stderr, and an exit code."""

import errno
import os
import sys
from pathlib import Path

from llmcli.cli.terminal import console
from llmcli.cli.terminal.streams import OUTPUT
from llmcli.errors import FAILURE, INTERRUPTED, LLMError, missing_package


def report(error: BaseException) -> int:
    """Print an error as one line and return the exit code. Re-raises an error that is a bug in this
    program."""
    if isinstance(error, KeyboardInterrupt):
        console.note("interrupted")
        return INTERRUPTED
    if isinstance(error, ImportError):
        if (missing := missing_package(error)) is None:
            raise error
        error = missing
    if isinstance(error, LLMError):
        console.fail(str(error))
        return error.exit_code
    if isinstance(error, MemoryError):
        console.fail("out of memory; use a smaller model, batch size or context length")
    elif isinstance(error, OSError):
        if error.errno != errno.EPIPE:  # a closed pipe is not an error
            console.fail(_os_error_message(error))
        if error.errno == errno.EPIPE or error.filename == OUTPUT:
            _discard_output()
    else:
        raise error
    return FAILURE


def _os_error_message(error: OSError) -> str:
    if error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    try:
        Path.cwd()
    except OSError:
        return "the working directory no longer exists; change to another: cd DIRECTORY"
    return f"the operating system reported an error: {error.strerror or error}"


def _discard_output() -> None:
    """Redirect standard output to the null device, so that flushing it at exit cannot fail."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        sys.stdout = None
