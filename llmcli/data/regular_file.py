"""Opening a file safely if the path may be a pipe or a device, where opening or reading may wait forever."""

import errno
import io
import os
import stat
from pathlib import Path

from llmcli.errors import LLMError

MAX_BYTES = 100_000_000  # limit for reading a file at once: three times the largest published tokenizer.json
# has no effect on regular files; Windows has neither flag nor such files
_NON_BLOCKING = getattr(os, "O_NONBLOCK", 0)


class NotRegularError(OSError):
    """A directory, pipe, socket or device in place of a file."""


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. Raises OSError, including NotRegularError."""
    return open(path, "rb", opener=_descriptor)


def _descriptor(path: str, flags: int) -> int:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise NotRegularError(
            errno.EINVAL, "a directory" if stat.S_ISDIR(mode) else "not a regular file", path
        )
    return os.open(path, flags | _NON_BLOCKING)  # a pipe may have taken its place


def read_file(path: Path, wanted: str = "") -> bytes:
    """Read a whole file of at most MAX_BYTES. Raises LLMError; its message names what is `wanted`."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise reading_error(error, path, wanted) from error
    if len(data) > MAX_BYTES:
        raise LLMError(f"{path} has over {MAX_BYTES:,} bytes, which is too large for a file of this kind")
    return data


def reading_error(error: OSError, name: object, wanted: str = "") -> LLMError:
    """Return the error for a file called `name` that cannot be opened or read. If it does not exist or is not
    a file, the message also names what is `wanted`."""
    advice = f"; name {wanted}" if wanted else ""
    if isinstance(error, NotRegularError):
        return LLMError(f"{name} is {error.strerror}{advice}")
    if isinstance(error, FileNotFoundError):
        return LLMError(f"there is no file {name}{advice}")
    return LLMError(f"cannot read {name}: {error.strerror or error}")
