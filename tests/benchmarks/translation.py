"""Translations that a model has not seen: the share that it translates exactly.

    python -m tests.benchmarks.translation [--time 2m] [--seeds 0 1 2]
    python -m tests.benchmarks.translation --steps 1000

Trains with the command of docs/chat.md, `llm train examples/translate.tsv --time 2m`, and translates the sentences of
examples/translate-test.tsv, neither direction of which is in translate.tsv (temperature 0).
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType

from tests.benchmarks.answers import EXAMPLES, Pair, wrong_answers
from tests.benchmarks.llm_command import llm

DIRECTIONS = ("English to Japanese", "Japanese to English")
SHOWN = 10  # wrong translations of a direction that are printed


def load_grammar() -> ModuleType:
    """examples/make_translations.py"""
    spec = importlib.util.spec_from_file_location("make_translations", EXAMPLES / "make_translations.py")
    assert spec is not None and spec.loader is not None
    grammar = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(grammar)
    return grammar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--time", default="2m", help="of each training")
    budget.add_argument("--steps", help="instead of a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run for each")
    parser.add_argument("--keep", type=Path, help="directory for the models")
    options = parser.parse_args()
    length = ["--steps", options.steps] if options.steps else ["--time", options.time]
    print("| seed | direction | sentences | exact | seconds |\n|---|---|---|---|---|")
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as directory:
            model = (options.keep or Path(directory)) / f"translate-{seed}.safetensors"
            training = str(EXAMPLES / "translate.tsv")
            _, seconds, _ = llm("train", training, *length, "--seed", str(seed), "-o", str(model), "-q")
            for index, name in enumerate(DIRECTIONS):
                measure(model, index, f"| {seed} | {name}", f"{seconds:.0f} |")


def measure(model: Path, direction: int, start: str, end: str) -> None:
    """Print the row of a direction, from `start` to `end`, and below it wrong translations."""
    grammar = load_grammar()
    sentences = grammar.split(grammar.sentences())[1]
    pairs: list[Pair] = [one.texts()[:: 1 - 2 * direction] for one in sentences]
    wrong = list(wrong_answers(model, pairs))
    exact = len(pairs) - len(wrong)
    print(f"{start} | {len(pairs)} | {exact} ({exact / len(pairs):.1%}) | {end}", flush=True)
    for question, answer, expected in wrong[:SHOWN]:
        print(f"    {question} -> {answer!r}, expected {expected!r}")


if __name__ == "__main__":
    main()
