"""Bytes -> disk, so that a file is the old one or the new one, never half.

The steps are those of careful backup programs: a temporary file beside the target, its space taken first, written,
its length checked, flushed to disk, given the mode of the file it replaces, closed, moved into place, the directory
flushed. A step that a file system or operating system does not have is left out; one that fails is an error.
"""

import contextlib
import errno
import glob
import itertools
import math
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from llmcli.errors import LLMError

Buffer = bytes | memoryview
WINDOWS = os.name == "nt"
_BINARY = getattr(os, "O_BINARY", 0)  # without it Windows writes two bytes for each line feed
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTTY, *(getattr(errno, n) for n in ("ENOTSUP", "EOPNOTSUPP"))}
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}  # how systems say that a file is locked
MOVE_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # seconds between tries to move a file on Windows


def name_of(path: str | Path) -> str:
    """The last part of a path as text that any file can hold: a name's bytes need not be UTF-8.

    >>> name_of(os.fsdecode(b"there/hf\\xff"))
    'hf\ufffd'
    """
    return os.fsencode(Path(path).name).decode("utf-8", "replace")


def check_writable(path: str | Path, *, force: bool, by: str = " with -o", example: str = "model.safetensors") -> None:
    """Make sure, before the work, that `write` can put a file there. Raises LLMError if not, which tells to give
    another name, like `example`, `by` the option that there is."""
    path = Path(path)
    option = by.removeprefix(" with")
    if WINDOWS and (problem := windows_name_problem(path.name)):
        raise LLMError(f"cannot write {path}: {problem}; give another name{by}")
    if str(path) == "-":
        raise LLMError(f"a file is wanted, found -, which is standard output; give its name:{option} {example}")
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise LLMError(
                f"cannot write {str(path)[:80]}: {error.strerror or error}; give another name{by}"
            ) from error
    if path.is_dir():
        raise LLMError(f"{path} is a directory; give a file name:{option} {path / example}")
    if path.exists() and not path.is_file():
        raise LLMError(f"{path} is not a regular file; give another name{by}")
    if path.exists() and not force:
        raise LLMError(f"{path} exists already; add --force to replace it, or give another name{by}")
    if WINDOWS and path.exists() and not path.stat().st_mode & stat.S_IWRITE:
        raise LLMError(f"{path} is read-only; allow writing: attrib -R {path}, or give another name{by}")
    target = _target(path)
    if not target.parent.is_dir():
        raise LLMError(f"there is no directory {target.parent}; make it first: mkdir -p {target.parent}")
    with _beside(target) as (descriptor, _):  # every step of `write` but the move
        _reserve(descriptor, 1)
        os.write(descriptor, b"0")
        _flush(descriptor)
    _flush_directory(target.parent)


def windows_name_problem(name: str) -> str:
    """Why Windows cannot keep a file of this name, or would write to something else; "" for other names.

    >>> windows_name_problem("model.safetensors"), windows_name_problem("nul.safetensors")
    ('', 'NUL is the name of a device on Windows')
    """
    device = name.split(".")[0].rstrip(" ").upper()
    if device in _DEVICES:
        return f"{device} is the name of a device on Windows"
    if bad := next((c for c in name if c in '<>:"/\\|?*' or ord(c) < 32), ""):
        return f"Windows allows no {bad!r} in the name of a file"
    return "Windows allows no dot or space at the end of a name" if name.endswith((".", " ")) else ""


_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
_DEVICES |= {f"{port}{number}" for port in ("COM", "LPT") for number in "123456789¹²³"}


def check_space(path: str | Path, size: int) -> None:
    """Make sure, before the work, that a file of so many bytes may be written and that the disk has room for it.

    Raises LLMError if not.
    """
    directory = _target(Path(path)).parent
    most = _largest_file()
    if most < size:
        raise LLMError(
            f"a file may have {most / 1e6:,.1f} MB here (ulimit -f), {path} will take {size / 1e6:,.1f} MB; "
            "raise the limit: ulimit -f unlimited"
        )
    try:
        free = shutil.disk_usage(directory).free
    except OSError:
        return  # nobody knows
    if free < size:
        raise LLMError(
            f"the disk of {directory} has {free / 1e6:,.1f} MB left, {path} will take {size / 1e6:,.1f} MB; "
            "free some, or name a file on another disk"
        )


def _largest_file() -> float:
    """Bytes that a file of this process may have, as far as the system tells."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if most != resource.RLIM_INFINITY:
            return float(most)
    return math.inf


@contextlib.contextmanager
def locked(path: Path) -> Iterator[str]:
    """Nobody else may hold this while we do; the system frees it when we end, however that comes about.

    Yields "" or, where the file system or the operating system has no locks, why nothing is held. Raises LLMError when
    somebody else holds it.
    """
    target = _target(path)
    beside = target.with_name(f".{target.name}.lock")
    while True:
        try:
            descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
        except OSError as error:
            raise LLMError(f"cannot write {target}: {error.strerror or error}; give another name") from error
        try:
            problem = _lock(descriptor)
            if problem or WINDOWS or os.path.samestat(os.fstat(descriptor), beside.stat()):
                break  # on Windows nobody can have removed it
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            raise LLMError(f"another run is making {path}; wait for it, end it, or give another name") from None
        os.close(descriptor)  # its last holder removed it meanwhile; perhaps another is there already
    try:
        yield problem
    finally:
        if WINDOWS:  # an open file cannot be removed there, nor one that the next holder has open
            os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(beside)
        if not WINDOWS:
            os.close(descriptor)


def _lock(descriptor: int) -> str:
    """Lock an open file for this process: "", or why there are no locks here. Raises BlockingIOError when another
    process has it locked."""
    try:
        import fcntl
    except ImportError:
        return _lock_by_msvcrt(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return _why_not_locked(error)
    return ""


def _lock_by_msvcrt(descriptor: int) -> str:
    """The same on Windows, where a range of bytes is locked."""
    try:
        import msvcrt
    except ImportError:
        return "this system has no file locks"
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError as error:
        return _why_not_locked(error)
    return ""


def _why_not_locked(error: OSError) -> str:
    if error.errno in _HELD:
        raise BlockingIOError(error.errno, error.strerror) from error
    return error.strerror or str(error)


def remove_stale(path: Path) -> None:
    """Remove what killed writers of this file have left beside it; to be called by who has it locked."""
    target = _target(path)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.*"):
        number, _, end = left.name.removeprefix(f".{target.name}.").partition(".")
        if not number.isdecimal():  # somebody else's, such as of a file with a longer name
            continue
        with contextlib.suppress(OSError):
            if end == "old" and left.is_dir():  # what `directory` was replacing; where the new one is there, that stays
                left.rename(target)
        with contextlib.suppress(OSError):
            if left.is_dir() and end in ("old", "tmp"):
                shutil.rmtree(left)
            elif end == "tmp":
                left.unlink()


def write(path: str | Path, parts: Iterable[Buffer], total: int | None = None) -> None:
    """Put a file there that is `parts` joined, `total` bytes: needed where they are made one by one. Owner, mode and
    symbolic link of an older file are kept.

    Raises LLMError when the disk refuses; the old file is then untouched.
    """
    target = _target(Path(path))
    if total is None:
        parts = list(parts)
        total = sum(len(part) for part in parts)
    with _beside(target, moves=True) as (descriptor, _):
        _reserve(descriptor, total)
        for part in parts:
            left = memoryview(part)
            while left:
                left = left[os.write(descriptor, left[: 1 << 30]) :]
        if os.lseek(descriptor, 0, os.SEEK_CUR) != total or os.fstat(descriptor).st_size != total:
            raise OSError(errno.EIO, "fewer bytes arrived than were written")
    _flush_directory(target.parent)


def write_by(path: str | Path, writer: Callable[[Path], None]) -> None:
    """Put a file there that `writer` writes under another name. Raises LLMError as `write` does."""
    target = _target(Path(path))
    with _beside(target, moves=True) as (_, temporary):
        writer(temporary)
    _flush_directory(target.parent)


def set_aside(path: Path) -> Path:
    """Give a file another name beside it, the first that is free of `model-1.safetensors`, `model-2.safetensors` and so
    on, and return that; `write` may then replace what stands at `path`.

    Where the system has hard links the file also keeps its name until then, so that it never has none. Raises LLMError
    when the disk refuses; the file then has its name still.
    """
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(1))
    for place in numbered:
        try:
            os.link(path, place)
        except FileExistsError:
            continue
        except OSError:  # no hard links here
            if os.path.lexists(place):
                continue
            try:
                path.rename(place)
            except OSError as error:
                raise LLMError(f"cannot rename {path} to {place}: {error.strerror or error}") from error
        _flush_directory(place.absolute().parent)
        return place
    raise AssertionError("numbers do not end")


@contextlib.contextmanager
def directory(path: Path) -> Iterator[Path]:
    """A directory beside, to be filled under another name; then it takes the place of the one there as a whole.

    Raises LLMError when the disk refuses; the old directory is then untouched. A run killed between the two moves has
    left the old one aside; `remove_stale` brings it back.
    """
    target = _target(path)
    temporary, old = (target.with_name(f".{target.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process that had our number
        temporary.mkdir()
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        yield temporary
        _flush_directory(temporary)
        try:
            with contextlib.suppress(FileNotFoundError):
                _move(target, old, os.rename)
            _move(temporary, target, os.rename)
        except BaseException:
            if not target.exists() and old.exists():
                old.rename(target)
            raise
    except LLMError as error:
        raise LLMError(str(error).replace(str(temporary), str(path)), error.exit_code) from error
    except OSError as error:
        raise LLMError(f"cannot write {path}: {error.strerror or error}; nothing there was changed") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    _flush_directory(target.parent)


def _target(path: Path) -> Path:
    """Where the bytes go: behind symbolic links, which stay. Raises LLMError."""
    try:
        return Path(os.path.realpath(path))
    except OSError as error:  # such as a name relative to a working directory that was removed
        raise LLMError(
            f"cannot write {path}: {error.strerror or error}; give the name of a directory that exists"
        ) from error


@contextlib.contextmanager
def _beside(target: Path, *, moves: bool = False) -> Iterator[tuple[int, Path]]:
    """A new temporary file next to `target` (descriptor, path), open to be written. In the end it is flushed and moved
    into place if it `moves`, else removed, as it is after an error."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    descriptor, created = -1, False
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # left by a killed process that had our number
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        created = True
        _keep_owner_and_mode(target, descriptor)
        yield descriptor, temporary
        if moves:
            _flush(descriptor)
            done, descriptor = descriptor, -1
            os.close(done)  # first: network file systems tell late errors here, and Windows moves no open file
            _move(temporary, target, os.replace)
    except OSError as error:
        raise LLMError(f"cannot write {target}: {error.strerror or error}; nothing there was changed") from error
    finally:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        if created:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _keep_owner_and_mode(old: Path, descriptor: int) -> None:
    """Give a new file what the one that it replaces has, if there is one, as far as the system has such things."""
    if not old.exists():
        return
    found = old.stat()
    if hasattr(os, "fchown"):
        with contextlib.suppress(OSError):  # only the administrator can give files away
            os.fchown(descriptor, found.st_uid, found.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode))


def _move(source: Path, target: Path, call: Callable[[Path, Path], None]) -> None:
    """Rename by `call`. On Windows a program that has one of the files open forbids it, and those that look at every
    new file (search, virus scanners) have it open for a moment: there it is tried for a few seconds."""
    for pause in MOVE_PAUSES if WINDOWS else ():
        try:
            return call(source, target)
        except PermissionError:
            time.sleep(pause)
    call(source, target)


def _reserve(descriptor: int, size: int) -> None:
    """Take the disk space first, where the system can: a full disk is known before anything is written. Any other
    error says that this file system, sandbox or kernel cannot do it, and nothing of the disk."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise


def _flush(descriptor: int) -> None:
    """Bytes to the disk itself; macOS has a call of its own for that, which its network file systems lack."""
    try:
        from fcntl import F_FULLFSYNC, fcntl  # type: ignore[attr-defined,unused-ignore]
    except ImportError:
        pass
    else:
        if _is_supported(lambda: fcntl(descriptor, F_FULLFSYNC)):
            return
    _is_supported(lambda: os.fsync(descriptor))


def _is_supported(call: Callable[[], object]) -> bool:
    """Make a call of the system; False where it says that it has no such thing. Other errors are raised."""
    try:
        call()
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _flush_directory(directory: Path) -> None:
    """Make the new name durable, where the system can: Windows opens no directory."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        _is_supported(lambda: os.fsync(descriptor))
    except OSError as error:
        raise LLMError(f"cannot flush {directory}: {error.strerror or error}") from error
    finally:
        os.close(descriptor)
