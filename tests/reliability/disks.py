"""Interrupted saves and failing disks: the old file or the new one remains, and the error is one line."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
from tests.reliability.runs import TIMEOUT, end, names, python, small_model, train

KILLED_SAVES = """
import os, pathlib, signal
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
model, place = load("new.safetensors"), pathlib.Path("model.safetensors")
old, new = (pathlib.Path(f"{name}.safetensors").read_bytes() for name in ("old", "new"))
count = 0
def deadly(name, last):
    real = getattr(os, name)
    def call(*words, **more):
        global count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*words, **more)
    setattr(os, name, call)
CALLS = ("open", "posix_fallocate", "write", "lseek", "fstat", "fsync", "fchmod", "replace", "close", "unlink")
for last in range(1, 200):
    place.write_bytes(old)
    if not (child := os.fork()):
        for name in CALLS:
            deadly(name, last)
        save("model.safetensors", model)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, {old: "old", new: "new"}.get(place.read_bytes(), "half"))
    if not status:
        break
"""


def killed_while_saving(where: Path, tries: int) -> list[str]:
    """R3: a kill at each system call of a save leaves the old file or the new one. With more than one try, strace
    injects the kills as well."""
    failures = []
    small_model(where / "old.safetensors")
    small_model(where / "new.safetensors")
    model = load(where / "new.safetensors")
    model.record |= {"steps": 1}
    save(where / "new.safetensors", model)
    old, new = ((where / f"{name}.safetensors").read_bytes() for name in ("old", "new"))
    process = python(where, KILLED_SAVES)
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    *killed, last = [line.split() for line in stdout.decode().splitlines()] or [["", ""]]
    if last != ["0", "new"] or process.returncode:
        failures.append(f"the last save: {last}, {stderr.decode()[-300:]}")
    failures += [
        f"{file} after {end} at call {i}" for i, (end, file) in enumerate(killed, 1) if end != "-9" or file == "half"
    ]
    if {file for _, file in killed} != {"old", "new"}:
        failures.append("no kill left the old file, or none the new one")
    return failures + (_killed_by_strace(where, old, new) if tries > 1 else [])


SAVE = """
from llmcli.formats import checkpoint, loading
checkpoint.save('model.safetensors', loading.load('new.safetensors'))
"""


def _killed_by_strace(where: Path, old: bytes, new: bytes) -> list[str]:
    """The same by strace, if it is installed."""
    failures = []
    for call in ("ftruncate", "write", "fsync", "rename") if shutil.which("strace") else ():
        for when in range(1, 50):
            (where / "model.safetensors").write_bytes(old)
            strace = ["strace", "-qq", "-o", os.devnull, "-e", f"inject={call}:signal=SIGKILL:when={when}"]
            run = subprocess.run([*strace, sys.executable, "-c", SAVE], cwd=where, capture_output=True)
            if (where / "model.safetensors").read_bytes() not in (old, new):
                failures.append(f"half a file after a kill at {call} {when}")
            if run.returncode == 0:
                break
            if run.returncode != -signal.SIGKILL:
                failures.append(f"{call} {when}: {run.returncode}, {run.stderr[-300:]!r}")
        if when == 1:
            failures.append(f"no {call} was killed")
    return failures


ORDER = """
import os, stat
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
calls = []
def record(name, what):
    real = getattr(os, name)
    setattr(os, name, lambda *words, **more: (calls.append(what(*words)), real(*words, **more))[1])
record("fsync", lambda fd: "flush directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "flush file")
record("replace", lambda *_: "rename")
save("model.safetensors", load("new.safetensors"))
print(*calls, sep=", ")
"""


def order_of_a_save(where: Path, tries: int) -> list[str]:
    """R4: the file is flushed and renamed, the directory flushed, in this order."""
    small_model(where / "new.safetensors")
    calls = python(where, ORDER).communicate(timeout=TIMEOUT)[0].decode().strip()
    return [] if calls == "flush file, rename, flush directory" else [f"in this order: {calls}"]


REFUSED_SAVE = """
import errno, os, resource, sys
from llmcli.formats import atomic_io
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
from llmcli.errors import LLMError
from llmcli.cli.terminal import console
call, code = sys.argv[1:3]
model = load("new.safetensors")
if call == "limit":
    sys.dont_write_bytecode = True  # or the limit cuts off .pyc files
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
elif call == "filled meanwhile":
    atomic_io.check_space = lambda *words: None
elif call != "disk":
    def refuse(*words, **more):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
    setattr(os, call, refuse)
try:
    save(sys.argv[3] + "model.safetensors", model)
except LLMError as error:
    console.fail(str(error))
    sys.exit(1)
"""


def refusing_disks(where: Path, tries: int) -> list[str]:
    """R5: no space, files too large, I/O errors at every step of a save: the old file stays, nothing is left behind,
    and the error is one line.

    The full disk is a real one of 64 kB if this user may mount one; otherwise only its error is simulated.
    """
    failures = []
    small_model(where / "new.safetensors")
    ways = [("limit", "EFBIG"), *((call, code) for call in ("fsync", "replace", "open") for code in ("EIO", "ENOSPC"))]
    for call, code in ways:
        (where / "model.safetensors").write_bytes(b"the old one")
        failures += _refused(where, where, call, code, "")
    disk = where / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        return failures
    try:
        (disk / "model.safetensors").write_bytes(b"the old one")
        (disk / "filler").write_bytes(b"x" * 40_000)
        for call in ("disk", "filled meanwhile"):
            failures += _refused(where, disk, call, "ENOSPC", "disk/")
        run = train(where, "--layers", "2", "--width", "64", steps=1, output="disk/large.safetensors")
        stderr = end(run)  # detected before the first step
        if run.returncode != 1 or b"MB left, disk/large.safetensors needs" not in stderr or b"step" in stderr:
            failures.append(f"a disk too small for a model: {run.returncode}, {stderr[-300:]!r}")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return failures


def _refused(where: Path, directory: Path, call: str, code: str, prefix: str) -> list[str]:
    before = names(directory)
    run = python(where, REFUSED_SAVE, call, code, prefix)
    stderr = end(run).decode()
    message = {"limit": "files are limited to", "disk": "the disk of"}.get(call, "cannot write")
    refused = run.returncode == 1 and stderr.startswith(f"error: {message}") and stderr.count("\n") == 1
    failures = [] if refused else [f"{call} {code}: {run.returncode}, {stderr[-300:]!r}"]
    if (directory / "model.safetensors").read_bytes() != b"the old one" or names(directory) != before:
        failures.append(f"{call} {code}: the old file was changed, or files were left behind: {names(directory)}")
    return failures


def kept_places(where: Path, tries: int) -> list[str]:
    """R10: mode, owner and symbolic link of an existing file are kept; the mode of a new file respects the umask."""
    failures = []
    small_model(where / "new.safetensors")
    model = load(where / "new.safetensors")
    old = where / "old.safetensors"
    old.write_bytes(b"old")
    old.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(old, 12345, 23456)
    before = old.stat()
    link = where / "link.safetensors"
    link.symlink_to("old.safetensors")
    save(link, model)
    after = old.stat()
    if (after.st_mode, after.st_uid, after.st_gid) != (before.st_mode, before.st_uid, before.st_gid):
        failures.append(f"{before} became {after}")
    if not link.is_symlink() or old.read_bytes() != (where / "new.safetensors").read_bytes():
        failures.append("the link was replaced, or what it points to was not")
    for mask in (0o022, 0o077, 0o002):
        mine = where / f"{mask}.safetensors"
        was = os.umask(mask)
        try:
            save(mine, model)
        finally:
            os.umask(was)
        if stat.S_IMODE(mine.stat().st_mode) != 0o666 & ~mask:
            failures.append(f"mask {mask:o} gave {mine.stat().st_mode:o}")
    return failures
