"""Atomic writes: whatever fails, a file has either all of its old content or all of its new content.

The steps: create a file in a temporary directory next to the target, write it, set the target's owner and
mode, flush it to disk, close it, rename it, flush the target's directory.
Steps that the file system or operating system does not support are skipped; a step that fails is an error.
"""

import contextlib
import errno
import glob
import itertools
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from llmcli.data.regular_file import open_regular, reading_error
from llmcli.errors import LLMError, usage
from llmcli.formats.open_file import name_in_cache
from llmcli.signals import cleaning_up

WINDOWS = os.name == "nt"
# seconds between attempts to rename a file on Windows
RENAME_PAUSES = (
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
)
_UNSUPPORTED = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTTY,
    *(getattr(errno, n) for n in ("ENOTSUP", "EOPNOTSUPP")),
}
_STANDARD_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_START_BYTES = 1000
# first bytes, in lower case, of the files that this program writes; a safetensors header is shorter than 4 GB
_STARTS = {
    ".safetensors": (b"\0\0\0\0{",),
    ".gguf": (b"gguf",),
    ".Modelfile": (b"from ", b"#"),  # users may edit it and add a comment at the top
    ".html": (b"<!doctype html", b"<html"),
    ".json": (b'{"version"',),  # a tokenizer; other programs write spaces between the tokens of JSON
    ".jsonl": (b"{",),
}
_WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
_WINDOWS_DEVICES |= {f"{port}{number}" for port in ("COM", "LPT") for number in "123456789¹²³"}


def name_of(path: str | Path) -> str:
    """Return the last part of a path as text, even if the name is not UTF-8; for OWNER/NAME in the hub's
    cache, return NAME."""
    if name := name_in_cache(Path(path)):
        return name.partition("/")[2]
    return os.fsencode(Path(path).name).decode("utf-8", "replace")


# ---- checks before a long run


def check_writable(
    path: str | Path, *, force: bool | None, by: str = " with `output`", example: str = "model.safetensors"
) -> None:
    """Raise LLMError unless `write` can and may write this file. An existing file is replaced only with
    `force` (None: the command has no such option), and only if it has the format of `example`. See
    `check_name` for `by` and `example`."""
    path = Path(path)
    check_name(path, by=by, example=example)
    if path.exists():
        if not _has_format(path, ending := Path(example).suffix):
            raise LLMError(
                f"{path} exists and does not begin like a {ending} file, so it is not replaced; "
                f"give another name{by}"
            )
        if not force:
            advice = "remove it" if force is None else "add `overwrite=True` to replace it"
            raise LLMError(f"{path} already exists; {advice}, or give another name{by}")
        if WINDOWS and not path.stat().st_mode & stat.S_IWRITE:
            raise LLMError(f"{path} is read-only; allow writing: attrib -R {path}, or give another name{by}")
    target = resolve_links(path)
    require_directory(target.parent)
    with _temporary_file(target) as temporary:  # all steps of `write` except renaming
        temporary.write_bytes(b"0")
    _flush_directory(target.parent)


def check_name(path: Path, *, by: str, example: str) -> None:
    """Raise LLMError if this is not a valid file name, or is the name of something else, such as a directory
    or a device. The message asks for another name, such as `example`; `by` says how to give it."""
    option = by.removeprefix(" with")
    if WINDOWS and (problem := windows_name_problem(path.name)):
        raise LLMError(f"cannot write {path}: {problem}; give another name{by}")
    if str(path) in _STANDARD_OUTPUT:
        raise LLMError(
            f"expected a file, found {path}, which is standard output; give a file name:{option} {example}"
        )
    try:
        os.stat(path)
    except OSError as error:  # the system does not allow this name
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            name = str(path)[:80]
            raise LLMError(
                f"cannot write {name}: {error.strerror or error}; give another name{by}"
            ) from error
    if path.is_dir():
        raise LLMError(f"{path} is a directory; give a file name:{option} {path / example}")
    if path.exists() and not path.is_file():
        raise LLMError(f"{path} is not a regular file; give a file name:{option} {example}")


def _has_format(path: Path, ending: str) -> bool:
    """Return whether a file is empty, or begins like files with this ending. Raises LLMError if it cannot be
    read."""
    try:
        with open_regular(path) as file:
            start = file.read(_START_BYTES)
    except OSError as error:
        raise reading_error(error, path) from error
    text = start[4:] if ending == ".safetensors" else start.lstrip().lower()
    if ending == ".json":
        text = b"".join(text.split())
    return not start or text.startswith(_STARTS[ending])


def windows_name_problem(name: str) -> str:
    """Return the reason why Windows cannot create a file with this name, or would write elsewhere; "" if it
    can."""
    device = name.split(".")[0].rstrip(" ").upper()
    if device in _WINDOWS_DEVICES:
        return f"{device} is the name of a device on Windows"
    if bad := next((c for c in name if c in '<>:"/\\|?*' or ord(c) < 32), ""):
        return f"Windows does not allow {bad!r} in a file name"
    return "Windows does not allow a dot or space at the end of a name" if name.endswith((".", " ")) else ""


def reject_gguf_name(output: Path) -> None:
    """Raise LLMError if a safetensors file would be named like a GGUF file."""
    if output.suffix.lower() == ".gguf":
        raise usage(
            f"{output}: this command writes a .safetensors file; to write a .gguf: "
            f"llm export MODEL {output} --to gguf"
        )


def reject_overwriting(
    output: Path, kind: str, inputs: Iterable[Path], role: str, by: str = " with `output`"
) -> None:
    """Raise LLMError if an output would replace an input of the command, or a directory that contains one.
    `kind` describes the output, `role` the inputs, `by` the option that names the output."""
    target = output.resolve()
    for path in inputs:
        resolved = path.resolve()
        if resolved == target or (path.exists() and output.exists() and path.samefile(output)):
            raise LLMError(f"{output} is {role}; give the {kind} another name{by}")
        if target in (*resolved.parents, *path.absolute().parents):
            raise LLMError(f"{output} contains {path}, {role}; give the {kind} another name{by}")


def check_space(path: str | Path, size: int) -> None:
    """Raise LLMError unless a file of `size` bytes is allowed and fits on the disk."""
    directory = resolve_links(Path(path)).parent
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and limit < size:
            problem = f"files are limited to {limit / 1e6:,.1f} MB here (ulimit -f)"
            raise LLMError(
                f"{problem}, {path} needs {size / 1e6:,.1f} MB; raise the limit: ulimit -f unlimited"
            )
    try:
        free = shutil.disk_usage(directory).free
    except OSError:
        return  # unknown
    if free < size:
        problem = f"the disk of {directory} has {free / 1e6:,.1f} MB left, {path} needs {size / 1e6:,.1f} MB"
        raise LLMError(f"{problem}; free some space, or name a file on another disk")


# ---- files


def write(path: str | Path, data: bytes) -> None:
    """Write a file. Owner, mode and symbolic link of an existing one are kept. Raises LLMError and keeps the
    file if writing fails."""
    write_with(path, lambda temporary: temporary.write_bytes(data))


def write_with(path: str | Path, writer: Callable[[Path], object]) -> None:
    """Write a file with a function that writes to a path, or replaces the file there. Raises LLMError like
    `write`."""
    with _temporary_file(resolve_links(Path(path)), keep=True) as temporary:
        writer(temporary)


def move_aside(path: Path) -> Path:
    """Rename a file to the first free name of `model-1.safetensors`, `model-2.safetensors`, ..., and return
    that name. Where hard links exist, it also keeps its old name until `write` replaces it. Raises LLMError
    if renaming fails."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(1))
    new_path = next(other for other in numbered if not os.path.lexists(other))
    try:
        try:
            os.link(path, new_path)
        except FileExistsError:  # another process has just created it
            return move_aside(path)
        except OSError:  # no hard links here
            path.rename(new_path)
    except OSError as error:
        raise LLMError(f"cannot rename {path} to {new_path}: {error.strerror or error}") from error
    _flush_directory(new_path.absolute().parent)
    return new_path


def remove_stale(path: Path) -> None:
    """Remove temporary files that killed runs left next to an output, and restore a directory that was being
    replaced. The caller must hold the output's lock."""
    target = resolve_links(path)
    for stale in target.parent.glob(f".{glob.escape(target.name)}.*.*"):
        process, _, suffix = stale.name.removeprefix(f".{target.name}.").partition(".")
        if not process.isdecimal():  # belongs to another output with a longer name
            continue
        with contextlib.suppress(OSError):
            if suffix == "old" and stale.is_dir() and not target.exists():
                stale.rename(target)
            elif suffix == "tmp" or (suffix == "old" and stale.is_dir()):
                _remove(stale)


# ---- directories


def check_directory(directory: Path, others: Callable[[], Iterable[Path]], kind: str, *, force: bool) -> None:
    """Raise LLMError unless a directory of this kind may be written here. An existing one is replaced only
    with `force`, and if it has no files of `others`, which would be lost."""
    if str(directory) == "-":
        raise LLMError("expected a directory, found -, which is standard output; give another name")
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise LLMError(f"{directory} is not a directory; give another name")
    require_directory(directory.parent)
    if not directory.is_dir():
        return
    current = Path.cwd()
    if os.path.ismount(directory) or directory.resolve() in (current, *current.parents):
        problem = "cannot be replaced: another disk is mounted there, or it is the current directory"
        raise LLMError(f"{directory} {problem}; name another directory, such as {directory / kind}")
    if other := min(others(), default=None):
        problem = f"contains {other.relative_to(directory)}, which is not part of a {kind} and would be lost"
        raise LLMError(f"{directory} {problem}; move it away, or name another directory")
    if not force and any(directory.iterdir()):
        advice = f"add `overwrite=True` to replace the {kind} in it, or give another name"
        raise LLMError(f"{directory} is not empty; {advice}")


def require_directory(directory: Path) -> None:
    """Raise LLMError unless the directory for a new file or directory exists."""
    if directory.is_dir():
        return
    if directory.exists():
        raise LLMError(f"{directory} is not a directory; give another name")
    raise LLMError(f"there is no directory {directory}; make it first: mkdir -p {directory}")


@contextlib.contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory to fill, which then replaces the one at `path` as a whole. If that fails,
    raises LLMError and keeps the existing directory; `remove_stale` restores it after a kill between the two
    renames."""
    target = resolve_links(path)
    temporary, old = (target.with_name(f".{target.name}.{os.getpid()}.{suffix}") for suffix in ("tmp", "old"))
    with cleaning_up(partial(_remove, temporary)):
        try:
            _remove(temporary)  # left by a killed process with the same id
            temporary.mkdir()
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            yield temporary
            _flush_directory(temporary)
            try:
                with contextlib.suppress(FileNotFoundError):
                    _rename(target, old)
                _rename(temporary, target)
            except BaseException:
                if not target.exists() and old.exists():
                    old.rename(target)
                raise
        except LLMError as error:
            raise LLMError(str(error).replace(str(temporary), str(path)), error.exit_code) from error
        except OSError as error:
            raise LLMError(
                f"cannot write {path}: {error.strerror or error}; nothing there was changed"
            ) from error
    _remove(old)
    _flush_directory(target.parent)


# ---- steps


def resolve_links(path: Path) -> Path:
    """Return the target of symbolic links, which are kept. Raises LLMError."""
    try:
        return Path(os.path.realpath(path))
    except OSError as error:  # for example a relative path in a deleted working directory
        raise LLMError(
            f"cannot write {path}: {error.strerror or error}; give the name of a directory that exists"
        ) from error


@contextlib.contextmanager
def _temporary_file(target: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield the path of an empty file, in a directory next to `target` that other users cannot enter. On
    exit, the file is flushed and, with `keep`, replaces `target`; after an error, or without `keep`, it is
    deleted."""
    directory = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary = directory / target.name
    with cleaning_up(partial(_remove, directory)):
        try:
            _remove(directory)  # left by a killed process with the same id
            directory.mkdir(0o700)
            temporary.touch()
            status = (target if target.exists() else temporary).stat()
            yield temporary
            # closed before renaming: network file systems report late errors here, and Windows cannot rename
            # open files
            with open(temporary, "ab") as file:
                _set_owner_and_mode(file.fileno(), status)
                _flush(file.fileno())
            if keep:
                _rename(temporary, target)
                _flush_directory(target.parent)
        except OSError as error:
            raise LLMError(
                f"cannot write {target}: {error.strerror or error}; nothing there was changed"
            ) from error


def _set_owner_and_mode(descriptor: int, status: os.stat_result) -> None:
    """Copy the owner and the mode of another file."""
    if hasattr(os, "fchown"):
        with contextlib.suppress(OSError):  # only the administrator may change the owner
            os.fchown(descriptor, status.st_uid, status.st_gid)
    mode = stat.S_IMODE(status.st_mode)
    if hasattr(os, "fchmod") and mode != stat.S_IMODE(os.fstat(descriptor).st_mode):
        os.fchmod(descriptor, mode)


def _remove(path: Path) -> None:
    """Remove a file, or a directory with all its files, as far as possible. (`shutil.rmtree` opens the
    directory, which fails when too many files are open.)"""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            for inner in path.iterdir():
                _remove(inner)
            path.rmdir()
        else:
            os.unlink(path)


def _rename(source: Path, target: Path) -> None:
    """Rename a file, which may replace another, or a directory. On Windows, retry for a few seconds: renaming
    fails while another program has one of the files open, and search indexers and virus scanners briefly open
    every new file."""
    for pause in RENAME_PAUSES if WINDOWS else ():
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(pause)
    os.replace(source, target)


def _flush(descriptor: int) -> None:
    """Flush a file to the disk. On macOS, this requires F_FULLFSYNC, which network file systems do not
    support."""
    try:
        from fcntl import F_FULLFSYNC, fcntl  # type: ignore[attr-defined,unused-ignore]

        is_flushed = _is_supported(lambda: fcntl(descriptor, F_FULLFSYNC))
    except ImportError:
        is_flushed = False
    if not is_flushed:
        _is_supported(lambda: os.fsync(descriptor))


def _is_supported(call: Callable[[], object]) -> bool:
    """Make a system call; return False if the system does not support it. Other errors are raised."""
    try:
        call()
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _flush_directory(directory: Path) -> None:
    """Flush the names in a directory to the disk. Does nothing on Windows, which cannot open directories."""
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
