"""How another busy process affects training: `llm train CORPUS --time T` while one is busy never, throughout, or in one
half of the time.

    python -m tests.benchmarks.busy CORPUS [--time 60s] [--seeds 1] [options of llm train]

Each run is the command itself in a process of its own; the other process is an endless loop in Python. Prints for each
run: the number of parameters, training tokens per second, their ratio to those of the first run, the wall-clock time of
the command and its share of T, the held-out bits per byte by `llm eval`, and the changes of regularization (step,
expected epochs, dropout, BPE-dropout).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llmcli.cli.options import parse_duration
from tests.benchmarks.quality import llm

# when the other process is busy: from and until, as shares of the time budget
SCENARIOS = {"never": (1.0, 1.0), "throughout": (0.0, 1.0), "first half": (0.0, 0.5), "second half": (0.5, 1.0)}
EXTRA_SECONDS = 30  # after the budget, in which the other process is still busy if it is at the end


@dataclass(frozen=True)
class Run:
    """The result of one `llm train`."""

    parameters: int
    tokens_per_second: float
    seconds: float  # of the whole command
    bits_per_byte: float
    regularization: list[list[float]]


@contextmanager
def busy(start: float, end: float) -> Iterator[None]:
    """A process that keeps one core busy from `start` to `end` seconds from now."""
    finished = threading.Event()

    def run() -> None:
        if end <= start or finished.wait(start):
            return
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
            finished.wait(end - start)
            process.kill()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def train(corpus: str, scenario: str, budget: float, arguments: list[str]) -> Run:
    start, end = SCENARIOS[scenario]
    with tempfile.TemporaryDirectory() as directory:
        model = f"{directory}/model.safetensors"
        with busy(start * budget, end * budget + EXTRA_SECONDS * (end == 1.0 > start)):
            began = time.monotonic()
            llm("train", corpus, "-o", model, "-q", *arguments)
            seconds = time.monotonic() - began
        info = json.loads(llm("inspect", model, "--json")[0])
        scores = json.loads(llm("eval", corpus, "-m", model, "--json", "-q")[0])
    record = info["training"]
    return Run(
        info["parameters"], record["clock"]["tokens_per_second"], seconds, scores["results"][0]["bits_per_byte"],
        record.get("regularization", []),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--time", default="60s", help="time budget of each run")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each scenario")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="when the other process is busy")
    options, others = parser.parse_known_args()
    budget = parse_duration(options.time)
    first_speed = 0.0
    print(
        "| other process busy | parameters | tokens/s | relative speed | seconds | of the budget | bits per byte "
        "| changes of regularization |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for scenario in options.scenarios.split(","):
        for seed in range(options.seeds):
            run = train(options.corpus, scenario, budget, ["--time", options.time, "--seed", str(seed), *others])
            first_speed = first_speed or run.tokens_per_second
            row = [
                scenario, f"{run.parameters:,}", f"{run.tokens_per_second:,.0f}",
                f"{run.tokens_per_second / first_speed:.0%}", f"{run.seconds:.1f}", f"{run.seconds / budget:.1%}",
                f"{run.bits_per_byte:.3f}", str(run.regularization),
            ]  # fmt: skip
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
