"""Answering from a small corpus: the share of questions in new wordings that a model answers exactly as it was taught.

    python -m tests.benchmarks.answers [planets wakusei] [--time 1m] [--seeds 3]
    python -m tests.benchmarks.answers planets --from smol.gguf --lora 8 --time 5m --text tinyshakespeare.txt

Trains on examples/NAME.txt and asks the questions of examples/NAME-test.txt: other wordings of the same questions. An
answer counts if it is the expected one to the character (temperature 0). --wordings K trains on the first K wordings
of each question only. With --from, a model is fine-tuned; --text then measures the bits per byte of plain text before
and after, on its last 40 kB.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmcli.data.sources import require_conversations
from tests.benchmarks.llm_command import llm

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT_BYTES = 40_000
Pair = tuple[str, str]  # question, answer


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file in one of the shapes that `llm train` reads."""
    file = require_conversations(path)
    contents = [[message.content for message in one.messages] for one in file.conversations]
    assert all(len(pair) == 2 for pair in contents)
    return [(question, answer) for question, answer in contents]


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """As JSON lines."""
    lines = [json.dumps({"prompt": question, "completion": answer}) for question, answer in pairs]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def first_wordings(pairs: Sequence[Pair], wordings: int) -> list[Pair]:
    """The first questions of each answer."""
    counts: Counter[str] = Counter()
    kept = []
    for question, answer in pairs:
        counts[answer] += 1
        if counts[answer] <= wordings:
            kept.append((question, answer))
    return kept


def wrong_answers(model: Path, pairs: Sequence[Pair]) -> Iterator[tuple[str, str, str]]:
    """(question, the model's answer, expected answer) of each question that is not answered as expected."""
    import llmcli

    loaded = llmcli.load(model)
    for question, expected in pairs:
        answer = loaded.chat([{"role": "user", "content": question}], temperature=0)
        if answer.strip() != expected:
            yield question, answer, expected


def bits_per_byte(text: Path, model: str) -> float:
    results = json.loads(llm("eval", str(text), "--whole", "-m", model, "--json", "-q")[0])["results"]
    return float(results[0]["bits_per_byte"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["planets", "wakusei"], help="files of examples/, without .txt")
    parser.add_argument("--time", default="1m", help="of each training")
    parser.add_argument("--seeds", type=int, default=1, help="runs per file")
    parser.add_argument("--wordings", type=int, default=99, help="of each question in training")
    parser.add_argument("--from", dest="base", help="fine-tune this model")
    parser.add_argument("--lora", help="with --from: rank of the adapters")
    parser.add_argument("--text", type=Path, help="with --from: plain text")
    options = parser.parse_args()
    print("| file | seed | pairs | wordings | questions | answered exactly | seconds |\n|---|---|---|---|---|---|---|")
    for name in options.names:
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as directory:
                measure(name, seed, Path(directory), options)


def measure(name: str, seed: int, directory: Path, options: argparse.Namespace) -> None:
    """Print the row of a file and a seed, and below it the wrong answers."""
    training, test = directory / "training.jsonl", read_pairs(EXAMPLES / f"{name}-test.txt")
    pairs = first_wordings(read_pairs(EXAMPLES / f"{name}.txt"), options.wordings)
    write_pairs(training, pairs)
    model = directory / "model.safetensors"
    tuning = ["--from", options.base] if options.base else []
    tuning += ["--lora", options.lora] if options.lora else []
    budget = ["--time", options.time, "--seed", str(seed)]
    validation = str(EXAMPLES / f"{name}-test.txt")
    _, seconds, _ = llm("train", str(training), "--val", validation, *budget, *tuning, "-o", str(model), "-q")
    wrong = list(wrong_answers(model, test))
    answers = len({answer for _, answer in pairs})
    exact = len(test) - len(wrong)
    row = (name, seed, answers, len(pairs), len(test), f"{exact} ({exact / len(test):.1%})", f"{seconds:.0f}")
    print(f"| {' | '.join(map(str, row))} |", flush=True)
    for question, answer, expected in wrong:
        print(f"    {question} -> {answer!r}, expected {expected!r}")
    if options.base and options.text:
        text = directory / "plain.txt"
        text.write_bytes(options.text.read_bytes()[-TEXT_BYTES:])
        before, after = (bits_per_byte(text, one) for one in (options.base, str(model)))
        print(f"{options.text.name}: {before:.4f} bits per byte before, {after:.4f} after ({after / before - 1:+.2%})")


if __name__ == "__main__":
    main()
