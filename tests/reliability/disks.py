"""Interrupted saves and failing disks: the old file or the new one remains, and the error is one line."""

import subprocess
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
    """R3: a kill at each system call of a save leaves the old file or the new one."""
    failures = []
    small_model(where / "old.safetensors")
    small_model(where / "new.safetensors")
    model = load(where / "new.safetensors")
    model.record |= {"steps": 1}
    save(where / "new.safetensors", model)
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
    return failures


REFUSED_SAVE = """
import sys
from llmcli.formats import atomic_io
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
from llmcli.errors import LLMError
from llmcli.cli.terminal import console
if sys.argv[1] == "filled meanwhile":
    atomic_io.check_space = lambda *words: None
try:
    save("disk/model.safetensors", load("new.safetensors"))
except LLMError as error:
    console.fail(str(error))
    sys.exit(1)
"""


def refusing_disks(where: Path, tries: int) -> list[str]:
    """R5: a disk of 64 kB, if this user may mount one: the old file stays, nothing is left behind, and the error is one
    line. tests/formats/test_atomic_io.py has an error at each step of a save."""
    failures = []
    small_model(where / "new.safetensors")
    disk = where / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        return []
    try:
        (disk / "model.safetensors").write_bytes(b"the old one")
        (disk / "filler").write_bytes(b"x" * 40_000)
        before = names(disk)
        for when, message in (("already full", "the disk of"), ("filled meanwhile", "cannot write")):
            run = python(where, REFUSED_SAVE, when)
            stderr = end(run).decode()
            if run.returncode != 1 or not stderr.startswith(f"error: {message}") or stderr.count("\n") != 1:
                failures.append(f"{when}: {run.returncode}, {stderr[-300:]!r}")
            if (disk / "model.safetensors").read_bytes() != b"the old one" or names(disk) != before:
                failures.append(f"{when}: the old file was changed, or files were left behind: {names(disk)}")
        run = train(where, "--layers", "2", "--width", "64", steps=1, output="disk/large.safetensors")
        stderr = end(run).decode()  # detected before the first step
        if run.returncode != 1 or "MB left, disk/large.safetensors needs" not in stderr or "step" in stderr:
            failures.append(f"a disk too small for a model: {run.returncode}, {stderr[-300:]!r}")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return failures
