"""Answering a FAQ: right, wrong, and no answers, to 40 questions in new wordings, and to questions about anything else.

    python -m tests.benchmarks.faq [--wordings 1 3 8] [--steps 600]
    python -m tests.benchmarks.faq --data toshokan.txt --other other-ja.txt
    python -m tests.benchmarks.faq --from smol.gguf --steps 50 --options "--lora 8 --kl-weight 0 --batch-tokens 512"

Trains on 40 answers of questions/library.txt (15 of toshokan.txt) with some wordings of each question, then asks new
wordings, and the questions of questions/other.txt. A block has an answer, eight wordings, and two for the test: a usual
one, and one in other words. The settings of known answers were chosen on other data: examples/school.txt, planets.txt
and wakusei.txt with their test files. TF-IDF: the nearest training question by words, without a minimum. Similarity:
--known-answers without the network.
"""

import argparse
import json
import math
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import llmcli
from llmcli.data.conversations.messages import Message
from llmcli.formats.training_record import KnownAnswers
from llmcli.generation.known_answers import AnswerFinder, KnownAnswer, open_known_answers
from tests.benchmarks.llm_command import llm

QUESTIONS = Path(__file__).parent / "questions"
WORDINGS = 8  # for training, in each block
Answerer = Callable[[str], str | None]  # question -> answer, or None


def nearest_by_words(pairs: Sequence[tuple[str, str]]) -> Answerer:
    """TF-IDF over words, and the cosine."""
    counts = [Counter(re.findall(r"\w+", question.lower())) for question, _ in pairs]
    frequencies = Counter(word for count in counts for word in count)

    def vector(count: Counter[str]) -> dict[str, float]:
        weights = {word: n * math.log(1 + len(pairs) / (1 + frequencies[word])) for word, n in count.items()}
        length = math.hypot(*weights.values()) or 1.0
        return {word: weight / length for word, weight in weights.items()}

    vectors = [vector(count) for count in counts]

    def answer(question: str) -> str:
        asked = vector(Counter(re.findall(r"\w+", question.lower())))
        scores = [sum(weight * one.get(word, 0.0) for word, weight in asked.items()) for one in vectors]
        return pairs[scores.index(max(scores))][1]

    return answer


def answerers(model: llmcli.Model, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Answerer]]:
    known, assistant = open_known_answers(model._source), model._take_assistant()

    def finding(weight: float) -> Callable[[str], KnownAnswer]:
        finder = AnswerFinder(KnownAnswers(pairs=known.pairs, network_weight=weight))
        return lru_cache(lambda question: finder.find(assistant, [Message("user", question)]))

    similar, chosen = finding(0.0), finding(known.network_weight)

    def confident(question: str) -> str | None:
        answer = chosen(question)
        return answer.text if answer.confidence >= known.min_confidence else None

    yield "`llm chat -t 0`", lambda text: model.chat([{"role": "user", "content": text}], temperature=0).strip()
    yield "TF-IDF", nearest_by_words(pairs)
    yield "similarity", lambda text: similar(text).text
    yield "`--known-answers --min-confidence 0`", lambda text: chosen(text).text
    yield f"`--known-answers` ({known.min_confidence:.2f})", confident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordings", type=int, nargs="*", default=[1, 3, 8], help="of each question in training")
    parser.add_argument("--steps", default="600", help="of each training")
    parser.add_argument("--from", dest="base", help="fine-tune this model")
    parser.add_argument("--options", default="", help="other options of llm train")
    parser.add_argument("--data", default="library.txt", help="blocks of an answer and wordings, in questions/")
    parser.add_argument("--other", default="other.txt", help="questions about anything else")
    options = parser.parse_args()
    print("| wordings | answers by | usual wording | other words | off-topic answered |\n|---|---|---|---|---|")
    for wordings in options.wordings:
        with tempfile.TemporaryDirectory() as directory:
            measure(wordings, Path(directory), options)


def measure(wordings: int, directory: Path, options: argparse.Namespace) -> None:
    """Print the rows for a number of wordings."""
    blocks = [block.split("\n") for block in (QUESTIONS / options.data).read_text("utf-8").strip().split("\n\n")]
    others = (QUESTIONS / options.other).read_text("utf-8").strip().split("\n")
    pairs = [(question, block[0]) for block in blocks for question in block[1 : 1 + wordings]]
    table, path = directory / "faq.jsonl", directory / "faq.safetensors"
    table.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in pairs), "utf-8")
    base = ["--from", options.base] if options.base else []
    training = ["--val", "0", "--steps", options.steps, *base, *shlex.split(options.options)]
    llm("train", str(table), *training, "--known-answers", "-o", str(path), "-q")
    for row in rows(llmcli.load(path), pairs, blocks, others):
        print(f"| {wordings} | {row} |", flush=True)


def rows(
    model: llmcli.Model, pairs: Sequence[tuple[str, str]], blocks: Sequence[Sequence[str]], others: Sequence[str]
) -> Iterator[str]:
    for name, answer in answerers(model, pairs):
        cells = []
        for column in (1 + WORDINGS, 2 + WORDINGS):
            given = [(answer(block[column]), block[0]) for block in blocks]
            right, unanswered = sum(a == b for a, b in given), sum(a is None for a, _ in given)
            cells.append(f"{right} right, {len(given) - right - unanswered} wrong, {unanswered} none")
        answered = sum(answer(question) is not None for question in others)
        yield f"{name} | {' | '.join(cells)} | {answered} of {len(others)}"


if __name__ == "__main__":
    main()
