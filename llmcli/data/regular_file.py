"""Opening a file that may be something else: opening or reading a pipe or a device may wait for ever."""

import errno
import io
import os
import stat
from pathlib import Path

_NON_BLOCKING = getattr(os, "O_NONBLOCK", 0)  # without effect on regular files; Windows has neither


class NotRegularError(OSError):
    """A directory, pipe, socket or device in place of a file."""


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading. Raises OSError, also if it is not a regular file."""
    return open(path, "rb", opener=_descriptor)


def _descriptor(path: str, flags: int) -> int:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotRegularError(errno.EINVAL, "not a regular file", path)
    return os.open(path, flags | _NON_BLOCKING)  # a pipe may have taken its place
