"""`llm train` on a corpus that is larger than memory: resident memory from its start to its end.

    python -m tests.benchmarks.big_corpus TEXT [--out DIRECTORY] [--interrupt SECONDS] -- --steps 20 --layers 2

TEXT is a file or a directory; what follows `--` is passed on to `llm train`. Every half second the resident memory of
all processes of the run is added up, from /proc: "own" is what only they hold (RssAnon and RssShmem), "all" also has
the pages of files that they mapped, which the system takes away when memory is short. Prints both at their highest,
when the notes and the first step came, and the files at the end. Ctrl-C, or `--interrupt`, ends the run as Ctrl-C in a
terminal does.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

SECONDS_BETWEEN_SAMPLES = 0.5


@dataclass
class Peaks:
    """The highest sums over all processes, in bytes, and when they were."""

    own: int = 0
    all: int = 0
    own_at: float = 0.0
    all_at: float = 0.0

    def add(self, seconds: float, own: int, whole: int) -> None:
        if own > self.own:
            self.own = own
            self.own_at = seconds
        if whole > self.all:
            self.all = whole
            self.all_at = seconds


def processes_of(parent: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [parent]
    for process in found:
        found += children.get(process, [])
    return found


def resident(process: int) -> tuple[int, int]:
    """(memory that only the process holds, the same with the pages of files), in bytes; zeros if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return 0, 0
    sizes = {
        name: int(value.split()[0]) * 1024
        for name, _, value in (line.partition(":") for line in lines)
        if name.startswith("Rss")
    }
    own = sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)
    return own, own + sizes.get("RssFile", 0)


def watch(process: subprocess.Popen[str], started: float, peaks: Peaks) -> None:
    while process.poll() is None:
        sums = [sum(part) for part in zip(*map(resident, processes_of(process.pid)), strict=True)]
        peaks.add(time.monotonic() - started, *sums)
        time.sleep(SECONDS_BETWEEN_SAMPLES)


def show(stream_name: str, lines: object, started: float, first: dict[str, float]) -> None:
    """Print what the run says, with the seconds since its start; of its steps the first one."""
    for line in lines:  # type: ignore[attr-defined]
        seconds = time.monotonic() - started
        event = json.loads(line).get("event") if stream_name == "stdout" else None
        if event == "step" and "step" in first:
            continue
        first.setdefault(event or "note", seconds)
        text = line.rstrip() if stream_name == "stderr" or event not in ("plan", "done") else event
        print(f"{seconds:8.1f} s  {text[:300]}", flush=True)


def report(exit_code: int, seconds: float, first: dict[str, float], peaks: Peaks) -> None:
    step = f"{first['step']:.1f} s" if "step" in first else "none"
    print(f"exit code {exit_code} after {seconds:.1f} s; first step: {step}")
    print(
        f"peak of own memory {peaks.own / 1e6:.0f} MB at {peaks.own_at:.0f} s; "
        f"with mapped files {peaks.all / 1e6:.0f} MB at {peaks.all_at:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text")
    parser.add_argument("--out", type=Path, default=Path("big-corpus"))
    parser.add_argument("--interrupt", type=float, help="seconds after which to press Ctrl-C")
    separator = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:separator])
    options.out.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "llmcli", "train", options.text, "-o", str(options.out / "model.safetensors")),
        *("--json", *sys.argv[separator + 1 :]),
    ]
    print(" ".join(command[2:]), flush=True)
    started, peaks, first = time.monotonic(), Peaks(), dict[str, float]()
    signal.signal(signal.SIGINT, lambda *_: os.killpg(run.pid, signal.SIGINT))  # before, or a shell's "&" ignores it
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
    )
    if options.interrupt:
        threading.Timer(options.interrupt, lambda: os.killpg(run.pid, signal.SIGINT)).start()
    readers = [
        threading.Thread(target=show, args=(name, getattr(run, name), started, first), daemon=True)
        for name in ("stdout", "stderr")
    ]
    for reader in readers:
        reader.start()
    watch(run, started, peaks)
    for reader in readers:
        reader.join()
    report(run.returncode, time.monotonic() - started, first, peaks)
    for path in sorted(options.out.iterdir()):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
