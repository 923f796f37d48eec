"""Runs of the command in processes of their own, that write down after every step what they need to go on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

TEXT = "".join(f"{a} likes {b}.\n" for a in ("Anna", "Ben", "りんご") for b in ("tea", "milk", "rice", "bread🍎")) * 30
OPTIONS = ["--batch-tokens", "512", "--context", "32", "--threads", "1", "--dropout", "0.2"]
BESIDE = "model.resume.safetensors"
EAGER = (
    "import llmcli.resume as t; t.FIRST_KEPT = t.MOST_APART = t.KEPT_SHARE = 0.0; from llmcli.cli import main; main()"
)


def python(where: Path, code: str, *words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=where, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def train(where: Path, *, steps: int, output: str = "model.safetensors") -> "subprocess.Popen[bytes]":
    """Learns from TEXT in c.txt."""
    (where / "c.txt").write_text(TEXT, "utf-8")
    return python(where, EAGER, "train", "c.txt", *OPTIONS, "--steps", str(steps), "-o", output, "-q")


def kept(where: Path) -> int:
    """When the run last wrote itself down; 0 if it never did."""
    beside = where / BESIDE
    return beside.stat().st_mtime_ns if beside.exists() else 0


def wait_until_kept(process: "subprocess.Popen[bytes]", where: Path, before: int = 0) -> None:
    """Until the run has written itself down anew, or has ended."""
    for _ in range(3000):
        if kept(where) not in (0, before) or process.poll() is not None:
            return
        time.sleep(0.01)


def end(process: "subprocess.Popen[bytes]", how: signal.Signals | None = None) -> bytes:
    """Send the signal, wait; what it said on stderr."""
    if how is not None:
        process.send_signal(how)
    return process.communicate(timeout=300)[1]


def names(where: Path) -> list[str]:
    return sorted(path.name for path in where.iterdir())
