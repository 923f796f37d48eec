"""Whether the plan of a run is the same each time, on a quiet machine, beside a busy process, and on a noisy one.

    python -m tests.benchmarks.plans TEXT [TREE ...] [--budget 142s] [--times 10] [--beside nothing busy noise]

The same command is started several times by each source tree (default: this one), in turn, with the same noise for
each. It is ended once the size of its model is final, at FINAL of the run, or with --plan-only after the plan. "noise":
up to three other processes start and end at random. Then, on the machine without them, the speed of each shape that was
chosen is measured, and its expected loss at that speed (cost_model.expected_loss, the part of the loss that training
reduces) is compared with the lowest. Run it alone.
"""

import argparse
import contextlib
import json
import random
import re
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch

from llmcli.cli.options import parse_duration
from llmcli.config import ModelConfig, TrainConfig
from llmcli.training.planning import recipe
from llmcli.training.planning.cost_model import CorpusSize, expected_loss
from llmcli.training.step.throughput import measure_throughput
from tests.benchmarks import trees
from tests.benchmarks.llm_command import ROOT
from tests.benchmarks.load import BUSY, NOTHING, beside, keep_a_core_busy

BUSY_SECONDS = 0.3, 4.0  # of a process, and of the pause after it
PROCESSES = 3
MEASURED_SECONDS = 3.0
NOISE = "noise"
FINAL = 0.17  # progress of a run after which the size of its model does not change any more


@contextlib.contextmanager
def noise(seed: int) -> Iterator[None]:
    """Inside, up to PROCESSES other processes are busy, each now and then."""
    finished = threading.Event()

    def run(rng: random.Random) -> None:
        while not finished.wait(rng.uniform(*BUSY_SECONDS)):
            keep_a_core_busy(finished, rng.uniform(*BUSY_SECONDS))

    threads = [threading.Thread(target=run, args=[random.Random(f"{seed} {i}")]) for i in range(PROCESSES)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        finished.set()
        for thread in threads:
            thread.join()


class Started(NamedTuple):
    """The start of a run."""

    rows: dict[str, str]  # of its last plan: name -> value, and "name reason" -> reason
    seconds: float  # from the start of the command to its first plan
    restarts: int


def start(tree: Path, text: Path, budget: str, *, plan_only: bool) -> Started:
    """Start a run, and end it after its plan, or once that is final."""
    options = ["--time", budget, "--json", *(["--dry-run"] if plan_only else [])]
    plans: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as directory:
        began, seconds = time.monotonic(), 0.0
        process = trees.start(tree, Path(directory), "train", str(text), "-o", "m.safetensors", *options)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "plan":
                    seconds = seconds or time.monotonic() - began
                    plans.append(_rows(event["choices"]))
                elif event.get("progress", 0.0) >= FINAL:
                    break
        finally:
            process.kill()
            _, stderr = process.communicate()
    if not plans:
        raise SystemExit(f"{tree}: no plan: {stderr}")
    return Started(plans[-1], seconds, len(plans) - 1)


def _rows(choices: list[dict[str, str]]) -> dict[str, str]:
    reasons = {f"{row['name']} reason": row["reason"] for row in choices}
    return {row["name"]: row["value"] for row in choices} | reasons


def numbers(value: str) -> list[int]:
    """
    >>> numbers("3 layers, hidden size 192, 3 heads"), numbers("about 2,277,141")
    ([3, 192, 3], [2277141])
    """
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", value)]


def shape(rows: dict[str, str]) -> tuple[ModelConfig, TrainConfig]:
    """The model and the batches of a plan; the rest does not matter for the speed."""
    layers, width, heads = numbers(rows["architecture"])[:3]
    batch_size, context = numbers(rows["batch size"])
    vocabulary, tied = numbers(rows["vocabulary"])[0], rows["tied embeddings"] == "yes"
    mlp = next(
        size for size in range(32, 8 * width, 32)
        if _model(vocabulary, width, size, layers, heads, context, tied).parameters == numbers(rows["model size"])[0]
    )  # fmt: skip
    model = _model(vocabulary, width, mlp, layers, heads, context, tied)
    dtype = "bfloat16" if "bfloat16" in rows["device"] else "float32"
    settings = TrainConfig(
        steps=10_000, context=context, batch_size=batch_size, dtype=dtype, threads=torch.get_num_threads(),
        induction="initialization" in rows,
    )  # fmt: skip
    return model, settings


def training_text(rows: dict[str, str]) -> CorpusSize:
    """Its size, as the reasons of a plan with a time budget state it: bytes, and training tokens per epoch."""
    [train_bytes] = numbers(rows["corpus reason"].split(" for training")[0])
    [epochs] = map(float, re.findall(r"about ([\d.]+) epochs", rows["training tokens reason"]))
    return CorpusSize(round(numbers(rows["training tokens"])[0] / epochs), train_bytes)


def _model(vocabulary: int, width: int, mlp: int, layers: int, heads: int, context: int, tied: bool) -> ModelConfig:
    return ModelConfig(
        vocabulary, width, mlp, layers, heads, heads, width // heads, context, tie_word_embeddings=tied
    )  # fmt: skip


def _name(rows: dict[str, str]) -> str:
    return f"{rows['architecture']}, batches of {rows['batch size']}"


def _condition(name: str, seed: int) -> AbstractContextManager[None]:
    """What else the machine does."""
    return noise(seed) if name == NOISE else beside(name, 1e4)


def _expected_losses(planned: list[dict[str, str]], budget: str) -> dict[str, float]:
    """Of each shape in these plans, at its speed on the machine now."""
    corpus, seconds = training_text(planned[0]), recipe.TRAINING_SHARE * parse_duration(budget)
    losses: dict[str, float] = {}
    for rows in planned:
        if (name := _name(rows)) not in losses:
            model, settings = shape(rows)
            speed = measure_throughput(model, settings, MEASURED_SECONDS).mean
            losses[name] = expected_loss(model.parameters, seconds * speed, corpus)
            print(f"{name}: {speed:,.0f} tokens/s alone, expected loss {losses[name]:.4f}", flush=True)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("trees", type=Path, nargs="*", default=[ROOT], metavar="TREE")
    parser.add_argument("--budget", default="142s")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--beside", nargs="+", choices=(NOTHING, BUSY, NOISE), default=[NOTHING, BUSY])
    parser.add_argument("--plan-only", action="store_true")
    options = parser.parse_args()
    trees.check(options.trees)
    results: dict[tuple[str, Path], list[Started]] = {}
    for condition in options.beside:
        for i in range(options.times):
            for tree in options.trees if i % 2 else reversed(options.trees):
                with _condition(condition, i):
                    started = start(tree, options.text.resolve(), options.budget, plan_only=options.plan_only)
                results.setdefault((condition, tree), []).append(started)
                speed = started.rows["training tokens reason"]
                print(f"beside {condition}, {tree}: {_name(started.rows)} | {speed}", flush=True)
    losses = _expected_losses([one.rows for runs in results.values() for one in runs], options.budget)
    print("| beside | tree | parameters: plans | restarts | above the lowest expected loss, mean, most | planning, s |")
    print("|---|---|---|---|---|---|")
    for (condition, tree), runs in results.items():
        sizes = Counter(one.rows["model size"].split()[0] for one in runs)
        above = [losses[_name(one.rows)] / min(losses.values()) - 1 for one in runs]
        seconds = statistics.median(one.seconds for one in runs)
        print(
            f"| {condition} | {tree} | {'; '.join(f'{size}: {count}' for size, count in sizes.most_common())} | "
            f"{sum(one.restarts for one in runs)} | {statistics.fmean(above):.1%}, {max(above):.1%} | {seconds:.1f} |"
        )


if __name__ == "__main__":
    main()
