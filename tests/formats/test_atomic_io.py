"""Atomic writes: the old file or the new one, never a partial one, and no temporary file is left."""

import contextlib
import errno
import itertools
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmcli.errors import LLMError
from llmcli.formats import atomic_io
from tests import platforms

OLD, NEW = b"the old bytes", b"the new bytes, a few more of them"

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def mode(path: str | Path) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def listing(directory: str | Path = ".") -> list[str]:
    """The names of everything in a directory, hidden files included."""
    return sorted(path.name for path in Path(directory).iterdir())


@contextlib.contextmanager
def umask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


def open_descriptors() -> int:
    """Their number; files of earlier tests, to which nothing refers, may be closed at any time."""
    return len(listing("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0


@platforms.posix
def test_mode_and_owner_of_the_old_file_are_kept() -> None:
    """And its bytes, for those who have it open."""
    for bits in [0o600, 0o640, 0o444, 0o755, 0o666]:
        Path("f").write_bytes(OLD)
        Path("f").chmod(bits)
        if AS_ROOT:
            os.chown("f", 12345, 23456)
        before = Path("f").stat()
        with umask(0o077), open("f", "rb") as reader:
            atomic_io.write("f", NEW)
            assert reader.read() == OLD
        after = Path("f").stat()
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid), bits
        assert Path("f").read_bytes() == NEW and listing() == ["f"], bits


@platforms.posix
def test_a_new_file_has_the_mode_that_the_umask_leaves() -> None:
    for bits in (0o022, 0o027, 0o077, 0o000):
        with umask(bits):
            atomic_io.write(f"{bits}", NEW)
        assert mode(f"{bits}") == 0o666 & ~bits


@platforms.posix
def test_a_symbolic_link_is_kept_and_its_target_replaced_or_made() -> None:
    Path("d").mkdir()
    Path("d/real").write_bytes(OLD)
    Path("d/real").chmod(0o640)
    for link, target in (("d/link", "real"), ("link", "d/link"), ("dangling", "new")):
        Path(link).symlink_to(target)
    for link in ("link", "dangling"):
        atomic_io.check_name(Path(link), by="", example="m.html")
        atomic_io.write(link, NEW)
    assert Path("link").readlink() == Path("d/link") and Path("d/link").readlink() == Path("real")
    assert Path("dangling").is_symlink() and Path("new").read_bytes() == Path("d/real").read_bytes() == NEW
    assert mode("d/real") == 0o640
    assert listing() == ["d", "dangling", "link", "new"] and listing("d") == ["link", "real"]


def refuse(number: int, after: int = 0, real: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A system call that works `after` times and then fails."""
    left = [after]

    def call(*args: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            return real(*args, **options) if real else None
        raise OSError(number, os.strerror(number))

    return call


def write_a_part(path: Path, data: bytes) -> int:
    with open(path, "wb") as file:
        file.write(data[:3])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FAILURES: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "no space at the second write": (Path, "write_bytes", write_a_part),
    "no space at the flush": (os, "fsync", refuse(errno.ENOSPC)),
    "a bad disk at the flush": (os, "fsync", refuse(errno.EIO)),
    "no space at the move": (os, "replace", refuse(errno.ENOSPC)),
    "not allowed to move": (os, "replace", refuse(errno.EPERM)),
    "not allowed to set the mode": (os, "fchmod", refuse(errno.EPERM)),
    "not allowed to make a directory": (Path, "mkdir", refuse(errno.EACCES)),
}


def test_a_failing_disk_leaves_the_old_file_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, existing in itertools.product(FAILURES, (False, True)):
        module, name, failing = FAILURES[kind]
        if not hasattr(module, name) or (name == "fchmod" and not existing):
            continue  # this step does not happen here
        if existing:
            Path("f").write_bytes(OLD)
            Path("f").chmod(0o640)
        before = open_descriptors()
        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing)
            with pytest.raises(LLMError, match=r"cannot write .*f: .*nothing there was changed") as caught:
                atomic_io.write("f", NEW + NEW)
        assert caught.value.exit_code == 1 and open_descriptors() <= before
        assert listing() == (["f"] if existing else []), kind
        if existing:
            assert Path("f").read_bytes() == OLD and mode("f") == 0o640, kind
            Path("f").unlink()


def test_an_interrupt_leaves_the_old_file_and_nothing_else() -> None:
    Path("f").write_bytes(OLD)

    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_io.write_with("f", interrupt)
    assert listing() == ["f"] and Path("f").read_bytes() == OLD


def test_a_file_system_that_cannot_flush_is_written_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    for after, numbers in ((0, ("EINVAL", "ENOSYS", "ENOTSUP")), (1, ("EINVAL", "ENOTSUP"))):  # 1: of the directory
        for number in numbers:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", refuse(getattr(errno, number), after, os.fsync))
                atomic_io.write("f", number.encode())
                if not after:
                    atomic_io.check_writable("another", force=True)
            assert Path("f").read_bytes() == number.encode()


@platforms.posix
def test_on_macos_a_network_disk_is_flushed_by_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not support F_FULLFSYNC."""
    import fcntl

    flushed: list[int] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(os, "fsync", flushed.append)
    for count, number in enumerate((errno.ENOTSUP, errno.ENOTTY, errno.EINVAL), 1):
        monkeypatch.setattr(fcntl, "fcntl", refuse(number))
        atomic_io.write("f", NEW)
        assert len(flushed) == 2 * count  # the file and its directory


def test_a_directory_that_cannot_be_flushed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(errno.EIO, 1, os.fsync))
        with pytest.raises(LLMError, match="cannot flush"):
            atomic_io.write("f", NEW)
    assert open_descriptors() <= before
    assert listing() == ["f"]


def test_the_temporary_file_of_a_killed_run_is_replaced() -> None:
    Path(f".f.{os.getpid()}.tmp").write_bytes(b"half")  # in a container each run has the same process id
    atomic_io.check_writable("f", force=False)
    atomic_io.write("f", NEW)
    assert Path("f").read_bytes() == NEW


def test_the_file_is_flushed_before_it_is_renamed_and_the_directory_after(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("d").mkdir()
    Path("d/f").write_bytes(OLD)
    calls: list[Any] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor: int) -> None:
        result = os.fstat(descriptor)
        calls.append(("flush", result.st_ino, result.st_size if stat.S_ISREG(result.st_mode) else "directory"))
        fsync(descriptor)

    def recording_replace(source: Any, target: Any) -> None:
        result = os.stat(source)
        calls.append(
            ("move", result.st_ino, Path(source).parent.parent == Path(target).parent, Path(target).read_bytes())
        )
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", recording_fsync)
        patch.setattr(os, "replace", recording_replace)
        atomic_io.write("d/f", NEW)
    file, directory = Path("d/f").stat().st_ino, Path("d").stat().st_ino
    assert calls == [("flush", file, len(NEW)), ("move", file, True, OLD), ("flush", directory, "directory")]


def test_checking_a_file_changes_nothing_and_an_existing_one_needs_force() -> None:
    for force in (False, True):
        atomic_io.check_writable("f", force=force)
    assert listing() == []
    for old in (b"", b"\1\2\0\0\0\0\0\0{}"):
        Path("f").write_bytes(old)
        with pytest.raises(LLMError, match="f already exists; add `overwrite=True`"):
            atomic_io.check_writable("f", force=False)
        atomic_io.check_writable("f", force=True)
        assert listing() == ["f"]
        assert Path("f").read_bytes() == old


FORMATS = {
    "m.safetensors": b"\1\2\0\0\0\0\0\0{}", "m.gguf": b"GGUF...", "p.html": b"\n<!DOCTYPE html>",
    "t.json": b' {\n  "version": "1.0"}', "r.jsonl": b'{"row": 1}\n',
    "c.svg": b'<?xml version="1.0"?>', "c.png": b"\x89PNG\r\n",
    "c.pdf": b"%PDF-1.4", "notes.txt": b"Buy milk.\n",
}  # fmt: skip


def test_a_file_is_replaced_only_by_one_of_its_own_format() -> None:
    """Whatever their names are: an existing file is recognized by its beginning."""
    for example in ["m.safetensors", "m.gguf", "p.html", "t.json", "r.jsonl"]:
        for name, content in FORMATS.items():
            Path("f").write_bytes(content)
            if name == example or (name, example) == ("t.json", "r.jsonl"):
                atomic_io.check_writable("f", force=True, example=example)
                continue
            with pytest.raises(
                LLMError, match=rf"^f exists and does not begin like a \{Path(example).suffix} file, so it is not "
            ):
                atomic_io.check_writable("f", force=True, example=example)


def test_what_this_program_writes_has_its_format(tiny_model: Path, llm) -> None:
    for output in ("page.html", "t.json", "m-int8.safetensors"):
        words = {".html": "--to html", ".json": "--to tokenizer"}.get(Path(output).suffix, "--quantize int8").split()
        assert [llm("export", tiny_model, output, *words, "--force").exit_code for _ in range(2)] == [0, 0]


def test_a_full_disk_is_an_error_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, call in ((Path, "write_bytes"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(module, call, refuse(errno.ENOSPC))
            with pytest.raises(LLMError, match=r"cannot write .*f: No space"):
                atomic_io.check_writable("f", force=False)
        assert listing() == []


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, who may write everywhere."""
    if AS_ROOT:
        os.seteuid(65534)
    try:
        yield
    finally:
        if AS_ROOT:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no modes here")
def test_a_directory_without_write_permission_is_an_error() -> None:
    with tempfile.TemporaryDirectory() as place:  # not in tmp_path, which another user cannot enter
        Path(place).chmod(0o755)
        closed, open_ = Path(place, "closed"), Path(place, "open")
        for directory, bits in ((closed, 0o555), (open_, 0o777)):
            directory.mkdir()
            directory.chmod(bits)
        with as_nobody():
            atomic_io.check_writable(open_ / "f", force=False)
            with pytest.raises(LLMError, match=r"cannot write .*closed/f: Permission denied"):
                atomic_io.check_writable(closed / "f", force=False)
        assert listing(closed) == listing(open_) == []


def test_stale_files_of_this_output_and_no_other_are_removed() -> None:
    ours, others = [".f[1].123.tmp", ".f[1].9.tmp"], [".f1.123.tmp", "f[1].123.tmp", ".f[1].lock", ".f[1].tmp.keep"]
    for name in (*ours, *others):
        Path(name).touch()
    Path(".f[1].77.tmp").mkdir()
    Path(".f[1].77.tmp/.tmpT3mpFL").touch()  # of the safetensors library
    atomic_io.remove_stale(Path("f[1]"))
    assert listing() == sorted(others)


def test_a_disk_without_enough_space_is_an_error_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(".").free
    atomic_io.check_space("m.safetensors", free // 2)
    with pytest.raises(
        LLMError, match=r"MB left, m\.safetensors needs .* MB; free some space, or name a file on another"
    ):
        atomic_io.check_space("m.safetensors", 100 * free)

    monkeypatch.setattr(shutil, "disk_usage", refuse(errno.ENOSYS))
    atomic_io.check_space("m.safetensors", 100 * free)


@platforms.posix
def test_a_limit_on_file_sizes_is_an_error_before_the_work() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n"
        "from llmcli.formats import atomic_io; atomic_io.check_space('m.safetensors', 4_000_000)\n"
        "atomic_io.check_space('m.safetensors', 6_000_000)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "LLMError: files are limited to 5.0 MB here (ulimit -f), m.safetensors needs 6.0 MB; raise" in run.stderr


def replace_files(text: str, count: int = 1) -> None:
    """Replace the directory "d" by one with `count` files."""
    with atomic_io.replace_directory(Path("d")) as directory:
        for i in range(count):
            atomic_io.write(directory / f"{i}", text.encode())


def refuse_once(number: int, after: int, real: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter(range(1000))
    return lambda *args, **options: (
        refuse(number)() if next(calls) == after else real(*args, **options)
    )  # fmt: skip


@pytest.mark.parametrize("name", ["mkdir", "write_bytes", "fsync", "replace"])
@pytest.mark.parametrize("old", [False, True])
def test_a_disk_that_fails_at_any_step_leaves_the_old_directory(monkeypatch, name: str, old: bool) -> None:
    if old:
        replace_files("old", 3)
    before = listing()
    owner = os if name in ("fsync", "replace") else Path
    for after in range(5):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse_once(errno.ENOSPC, after, getattr(owner, name)))
            try:
                replace_files("new", 2)
            except LLMError as error:
                assert re.match("cannot (write|flush) d", str(error)) and ".tmp" not in str(error)
                assert listing() == before and (not old or Path("d/2").read_text() == "old")
            else:
                assert after and listing("d") == ["0", "1"] and listing() == ["d"]
                break


def test_a_run_killed_between_the_two_renames_loses_nothing() -> None:
    replace_files("old")
    Path("d").rename(".d.123.old")
    Path(".d.123.tmp").mkdir()
    Path(".d.notes.old").write_text("mine")
    for name in (".d.v1.9.old", ".d.v1.9.tmp"):  # of another directory
        Path(name).mkdir()
    Path(".d.77.old").write_text("mine")
    others = [".d.77.old", ".d.notes.old", ".d.v1.9.old", ".d.v1.9.tmp"]
    atomic_io.remove_stale(Path("d"))
    assert listing() == [*others, "d"] and Path("d/0").read_text() == "old"
    Path(".d.124.old").mkdir()  # killed after them
    atomic_io.remove_stale(Path("d"))
    assert listing() == [*others, "d"] and Path("d/0").read_text() == "old"


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


@pytest.mark.parametrize("links", [True, False])
def test_a_file_moved_aside_gets_the_first_free_number(own_directory: Path, links: bool, monkeypatch) -> None:
    if not links:
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    path = Path("model.safetensors")
    Path("model-2.safetensors").write_text("somebody's")
    for number, text in ((1, "a"), (3, "b"), (4, "c")):
        path.write_text(text) if not path.exists() else atomic_io.write(path, text.encode())
        assert atomic_io.move_aside(path) == Path(f"model-{number}.safetensors")
        assert path.exists() == links
    assert contents(own_directory) == {
        **({"model.safetensors": "c"} if links else {}),
        "model-1.safetensors": "a", "model-2.safetensors": "somebody's", "model-3.safetensors": "b",
        "model-4.safetensors": "c",
    }  # fmt: skip


def test_a_file_that_cannot_be_moved_aside_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.EROFS))
    monkeypatch.setattr(Path, "rename", refuse(errno.EROFS))
    path = Path("model.safetensors")
    path.write_text("a")
    with pytest.raises(LLMError, match=r"cannot rename model.safetensors to model-1.safetensors: Read-only"):
        atomic_io.move_aside(path)
    assert path.read_text() == "a"
