"""How good a model a time can buy: held-out bits per byte of `llm train CORPUS --time T`, all else by default.

    python -m tests.benchmarks.quality CORPUS... [--budgets 20s,60s,142s] [--seeds 3] [--nanogpt SECONDS]

Each run is the command itself in a process of its own; its model is then measured by `llm eval` on the last tenth of
the corpus, which it did not learn from. Printed for each budget: every seed's figure, the median, the time that the
command took from start to end, its share of the budget and the most memory; and beside them xz and PPM with the first
nine tenths as their past. --nanogpt also trains nanoGPT's recipe for a CPU (see nanogpt.py), as it is and for so long.
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

from llmcli.cli.options import parse_duration
from tests.benchmarks import nanogpt


def llm(*arguments: str) -> tuple[str, float, float]:
    """(stdout, seconds, megabytes at most)"""
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
    parser.add_argument("--budgets", default="20s,60s,142s")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nanogpt", type=float, default=0.0, metavar="SECONDS")
    options = parser.parse_args()
    budgets = options.budgets.split(",")
    for corpus in options.corpus:
        print(f"\n{corpus.name}, {corpus.stat().st_size:,} bytes")
        print("| budget | bits per byte | median | parameters | seconds | of the budget | MB |")
        print("|---|---|---|---|---|---|---|")
        baselines: list[dict] = []
        for budget in budgets:
            figures, took, memory, parameters = [], [], [], 0
            for seed in range(options.seeds):
                with tempfile.TemporaryDirectory() as directory:
                    model = f"{directory}/model.safetensors"
                    out, spent, most = llm(
                        "train", str(corpus), "--time", budget, "--seed", str(seed), "-o", model, "--json", "-q"
                    )
                    parameters = json.loads(out.splitlines()[-1])["parameters"]
                    found = json.loads(llm("eval", str(corpus), "-m", model, "--json", "-q")[0])
                figures.append(found["results"][0]["bits_per_byte"])
                baselines = found["baselines"]
                took.append(spent)
                memory.append(most)
            middle, usual = statistics.median(figures), statistics.median(took)
            row = [
                budget, " ".join(f"{figure:.3f}" for figure in figures), f"**{middle:.3f}**", f"{parameters:,}",
                f"{usual:.1f}", f"{usual / parse_duration(budget):.1%}", f"{max(memory):.0f}",
            ]  # fmt: skip
            print(f"| {' | '.join(row)} |", flush=True)
        for baseline in baselines:
            print(f"| {baseline['name']} | | {baseline['bits_per_byte']:.3f} | | | | |")
        for limit in (None, options.nanogpt) if options.nanogpt else ():
            figure, steps, spent = nanogpt.measure(corpus.read_text("utf-8"), limit)
            print(f"| nanoGPT's recipe, {steps:,} steps | | {figure:.3f} | | {spent:.1f} | | |", flush=True)


if __name__ == "__main__":
    main()
