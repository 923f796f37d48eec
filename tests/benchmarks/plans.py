"""Whether the plan of a run is the same on a noisy machine.

    python -m tests.benchmarks.plans TEXT [--budget 142s] [--times 10]

The same command is planned several times while other processes, up to three at once, start and end at random. Then,
on the machine without them, the speed of each shape that was chosen is measured, and its expected loss at that speed
(cost_model.expected_loss, the part of the loss that training reduces) is compared with the lowest. Run it alone.
"""

import argparse
import contextlib
import json
import random
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from llmcli.cli.options import parse_duration
from llmcli.config import ModelConfig, TrainConfig
from llmcli.training import recipe
from llmcli.training.cost_model import CorpusSize, expected_loss
from llmcli.training.throughput import measure_throughput
from tests.benchmarks.llm_command import llm
from tests.benchmarks.load import keep_a_core_busy

BUSY_SECONDS = 0.3, 4.0  # of a process, and of the pause after it
PROCESSES = 3
MEASURED_SECONDS = 3.0


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


def plan(text: Path, budget: str) -> dict[str, str]:
    """The rows of the plan: name -> value, and "name reason" -> reason."""
    with tempfile.TemporaryDirectory() as directory:
        output = llm("train", str(text), "--time", budget, "--dry-run", "--json", directory=Path(directory)).output
    rows = {row["name"]: row for row in json.loads(output.splitlines()[0])["choices"]}
    reasons = {f"{name} reason": row["reason"] for name, row in rows.items()}
    return {name: row["value"] for name, row in rows.items()} | reasons


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--budget", default="142s")
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    text = options.text.resolve()
    planned = [plan(text, options.budget)]
    print("without noise:", planned[0]["architecture"], "|", planned[0]["training tokens reason"], flush=True)
    for i in range(options.times):
        with noise(i):
            planned.append(plan(text, options.budget))
        print("with noise:   ", planned[-1]["architecture"], "|", planned[-1]["training tokens reason"], flush=True)

    corpus = training_text(planned[0])
    seconds = recipe.TRAINING_SHARE * parse_duration(options.budget)
    losses: dict[str, float] = {}
    for rows in planned:
        if (name := _name(rows)) not in losses:
            model, settings = shape(rows)
            speed = measure_throughput(model, settings, MEASURED_SECONDS)
            losses[name] = expected_loss(model.parameters, seconds * speed, corpus)
            print(f"{name}: {speed:,.0f} tokens/s alone, expected loss {losses[name]:.4f}", flush=True)
    quiet, *noisy = [losses[_name(rows)] for rows in planned]
    print(f"plans with noise differ by at most {max(noisy) / min(noisy) - 1:.2%}", end=", ")
    print(f"from the plan without by {max(map(abs, (loss / quiet - 1 for loss in noisy))):.2%}")


if __name__ == "__main__":
    main()
