"""A lock on an output file, which prevents two runs from writing the same file. (`filelock.FileLock`, version
4.3, leaves its lock file behind, and fails on file systems without locks; here, runs continue with a
note.)"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from llmcli.errors import LLMError
from llmcli.formats import atomic_io
from llmcli.signals import cleaning_up

# errors that operating systems report for a locked file
_HELD = {
    errno.EAGAIN,
    errno.EWOULDBLOCK,
    errno.EACCES,
    errno.EDEADLK,
}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[str]:
    """Hold the lock of an output file, which the system releases when the process ends, even if it is killed.
    Yields "" or the reason why locking is not possible. Raises LLMError if another process holds the lock."""
    target = atomic_io.resolve_links(path)
    lock_file = target.with_name(f".{target.name}.lock")
    while True:
        try:
            descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise LLMError(f"cannot write {target}: {error.strerror or error}; give another name") from error
        try:
            problem = _lock(descriptor)
            if problem or atomic_io.WINDOWS or os.path.samestat(os.fstat(descriptor), lock_file.stat()):
                break
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            raise LLMError(
                f"another run is writing to {path}; wait for it, end it, or give another name"
            ) from None
        os.close(descriptor)  # the previous holder deleted the file after we opened it: try again

    def unlock() -> None:
        if atomic_io.WINDOWS:  # Windows cannot delete a file that is open here or in the next holder
            os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(lock_file)
        if not atomic_io.WINDOWS:
            os.close(descriptor)

    with cleaning_up(unlock):
        yield problem


def _lock(descriptor: int) -> str:
    """Lock an open file for this process. Returns "" or the reason why locking is not possible. Raises
    BlockingIOError if another process has locked it."""
    try:
        try:
            import fcntl
        except ImportError:
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return "this system has no file locks"
    except OSError as error:
        if error.errno in _HELD:
            raise BlockingIOError(error.errno, error.strerror) from error
        return error.strerror or str(error)
    return ""
