"""Bytes -> disk, so that a file is the old one or the new one, never half.

The steps are those of careful backup programs: a temporary file beside the target, its space taken first, written,
its length checked, flushed to disk, given the mode of the file it replaces, moved into place, the directory flushed.
"""

import contextlib
import errno
import glob
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from llmcli.errors import LLMError

Buffer = bytes | memoryview


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
    if str(path) == "-":
        raise LLMError(f"a file is wanted, found -, which is standard output; give its name:{option} {example}")
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise LLMError(f"cannot write {str(path)[:80]}: {error.strerror}; give another name{by}") from error
    if path.is_dir():
        raise LLMError(f"{path} is a directory; give a file name:{option} {path / example}")
    if path.exists() and not path.is_file():
        raise LLMError(f"{path} is not a regular file; give another name{by}")
    if path.exists() and not force:
        raise LLMError(f"{path} exists already; add --force to replace it, or give another name{by}")
    parent = _target(path).parent
    if not parent.is_dir():
        raise LLMError(f"there is no directory {parent}; make it first: mkdir -p {parent}")
    with _beside(_target(path)):
        pass


def check_space(path: str | Path, size: int) -> None:
    """Make sure, before the work, that the disk has room for so many bytes more. Raises LLMError if not."""
    directory = _target(Path(path)).parent
    try:
        free = shutil.disk_usage(directory).free
    except OSError:
        return  # nobody knows
    if free < size:
        raise LLMError(
            f"the disk of {directory} has {free / 1e6:,.1f} MB left, {path} will take {size / 1e6:,.1f} MB; "
            "free some, or name a file on another disk"
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else may hold this while we do; the system frees it when we end, however that comes about.

    Raises LLMError when somebody holds it. Where the system has no such locks nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    target = _target(path)
    beside = target.with_name(f".{target.name}.lock")
    while True:
        try:
            descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise LLMError(f"cannot write {target}: {error.strerror}; give another name") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), beside.stat()):
                break
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            raise LLMError(f"another run is making {path}; wait for it, end it, or give another name") from None
        os.close(descriptor)  # its last holder removed it meanwhile; perhaps another is there already
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        os.close(descriptor)


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
    with _beside(target) as (descriptor, temporary):
        _reserve(descriptor, total)
        for part in parts:
            left = memoryview(part)
            while left:
                left = left[os.write(descriptor, left[: 1 << 30]) :]
        if os.lseek(descriptor, 0, os.SEEK_CUR) != total or os.fstat(descriptor).st_size != total:
            raise OSError(errno.EIO, "fewer bytes arrived than were written")
        _flush(descriptor)
        os.replace(temporary, target)
    _flush_directory(target.parent)


def write_by(path: str | Path, writer: Callable[[Path], None]) -> None:
    """Put a file there that `writer` writes under another name. Raises LLMError as `write` does."""
    target = _target(Path(path))
    with _beside(target) as (descriptor, temporary):
        writer(temporary)
        _flush(descriptor)
        os.replace(temporary, target)
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
                raise LLMError(f"cannot rename {path} to {place}: {error.strerror}") from error
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
                target.rename(old)
            temporary.rename(target)
        except BaseException:
            if not target.exists() and old.exists():
                old.rename(target)
            raise
    except LLMError as error:
        raise LLMError(str(error).replace(str(temporary), str(path)), error.exit_code) from error
    except OSError as error:
        raise LLMError(f"cannot write {path}: {error.strerror}; nothing there was changed") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    _flush_directory(target.parent)


def _target(path: Path) -> Path:
    """Where the bytes go: behind symbolic links, which stay."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[tuple[int, Path]]:
    """A new temporary file next to `target` (descriptor, path), gone afterwards unless it was moved."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    descriptor = -1
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # left by a killed process that had our number
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        if target.exists():
            old = target.stat()
            with contextlib.suppress(OSError):  # only the administrator can give files away
                os.fchown(descriptor, old.st_uid, old.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
        yield descriptor, temporary
    except OSError as error:
        raise LLMError(f"cannot write {target}: {error.strerror}; nothing there was changed") from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _reserve(descriptor: int, size: int) -> None:
    """Take the disk space first, where the system can: a full disk is known before anything is written."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise


def _flush(descriptor: int) -> None:
    """Bytes to the disk itself; macOS has a call of its own for that."""
    try:
        from fcntl import F_FULLFSYNC, fcntl  # type: ignore[attr-defined,unused-ignore]
    except ImportError:
        os.fsync(descriptor)
    else:
        fcntl(descriptor, F_FULLFSYNC)


def _flush_directory(directory: Path) -> None:
    """Make the new name durable, where the system can."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise LLMError(f"cannot flush {directory}: {error.strerror}") from error
    finally:
        os.close(descriptor)
