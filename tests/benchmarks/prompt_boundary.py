"""How well a model goes on from where a prompt was cut: bits per byte of the true continuation, for several ways to
split the prompt's end into tokens; how often it makes the last word longer; and the time to the first token.

    python -m tests.benchmarks.prompt_boundary MODEL CORPUS [--prompts 500] [--texts 200]

Prompts of 120 characters are cut from the last tenth of the corpus, which the model must not have seen: after a whole
word (a space follows), inside a word, after a space, at a line's end, between two Japanese characters, anywhere. Three
ways to read them:

- literal: the tokenizer's own split, nothing else.
- masked: the last word is taken back and sampled token by token among those that agree with it, as llmcli did before.
- summed: what `generate` does now (llmcli/prompt.py).

Each is a distribution over token sequences that cover the prompt. p(next 8 bytes | prompt) is summed over the
sequences that spell these bytes, of which the BEAM likeliest to each byte are followed, the same for all three.
"masked" is followed in the same way through the prompt's last word, with the probabilities that its masks leave.
"""

import argparse
import math
import random
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from llmcli.config import SamplingConfig
from llmcli.data.characters import begins_with_letter, character_class
from llmcli.data.tokenizer import Tokenizer
from llmcli.formats.loading import load_any, open_tokenizer
from llmcli.generation.first_token import read_prompt
from llmcli.generation.generator import generate
from llmcli.generation.prompt import Prompt
from llmcli.models.logits import log_softmax
from llmcli.models.open_runtime import open_runtime
from llmcli.models.runtime import Runtime

CHARACTERS, NEXT = 120, 8  # of a prompt; bytes of its continuation
BEAM = 8
UNLIKELY = 12.0  # nats below the likeliest at which a sequence is given up
NAMES = ("literal", "masked", "summed")

Cover = tuple[
    float, tuple[int, ...], bytes
]  # (log probability given the prompt, tokens after the head, what they write beyond)


class Model:
    """The log probabilities after a head and token sequences, each asked for once."""

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer, head: list[int]) -> None:
        self.vocabulary, self._runtime, self._head = tokenizer.vocabulary, runtime, head
        self._known: dict[tuple[int, ...], np.ndarray] = {}
        runtime.rewind()
        self._keep((), runtime.prefill(head))

    def __call__(self, path: tuple[int, ...]) -> np.ndarray:
        """[V]"""
        if path not in self._known:
            self._runtime.rewind(len(self._head))
            self._keep(path, self._runtime.prefill(path))
        return self._known[path]

    def _keep(self, path: tuple[int, ...], logits: np.ndarray) -> None:
        self._known[path] = log_softmax(logits[: len(self.vocabulary)])


def masked(model: Model, tail: bytes) -> list[Cover]:
    """The sequences that sampling among the tokens that agree with the tail comes to."""
    if not tail:
        return [(0.0, (), b"")]
    words, found, table = model.vocabulary, list[Cover](), model.vocabulary.token_bytes
    reached: dict[int, list[tuple[float, tuple[int, ...]]]] = defaultdict(list, {0: [(0.0, ())]})
    for done in range(len(tail)):
        for logprob, path in sorted(reached[done], reverse=True)[:BEAM]:
            if logprob < -UNLIKELY:
                continue
            row, rest = model(path), tail[done:]
            inside, beyond = words.prefixes_of(rest), words.extensions_of(rest).tolist()
            total = np.logaddexp.reduce(row[inside + beyond])
            found += [(logprob + row[t] - total, (*path, t), table[t][len(rest) :]) for t in beyond]
            for t in inside:
                step = (logprob + row[t] - total, (*path, t))
                if len(table[t]) == len(rest):
                    found.append((*step, b""))
                else:
                    reached[done + len(table[t])].append(step)
    return found


def log_probability(model: Model, covers: Iterable[Cover], text: bytes) -> float:
    """Of the bytes that follow."""
    words, total = model.vocabulary, -math.inf
    reached: dict[int, list[tuple[float, tuple[int, ...]]]] = defaultdict(list)
    for logprob, path, new in covers:
        if len(new) >= len(text):
            total = float(np.logaddexp(total, logprob)) if new.startswith(text) else total
        elif text.startswith(new):
            reached[len(new)].append((logprob, path))
    for done in range(len(text)):
        best = sorted(reached[done], reverse=True)[:BEAM]
        for logprob, path in best:
            if logprob < max(best[0][0], total) - UNLIKELY:
                continue
            row, rest = model(path), text[done:]
            if len(beyond := words.extensions_of(rest)):
                total = float(np.logaddexp(total, logprob + np.logaddexp.reduce(row[beyond])))
            for t in words.prefixes_of(rest):
                size = len(words.token_bytes[t])
                if size == len(rest):
                    total = float(np.logaddexp(total, logprob + row[t]))
                else:
                    reached[done + size].append((logprob + float(row[t]), (*path, t)))
    return total


def growth(model: Model, covers: Iterable[Cover]) -> float:
    """The probability that the next character goes on with the prompt's last word."""
    total = 0.0
    for logprob, path, new in covers:
        if logprob > -9:
            letters = model.vocabulary.begins_with_letter
            total += math.exp(logprob) * (
                float(begins_with_letter(new)) if new else float(np.exp(model(path)[letters]).sum())
            )
    return total


def covers_of(runtime: Runtime, tokenizer: Tokenizer, prompt: str) -> Iterator[tuple[str, Model, list[Cover]]]:
    """By each way to read a prompt, one after the other: they share the runtime."""
    yield "literal", Model(runtime, tokenizer, Prompt.of(prompt, tokenizer, literal=True).ids), [(0.0, (), b"")]
    head, tail = tokenizer.split_last_word(prompt)
    before = tokenizer.bos_ids + tokenizer.encode(head or ("" if tokenizer.bos_ids else "\n"))
    model = Model(runtime, tokenizer, before)
    yield "masked", model, masked(model, tail.encode())
    known = Prompt.of(prompt, tokenizer)
    ways = list(read_prompt(runtime, tokenizer, known).continuations(1e-9))
    model = Model(runtime, tokenizer, known.head)
    yield "summed", model, [(math.log(way.probability), way.tokens, way.new_bytes) for way in ways]


def places(text: str, count: int, rng: random.Random) -> dict[str, list[int]]:
    """Where prompts of each kind end."""

    def letter(i: int) -> bool:
        return text[i].isascii() and text[i].isalpha()

    kinds: dict[str, Callable[[int], bool]] = {
        "whole word": lambda i: letter(i - 1) and text[i] == " ",
        "inside a word": lambda i: letter(i - 1) and letter(i),
        "after a space": lambda i: text[i - 1] == " " and text[i] != " ",
        "line's end": lambda i: text[i - 1] == "\n",
        "Japanese": lambda i: min(text[i - 1], text[i]) > "\u3000",
        "anywhere": lambda i: True,
    }
    order = list(range(CHARACTERS, len(text) - NEXT))
    rng.shuffle(order)
    found = {kind: [i for i in order if fits(i)][:count] for kind, fits in kinds.items()}
    return {kind: at for kind, at in found.items() if len(at) == count}


def bits_per_byte(runtime: Runtime, tokenizer: Tokenizer, text: str, count: int) -> None:
    print("| bits per byte of the next 8 bytes | literal | masked | summed | summed less literal | less masked |")
    print("|---|---|---|---|---|---|")
    for kind, ends in places(text, count, random.Random(0)).items():
        found: dict[str, list[float]] = {name: [] for name in NAMES}
        for end in ends:
            after = text[end : end + NEXT].encode()[:NEXT]
            for name, model, ways in covers_of(runtime, tokenizer, text[end - CHARACTERS : end]):
                found[name].append(-log_probability(model, ways, after) / math.log(2) / NEXT)
        bits = {name: np.array(values) for name, values in found.items()}
        less = [bits["summed"] - bits[name] for name in NAMES[:2]]
        columns = [f"{bits[name].mean():.4f}" for name in NAMES]
        columns += [f"{d.mean():+.4f} ± {d.std(ddof=1) / math.sqrt(len(d)):.4f}" for d in less]
        print(f"| {kind} | {' | '.join(columns)} |", flush=True)


def grown(runtime: Runtime, tokenizer: Tokenizer, text: str, learned: str, count: int) -> None:
    """After prompts that end where a word of the training text could end, whether the text goes on or not."""
    words = set(re.findall(r"[A-Za-z]+", learned))
    rng = random.Random(1)
    order = list(range(CHARACTERS, len(text) - NEXT))
    rng.shuffle(order)

    def ends_word(i: int) -> bool:
        last = re.search(r"(?:^|[^A-Za-z])([A-Za-z]+)$", text[i - 30 : i])
        return bool(last) and last[1] in words

    for kind, fits in (
        ("a word could end", ends_word), ("a word ends", lambda i: ends_word(i) and text[i] == " "),
    ):  # fmt: skip
        ends = [i for i in order if fits(i)][:count]
        rates: dict[str, list[float]] = defaultdict(list)
        for end in ends:
            prompt = text[end - CHARACTERS : end]
            rates["text"].append(float(character_class(text[end]) == "letters"))
            for name, model, ways in covers_of(runtime, tokenizer, prompt):
                rates[name].append(growth(model, ways))
            for name in ("literal", "summed"):
                answers = [
                    "".join(p.text for p in generate(
                        runtime, tokenizer, prompt, SamplingConfig(max_tokens=2, seed=seed), literal=name == "literal"
                    ))
                    for seed in range(5)
                ]  # fmt: skip
                rates[f"{name}, sampled by default"].append(np.mean([begins_with_letter(a.encode()) for a in answers]))
        told = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in rates.items())
        print(f"where {kind}, the next character is a letter ({len(ends)} prompts): {told}", flush=True)


def first_token(runtime: Runtime, tokenizer: Tokenizer, text: str, count: int) -> None:
    times: dict[str, list[float]] = defaultdict(list)
    rng = random.Random(2)
    ends = [rng.randrange(CHARACTERS, len(text) - NEXT) for _ in range(count)]
    for number, end in enumerate([*ends[:3], *ends]):  # the first fill tables and wake the processor
        for literal in (True, False):
            prompt = Prompt.of(text[end - CHARACTERS : end], tokenizer, literal=literal)
            began = time.perf_counter()
            first = read_prompt(runtime, tokenizer, prompt)
            first.process(first.continuations_of(int(first.logits.argmax()))[0])
            if number >= 3:
                times["literal" if literal else "summed"].append(1000 * (time.perf_counter() - began))
                times["evaluations"] += [] if literal else [first.evaluations]
    extra = np.array(times["summed"]) - np.array(times["literal"])
    print(
        f"to the first token: literal {statistics.median(times['literal']):.1f} ms, summed "
        f"{statistics.median(times['summed']):.1f} ms; longer by {np.median(extra):.1f} ms (mean {extra.mean():.1f}, "
        f"9 of 10 below {np.quantile(extra, 0.9):.1f}); {np.mean(times['evaluations']):.1f} evaluations of the model"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("corpus")
    parser.add_argument("--prompts", type=int, default=500, help="of each kind")
    parser.add_argument("--texts", type=int, default=200, help="prompts after which growth is counted")
    parser.add_argument("--timed", type=int, default=50, help="prompts for the time to the first token")
    given = parser.parse_args()
    found = load_any(given.model)
    runtime, tokenizer = open_runtime(found), open_tokenizer(found)
    with open(given.corpus, "rb") as file:
        data = file.read()
    cut = len(data) * 9 // 10
    learned, text = data[:cut].decode("utf-8", "ignore"), data[cut:].decode("utf-8", "ignore")
    print(f"{given.model}: {found.parameters:,} parameters, {len(tokenizer.vocabulary):,} tokens", flush=True)
    if given.timed:
        first_token(runtime, tokenizer, text, given.timed)
    if given.prompts:
        bits_per_byte(runtime, tokenizer, text, given.prompts)
    if given.texts:
        grown(runtime, tokenizer, text, learned, given.texts)


if __name__ == "__main__":
    main()
