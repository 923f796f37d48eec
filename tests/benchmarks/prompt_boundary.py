"""Prompts that end inside a token: bits per byte of the true continuation for several ways to tokenize the prompt's
end, how often the last word is extended, and the time to the first token.

    python -m tests.benchmarks.prompt_boundary MODEL CORPUS [--prompts 500] [--texts 200]

Prompts of 120 characters are cut from the last tenth of the corpus, which the model must not have been trained on:
after a whole word (a space follows), inside a word, after a space, at the end of a line, between two Japanese
characters, anywhere. Three methods:

- literal: the tokenizer's own tokenization of the prompt.
- masked: the last word is removed and sampled again, token by token, among the tokens consistent with it, as llmcli did
  before.
- summed: what `generate` does now (llmcli/generation/token_healing.py).

Each is a distribution over token sequences that cover the prompt. p(next 8 bytes | prompt) is summed over the sequences
that spell these bytes, by beam search with the BEAM most likely sequences at each byte, the same for all three. For
"masked", the same search runs over the last word of the prompt, with the probabilities that the masks leave.
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
from llmcli.data.text.words import begins_with_letter, character_class
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.loading import load_any, open_tokenizer
from llmcli.generation.generator import generate
from llmcli.generation.token_healing import Prompt, read_prompt
from llmcli.models.logits import log_softmax
from llmcli.models.open_runtime import open_runtime
from llmcli.models.runtime import Runtime

CHARACTERS, NEXT = 120, 8  # characters of a prompt; bytes of its continuation
BEAM = 8
UNLIKELY = 12.0  # nats below the most likely sequence at which one is dropped
METHODS = ("literal", "masked", "summed")

Path = tuple[int, ...]  # tokens after the prompt's head
Cover = tuple[float, Path, bytes]  # (log probability given the prompt, path, the bytes that it adds after the prompt)


class Model:
    """Log probabilities after a prompt's head and token sequences, each evaluated once."""

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer, head: list[int]) -> None:
        self.vocabulary, self._runtime, self._head = tokenizer.vocabulary, runtime, head
        self._log_probabilities: dict[Path, np.ndarray] = {}
        runtime.rewind()
        self._keep((), runtime.prefill(head))

    def __call__(self, path: Path) -> np.ndarray:
        """The log probabilities [V] of the token after the path."""
        if path not in self._log_probabilities:
            self._runtime.rewind(len(self._head))
            self._keep(path, self._runtime.prefill(path))
        return self._log_probabilities[path]

    def _keep(self, path: Path, logits: np.ndarray) -> None:
        self._log_probabilities[path] = log_softmax(logits[: len(self.vocabulary)])


def masked(model: Model, tail: bytes) -> list[Cover]:
    """The sequences that masked sampling of the bytes `tail` can produce."""
    if not tail:
        return [(0.0, (), b"")]
    vocabulary, covers, token_bytes = model.vocabulary, list[Cover](), model.vocabulary.token_bytes
    reached: dict[int, list[tuple[float, Path]]] = defaultdict(list, {0: [(0.0, ())]})  # by bytes spelled
    for done in range(len(tail)):
        for logprob, path in sorted(reached[done], reverse=True)[:BEAM]:
            if logprob < -UNLIKELY:
                continue
            row, rest = model(path), tail[done:]
            inside, beyond = vocabulary.prefixes_of(rest), vocabulary.extensions_of(rest).tolist()
            total = np.logaddexp.reduce(row[inside + beyond])
            covers += [(logprob + row[t] - total, (*path, t), token_bytes[t][len(rest) :]) for t in beyond]
            for t in inside:
                longer = (logprob + row[t] - total, (*path, t))
                if len(token_bytes[t]) == len(rest):
                    covers.append((*longer, b""))
                else:
                    reached[done + len(token_bytes[t])].append(longer)
    return covers


def log_probability(model: Model, covers: Iterable[Cover], text: bytes) -> float:
    """Log p(text | prompt), the sum over all sequences that begin with a cover and spell `text` after the prompt."""
    vocabulary, total = model.vocabulary, -math.inf
    reached: dict[int, list[tuple[float, Path]]] = defaultdict(list)  # by bytes of `text` spelled
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
            if len(beyond := vocabulary.extensions_of(rest)):
                total = float(np.logaddexp(total, logprob + np.logaddexp.reduce(row[beyond])))
            for t in vocabulary.prefixes_of(rest):
                size = len(vocabulary.token_bytes[t])
                if size == len(rest):
                    total = float(np.logaddexp(total, logprob + row[t]))
                else:
                    reached[done + size].append((logprob + float(row[t]), (*path, t)))
    return total


def extension_probability(model: Model, covers: Iterable[Cover]) -> float:
    """The probability that the next character extends the prompt's last word."""
    total = 0.0
    for logprob, path, new in covers:
        if logprob > -9:  # others add less than 0.0002 each
            letters = model.vocabulary.begins_with_letter
            total += math.exp(logprob) * (
                float(begins_with_letter(new)) if new else float(np.exp(model(path)[letters]).sum())
            )
    return total


def covers_of(runtime: Runtime, tokenizer: Tokenizer, prompt: str) -> Iterator[tuple[str, Model, list[Cover]]]:
    """(method, model, covers) of each method, one after the other, since they share the runtime."""
    yield "literal", Model(runtime, tokenizer, Prompt.of(prompt, tokenizer, literal=True).ids), [(0.0, (), b"")]
    head, tail = tokenizer.split_last_word(prompt)
    before = tokenizer.bos_ids + tokenizer.encode(head or ("" if tokenizer.bos_ids else "\n"))
    model = Model(runtime, tokenizer, before)
    yield "masked", model, masked(model, tail.encode())
    tokenized = Prompt.of(prompt, tokenizer)
    continuations = list(read_prompt(runtime, tokenizer, tokenized).continuations(1e-9))
    model = Model(runtime, tokenizer, tokenized.head)
    yield "summed", model, [(math.log(c.probability), c.tokens, c.new_bytes) for c in continuations]


def prompt_ends(text: str, count: int, rng: random.Random) -> dict[str, list[int]]:
    """The ends of `count` prompts of each kind; a kind with fewer is left out."""

    def letter(i: int) -> bool:
        return text[i].isascii() and text[i].isalpha()

    kinds: dict[str, Callable[[int], bool]] = {
        "whole word": lambda i: letter(i - 1) and text[i] == " ",
        "inside a word": lambda i: letter(i - 1) and letter(i),
        "after a space": lambda i: text[i - 1] == " " and text[i] != " ",
        "end of line": lambda i: text[i - 1] == "\n",
        "Japanese": lambda i: min(text[i - 1], text[i]) > "\u3000",
        "anywhere": lambda i: True,
    }
    order = list(range(CHARACTERS, len(text) - NEXT))
    rng.shuffle(order)
    ends = {kind: [i for i in order if fits(i)][:count] for kind, fits in kinds.items()}
    return {kind: positions for kind, positions in ends.items() if len(positions) == count}


def measure_bits(runtime: Runtime, tokenizer: Tokenizer, text: str, count: int) -> None:
    print("| bits per byte of the next 8 bytes | literal | masked | summed | summed - literal | summed - masked |")
    print("|---|---|---|---|---|---|")
    for kind, ends in prompt_ends(text, count, random.Random(0)).items():
        of_method: dict[str, list[float]] = {method: [] for method in METHODS}
        for end in ends:
            continuation = text[end : end + NEXT].encode()[:NEXT]
            for method, model, covers in covers_of(runtime, tokenizer, text[end - CHARACTERS : end]):
                of_method[method].append(-log_probability(model, covers, continuation) / math.log(2) / NEXT)
        bits = {method: np.array(values) for method, values in of_method.items()}
        differences = [bits["summed"] - bits[method] for method in METHODS[:2]]
        columns = [f"{bits[method].mean():.4f}" for method in METHODS]
        columns += [f"{d.mean():+.4f} ± {d.std(ddof=1) / math.sqrt(len(d)):.4f}" for d in differences]
        print(f"| {kind} | {' | '.join(columns)} |", flush=True)


def measure_extension(runtime: Runtime, tokenizer: Tokenizer, text: str, training: str, count: int) -> None:
    """How often the last word is extended, after prompts that end with a word of the training text, whether or not the
    held-out text extends it."""
    words = set(re.findall(r"[A-Za-z]+", training))
    rng = random.Random(1)
    order = list(range(CHARACTERS, len(text) - NEXT))
    rng.shuffle(order)

    def ends_word(i: int) -> bool:
        last = re.search(r"(?:^|[^A-Za-z])([A-Za-z]+)$", text[i - 30 : i])
        return last is not None and last[1] in words

    for kind, fits in (
        ("a word could end", ends_word), ("a word ends", lambda i: ends_word(i) and text[i] == " "),
    ):  # fmt: skip
        ends = [i for i in order if fits(i)][:count]
        rates: dict[str, list[float]] = defaultdict(list)
        for end in ends:
            prompt = text[end - CHARACTERS : end]
            rates["text"].append(float(character_class(text[end]) == "letters"))
            for method, model, covers in covers_of(runtime, tokenizer, prompt):
                rates[method].append(extension_probability(model, covers))
            for method in ("literal", "summed"):
                rates[f"{method}, sampled"].append(sampled_rate(runtime, tokenizer, prompt, method == "literal"))
        figures = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in rates.items())
        print(f"where {kind}, the next character is a letter ({len(ends)} prompts): {figures}", flush=True)


def sampled_rate(runtime: Runtime, tokenizer: Tokenizer, prompt: str, literal: bool) -> float:
    """The share of five generated texts that begin with a letter, with the default settings."""
    texts = [
        "".join(piece.text for piece in generate(
            runtime, tokenizer, prompt, SamplingConfig(max_tokens=2, seed=seed), literal=literal
        ))
        for seed in range(5)
    ]  # fmt: skip
    return float(np.mean([begins_with_letter(text.encode()) for text in texts]))


def measure_latency(runtime: Runtime, tokenizer: Tokenizer, text: str, count: int) -> None:
    times: dict[str, list[float]] = defaultdict(list)
    rng = random.Random(2)
    ends = [rng.randrange(CHARACTERS, len(text) - NEXT) for _ in range(count)]
    for number, end in enumerate([*ends[:3], *ends]):  # the first three only warm up
        for literal in (True, False):
            prompt = Prompt.of(text[end - CHARACTERS : end], tokenizer, literal=literal)
            began = time.perf_counter()
            first = read_prompt(runtime, tokenizer, prompt)
            first.process(first.continuations_of(int(first.logits.argmax()))[0])
            if number >= 3:
                times["literal" if literal else "summed"].append(1000 * (time.perf_counter() - began))
                times["evaluations"] += [] if literal else [first.search.evaluations]
    extra = np.array(times["summed"]) - np.array(times["literal"])
    print(
        f"time to the first token: literal {statistics.median(times['literal']):.1f} ms, summed "
        f"{statistics.median(times['summed']):.1f} ms; median increase {np.median(extra):.1f} ms (mean "
        f"{extra.mean():.1f}, 90th percentile {np.quantile(extra, 0.9):.1f}); "
        f"{np.mean(times['evaluations']):.1f} evaluations of the model"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("corpus")
    parser.add_argument("--prompts", type=int, default=500, help="of each kind, for bits per byte")
    parser.add_argument("--texts", type=int, default=200, help="prompts for how often the last word is extended")
    parser.add_argument("--timed", type=int, default=50, help="prompts for the time to the first token")
    options = parser.parse_args()
    loaded = load_any(options.model)
    runtime, tokenizer = open_runtime(loaded), open_tokenizer(loaded)
    with open(options.corpus, "rb") as file:
        data = file.read()
    cut = len(data) * 9 // 10
    training, text = data[:cut].decode("utf-8", "ignore"), data[cut:].decode("utf-8", "ignore")
    print(f"{options.model}: {loaded.parameters:,} parameters, {len(tokenizer.vocabulary):,} tokens", flush=True)
    if options.timed:
        measure_latency(runtime, tokenizer, text, options.timed)
    if options.prompts:
        measure_bits(runtime, tokenizer, text, options.prompts)
    if options.texts:
        measure_extension(runtime, tokenizer, text, training, options.texts)


if __name__ == "__main__":
    main()
