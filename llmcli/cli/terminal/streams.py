"""The standard streams: UTF-8 and line feeds everywhere, and errors that name standard output.

Imports little: `llm --version` needs nothing else.
"""

import errno
import io
import os
import sys

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without the time to import typing; type checkers know the name
if TYPE_CHECKING:
    from typing import Any, TextIO

OUTPUT = "the output"  # file name in errors of standard output
STANDARD_ERROR = 2  # file descriptor
WINDOWS = os.name == "nt"


def prepare() -> None:
    """Make stdout and stderr write UTF-8 regardless of the locale; open those that the caller closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w":
            setattr(sys, name, _utf8(getattr(sys, name)))


def _utf8(stream: "TextIO") -> "TextIO":
    """Return a standard stream that writes UTF-8 and keeps line ends."""
    if WINDOWS and stream.isatty():  # a Windows console takes text, not bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        return stream
    file = io.BufferedWriter(_StandardStream(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="\n", line_buffering=True)


def enable_escape_codes() -> None:
    """Make Windows consoles interpret ANSI escape codes; a console that cannot gets no colors."""
    import ctypes

    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    kernel.GetStdHandle.restype = ctypes.c_void_p
    for stream in (-11, -12):  # STD_OUTPUT_HANDLE, STD_ERROR_HANDLE
        handle = ctypes.c_void_p(kernel.GetStdHandle(stream))
        mode = ctypes.c_uint32()
        is_console = kernel.GetConsoleMode(handle, ctypes.byref(mode))
        # ENABLE_VIRTUAL_TERMINAL_PROCESSING
        if is_console and not kernel.SetConsoleMode(handle, mode.value | 4):
            os.environ["NO_COLOR"] = "1"


class _StandardStream(io.FileIO):
    """Standard output, whose errors carry the name OUTPUT, which distinguishes them from errors of other
    files; or standard error, where notes that cannot be written (disk full, pipe closed) are dropped instead
    of ending a run."""

    def write(self, data: "Any", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() == STANDARD_ERROR:
                return len(data)
            # Windows' error for a pipe without a reader
            closed = WINDOWS and error.errno == errno.EINVAL
            raise OSError(errno.EPIPE if closed else error.errno, error.strerror, OUTPUT) from error
