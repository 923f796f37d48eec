"""Translations that a model has not seen: the share that it translates to the character, and the words it attends to.

    python -m tests.benchmarks.translation [--time 2m] [--seeds 0 1 2]
    python -m tests.benchmarks.translation --steps 1000

Trains with the command of docs/chat.md, `llm train examples/translate.tsv --time 2m`, and translates the sentences of
examples/translate-test.tsv, neither direction of which is in translate.tsv (temperature 0). The alignment is that of
`llm explain --prompt-pair`, with the expected answer: a word of it is aligned if the word of the prompt that it attends
to most belongs to the same part of the sentence, as the grammar says. Chance: the same for any word of the prompt.
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from llmcli.analysis.alignment import Alignment, Word, align
from llmcli.data.conversations.messages import Message
from llmcli.formats.checkpoint import load
from llmcli.formats.loading import open_chat_template, open_tokenizer
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.benchmarks.answers import EXAMPLES, Pair, wrong_answers
from tests.benchmarks.llm_command import llm

DIRECTIONS = ("English to Japanese", "Japanese to English")
SHOWN = 10  # wrong translations of a direction that are printed
Side = list[tuple[str, str]]  # a sentence in one language: (text, part of the sentence)


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
    print(
        "| seed | direction | sentences | exact | words aligned | by chance | seconds |\n|---|---|---|---|---|---|---|"
    )
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
    sides: list[tuple[Side, Side]] = [(one.english, one.japanese)[:: 1 - 2 * direction] for one in sentences]
    pairs: list[Pair] = [one.texts()[:: 1 - 2 * direction] for one in sentences]
    wrong = list(wrong_answers(model, pairs))
    exact = len(pairs) - len(wrong)
    aligned, chance = aligned_words(model, pairs, sides)
    print(
        f"{start} | {len(pairs)} | {exact} ({exact / len(pairs):.1%}) | {aligned:.1%} | {chance:.1%} | {end}",
        flush=True,
    )
    for question, answer, expected in wrong[:SHOWN]:
        print(f"    {question} -> {answer!r}, expected {expected!r}")


# ---- alignment


def aligned_words(model: Path, pairs: list[Pair], sides: list[tuple[Side, Side]]) -> tuple[float, float]:
    """(share of the answers' words that attend most to a word of the same part of the sentence, the same by chance)"""
    checkpoint = load(model)
    runtime, tokenizer = NumpyRuntime(checkpoint), open_tokenizer(checkpoint)
    template = open_chat_template(checkpoint, tokenizer)
    assert template is not None
    hits: list[NDArray[np.floating]] = []
    for (prompt, answer), (prompt_side, answer_side) in zip(pairs, sides, strict=True):
        ids = template.encode([Message("user", prompt)], add_generation_prompt=True)
        alignment = align(runtime, tokenizer, prompt, ids, tokenizer.encode(answer))
        hits.append(compare(alignment, parts(alignment.prompt, prompt_side), parts(alignment.answer, answer_side)))
    found, chance = np.concatenate(hits).mean(0).tolist()
    return found, chance


def compare(alignment: Alignment, prompt: list[set[str]], answer: list[set[str]]) -> NDArray[np.floating]:
    """For each word of the answer, but for the full stop: (whether it is aligned, the share of words that would be)"""
    same = np.array([[bool(a & b) for b in prompt] for a in answer])
    most = alignment.mean().argmax(-1)
    rows = [(same[i, most[i]], same[i].mean()) for i, names in enumerate(answer) if names]
    return np.array(rows, float)


def parts(words: list[Word], side: Side) -> list[set[str]]:
    """The parts of a sentence that the letters of each word belong to; a word of Japanese may belong to two."""
    letters = [(c.lower(), part) for text, part in side for c in text if not c.isspace()]
    found, place = [], 0
    for word in words:
        length = sum(not c.isspace() for c in word.text)
        found.append({part for _, part in letters[place : place + length]})
        assert "".join(c for c, _ in letters[place : place + length]) in word.text.replace(" ", "").lower()
        place += length
    return found


if __name__ == "__main__":
    main()
