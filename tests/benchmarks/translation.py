"""Translations that a model has not seen: the share that it translates to the character, and the words it attends to.

    python -m tests.benchmarks.translation [--time 2m] [--seeds 3]
    python -m tests.benchmarks.translation --steps 1000

Trains with the command of docs/chat.md, `llm train examples/translate.tsv --time 2m`, and translates the sentences of
examples/translate-test.tsv, neither direction of which is in translate.tsv (temperature 0).
"""

import argparse
import tempfile
from pathlib import Path

from tests.benchmarks.answers import EXAMPLES, Pair, read_pairs, wrong_answers
from tests.benchmarks.quality import llm

DIRECTIONS = ("English to Japanese", "Japanese to English")
SHOWN = 10  # wrong translations of a direction that are printed


def direction(pair: Pair) -> str:
    return DIRECTIONS[0 if pair[0].isascii() else 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--time", default="2m", help="of each training")
    budget.add_argument("--steps", help="instead of a time")
    parser.add_argument("--seeds", type=int, default=1, help="runs")
    parser.add_argument("--keep", type=Path, help="directory for the models")
    options = parser.parse_args()
    length = ["--steps", options.steps] if options.steps else ["--time", options.time]
    print("| seed | direction | sentences | exact | training seconds |\n|---|---|---|---|---|")
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as directory:
            model = (options.keep or Path(directory)) / f"translate-{seed}.safetensors"
            measure(model, seed, length)


def measure(model: Path, seed: int, length: list[str]) -> None:
    """Print the rows of a seed, and below them wrong translations."""
    training = str(EXAMPLES / "translate.tsv")
    _, seconds, _ = llm("train", training, *length, "--seed", str(seed), "-o", str(model), "-q")
    pairs = read_pairs(EXAMPLES / "translate-test.tsv")
    for name in DIRECTIONS:
        asked = [pair for pair in pairs if direction(pair) == name]
        wrong = list(wrong_answers(model, asked))
        exact = len(asked) - len(wrong)
        print(f"| {seed} | {name} | {len(asked)} | {exact} ({exact / len(asked):.1%}) | {seconds:.0f} |", flush=True)
        for question, answer, expected in wrong[:SHOWN]:
            print(f"    {question} -> {answer!r}, expected {expected!r}")


if __name__ == "__main__":
    main()
