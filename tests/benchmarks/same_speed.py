"""Whether two source trees are equally fast: both measured in turn, in one run.

    python -m tests.benchmarks.same_speed BEFORE AFTER [--rounds 7] [--seconds 15] [--threads N] [--only NAME ...]

BEFORE and AFTER are source trees (the directories that hold `llmcli`). Each round measures everything once in each
tree, in alternating order, after a round that only warms up. Printed are the medians, the ratio of the medians, and the
quartiles of the ratio within a round. Run it on an otherwise idle machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.benchmarks import trees

MODEL = ["--layers", "3", "--width", "128", "--heads", "2", "--context", "256"]
DECODED = 240  # tokens
WARM_UP = 0.3  # share of the steps of a training run that is not counted
LEAST_STEPS = 20  # of a training run, however long they take


def seconds(tree: Path, directory: Path, *arguments: str) -> float:
    """How long `llm` takes, start and end of the process included."""
    began = time.perf_counter()
    trees.run(tree, directory, *arguments)
    return time.perf_counter() - began


def import_seconds(tree: Path, directory: Path) -> float:
    began = time.perf_counter()
    command = [sys.executable, "-c", "import llmcli"]
    subprocess.run(command, cwd=directory, env=trees.environment(tree), check=True)
    return time.perf_counter() - began


def decoding_speed(tree: Path, directory: Path) -> float:
    """Tokens a second, the first one not counted."""
    options = ["-n", str(DECODED), "-t", "0", "--json"]
    return float(json.loads(trees.run(tree, directory, "generate", "The old man", *options))["tokens_per_second"])


def training_speed(tree: Path, directory: Path, run_seconds: float, threads: int) -> float:
    """Tokens a second of the steps between WARM_UP of a run and its end, from its events."""
    options = ["--steps", "100000", "--tokenizer", "char", *MODEL, "--batch-tokens", "1024", "--seed", "1", "--json"]
    options += ["--threads", str(threads)]
    steps: list[tuple[float, int]] = []  # seconds, tokens
    with tempfile.TemporaryDirectory() as outputs:
        process = trees.start(tree, directory, "train", "text.txt", "-o", f"{outputs}/t.safetensors", *options)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "step":
                    steps.append((event["seconds"], event["tokens"]))
                    if steps[-1][0] - steps[0][0] >= run_seconds and len(steps) >= LEAST_STEPS:
                        break
        finally:
            process.kill()
            _, stderr = process.communicate()
    if len(steps) < LEAST_STEPS:
        sys.exit(f"{tree}: training ended after {len(steps)} steps: {stderr}")
    start = int(WARM_UP * len(steps))
    return (steps[-1][1] - steps[start][1]) / (steps[-1][0] - steps[start][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each training run (default 15)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of training (default: all cores)")
    names = ("import", "help", "generate", "decoding", "training")
    parser.add_argument("--only", nargs="+", choices=names, default=list(names), metavar="NAME", help=", ".join(names))
    options = parser.parse_args()
    sources = options.before, options.after
    trees.check(sources)
    measures: dict[str, tuple[str, Callable[[Path, Path], float]]] = {
        "import": ('python -c "import llmcli", ms', lambda *where: 1e3 * import_seconds(*where)),
        "help": ("llm --help, ms", lambda *where: 1e3 * seconds(*where, "--help")),
        "generate": ("cold llm generate -n 1, ms", lambda *where: 1e3 * seconds(*where, "generate", "The", "-n", "1")),
        "decoding": ("decoding, tokens/s", decoding_speed),
        "training": (
            "training, tokens/s",
            partial(training_speed, run_seconds=options.seconds, threads=options.threads),
        ),
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in options.only}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "text.txt").write_text(trees.text(4_000), "utf-8")
        trees.run(options.before, directory, "train", "text.txt", "--steps", "5", *MODEL)
        for number in range(options.rounds + 1):
            for which in options.only:
                if number == 0 and which == "training":
                    continue  # it warms up in each run
                order = (0, 1) if number % 2 else (1, 0)
                figures = {i: measures[which][1](sources[i], directory) for i in order}
                if number:
                    results[which].append((figures[0], figures[1]))
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    print("| | before | after | after / before | within a round |\n|---|---|---|---|---|")
    for which, rounds in results.items():
        before, after = (statistics.median(figures) for figures in zip(*rounds, strict=True))
        ratios = [b / a for a, b in rounds]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        print(
            f"| {measures[which][0]} | {before:,.1f} | {after:,.1f} | {after / before:.3f} | {low:.3f} to {high:.3f} |"
        )


if __name__ == "__main__":
    main()
