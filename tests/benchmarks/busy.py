"""What another busy program costs: `llm train CORPUS --time T` alone, beside one, and beside one half of the time.

    python -m tests.benchmarks.busy CORPUS [--time 60s] [--seeds 1] [options of llm train]

Each run is the command itself in a process of its own; the other program is a loop in Python. Printed for each run: the
parameters, the tokens per second in training, their share of those of the run alone, the time that the command took and
its share of T, the held-out bits per byte by `llm eval`, and the changes of regularization (step, expected epochs,
dropout, BPE-dropout).
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
from pathlib import Path

from llmcli.cli.options import parse_duration
from tests.benchmarks.quality import llm

SCENARIOS = {"alone": (1.0, 1.0), "beside one": (0.0, 1.0), "first half": (0.0, 0.5), "second half": (0.5, 1.0)}


@contextmanager
def busy(start: float, end: float) -> Iterator[None]:
    """A process that does nothing but work, from `start` to `end` seconds from now."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--time", default="60s")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    options, others = parser.parse_known_args()
    budget = parse_duration(options.time)
    alone = 0.0
    print("| busy | parameters | tokens/s | of alone | seconds | of the budget | bits per byte | changes |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.scenarios.split(","):
        start, end = SCENARIOS[name]
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as directory:
                model = f"{directory}/model.safetensors"
                arguments = ["--time", options.time, "--seed", str(seed), "-o", model, "-q", *others]
                with busy(start * budget, end * budget + 30 * (end == 1.0 > start)):
                    began = time.monotonic()
                    llm("train", str(options.corpus), *arguments)
                    took = time.monotonic() - began
                found = json.loads(llm("inspect", model, "--json")[0])
                record = found["training"]
                bits = json.loads(llm("eval", str(options.corpus), "-m", model, "--json", "-q")[0])
            speed = record["clock"]["tokens_per_second"]
            alone = alone or speed
            row = [
                name, f"{found['parameters']:,}", f"{speed:,.0f}", f"{speed / alone:.0%}",
                f"{took:.1f}", f"{took / budget:.1%}",
                f"{bits['results'][0]['bits_per_byte']:.3f}", str(record.get("regularization", [])),
            ]  # fmt: skip
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
