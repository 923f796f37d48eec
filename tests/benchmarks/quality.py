"""Model quality for a time budget: held-out bits per byte of `llm train CORPUS --time T` with default options.

    python -m tests.benchmarks.quality CORPUS... [--budgets 20s,60s,142s] [--seeds 3] [--nanogpt SECONDS]

Each run is the command itself in a process of its own; `llm eval` then measures its model on the last tenth of the
corpus, which was held out. Prints for each budget: the figure of every seed and their median, the wall-clock time of
the command, its share of the budget, and the peak memory. For comparison: xz and PPM, primed with the first nine
tenths. --nanogpt also trains nanoGPT's recipe for a CPU (see nanogpt.py), for its own number of steps and for that many
seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from llmcli.cli.options import parse_duration
from tests.benchmarks import nanogpt


def llm(*arguments: str) -> tuple[str, float, float]:
    """Run the command; (its standard output, wall-clock seconds, peak memory in MB). Ends this program if it fails."""
    began = time.monotonic()
    command = [sys.executable, "-m", "llmcli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"llm {' '.join(arguments)} ended with status {status}")
    return text, time.monotonic() - began, usage.ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="+", type=Path)
    parser.add_argument("--budgets", default="20s,60s,142s", help="values of --time")
    parser.add_argument("--seeds", type=int, default=3, help="runs per budget")
    parser.add_argument("--nanogpt", type=float, default=0.0, metavar="SECONDS")
    options = parser.parse_args()
    for corpus in options.corpus:
        print(f"\n{corpus.name}, {corpus.stat().st_size:,} bytes")
        print("| budget | bits per byte | median | parameters | seconds | of the budget | MB |")
        print("|---|---|---|---|---|---|---|")
        baselines: list[dict[str, Any]] = []
        for budget in options.budgets.split(","):
            baselines = measure_budget(corpus, budget, options.seeds)
        for baseline in baselines:
            print(f"| {baseline['name']} | | {baseline['bits_per_byte']:.3f} | | | | |")
        for limit in (None, options.nanogpt) if options.nanogpt else ():
            bits, steps, seconds = nanogpt.measure(corpus.read_text("utf-8"), limit)
            print(f"| nanoGPT's recipe, {steps:,} steps | | {bits:.3f} | | {seconds:.1f} | | |", flush=True)


def measure_budget(corpus: Path, budget: str, seeds: int) -> list[dict[str, Any]]:
    """Print the row of a budget; the baselines of `llm eval`."""
    bits, seconds, megabytes = [], [], []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as directory:
            model = f"{directory}/model.safetensors"
            options = ["--time", budget, "--seed", str(seed), "-o", model, "--json", "-q"]
            output, *usage = llm("train", str(corpus), *options)
            scores = json.loads(llm("eval", str(corpus), "-m", model, "--json", "-q")[0])
        parameters = json.loads(output.splitlines()[-1])["parameters"]
        bits.append(scores["results"][0]["bits_per_byte"])
        seconds.append(usage[0])
        megabytes.append(usage[1])
    median = statistics.median(seconds)
    row = [
        budget, " ".join(f"{value:.3f}" for value in bits), f"**{statistics.median(bits):.3f}**", f"{parameters:,}",
        f"{median:.1f}", f"{median / parse_duration(budget):.1%}", f"{max(megabytes):.0f}",
    ]  # fmt: skip
    print(f"| {' | '.join(row)} |", flush=True)
    baselines: list[dict[str, Any]] = scores["baselines"]
    return baselines


if __name__ == "__main__":
    main()
