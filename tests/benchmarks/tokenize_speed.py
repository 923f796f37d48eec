"""Tokens of a long text: megabytes per second of `tokenize_corpus` with an empty cache, and of the library alone.

    python -m tests.benchmarks.tokenize_speed TEXT [--megabytes 256] [--rounds 3]

TEXT is a file or a directory; the tokenizer is trained on it as `llm train` does. "tokenize_corpus" is all that a
run does: it reads, hashes and decodes the text, tokenizes it, and writes shards with their hashes. The library alone
has the decoded text in memory, and what its `encode_batch_fast` returns is thrown away. It gets pieces of several
lengths, half a million characters or more per call. Each measurement is a process of its own: what one way leaves in
the heap slows the next one down. The ways take turns, in another order each round; medians are printed.
"""

import argparse
import itertools
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tokenizers

from llmcli.data.sources import read_corpus
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokenizers.training import train_tokenizer
from llmcli.data.tokens.corpus_tokens import tokenize_corpus

OURS = "tokenize_corpus"
LIBRARY = {f"library, {size:,} characters x {calls}": (size, calls) for size, calls in (
    (2048, 256), (8192, 64), (65536, 8), (65536, 244), (1_000_000, 16))}  # fmt: skip


def of_corpus(text: Path, tokenizer: Path) -> float:
    """Seconds with an empty cache."""
    opened = Tokenizer.from_json(tokenizer.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_CACHE_HOME"] = directory
        start = time.perf_counter()
        tokenize_corpus(read_corpus([str(text)]).contents, opened)
        return time.perf_counter() - start


def in_library(text: Path, tokenizer: Path, size: int, per_call: int) -> float:
    """Seconds of the library for pieces of `size` characters, `per_call` of them at a time."""
    inner = tokenizers.Tokenizer.from_str(tokenizer.read_text("utf-8"))
    inner.encode_special_tokens = True
    whole = text.read_text("utf-8")
    ends = (re.compile(r"(?<=\S)[ \n]").search(whole, start) for start in range(size, len(whole), size))
    edges = [0, *(match.start() for match in ends if match), len(whole)]
    pieces = [whole[low:high] for low, high in itertools.pairwise(edges)]
    start = time.perf_counter()
    for first in range(0, len(pieces), per_call):
        inner.encode_batch_fast(pieces[first : first + per_call], add_special_tokens=False)
    return time.perf_counter() - start


def one(way: str, text: Path, tokenizer: Path) -> None:
    """Print the seconds of one measurement and its CPU time."""
    seconds = of_corpus(text, tokenizer) if way == OURS else in_library(text, tokenizer, *LIBRARY[way])
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(seconds, used.ru_utime + used.ru_stime)


def cut(names: list[str], size: int, target: Path) -> None:
    """Write the first `size` bytes of texts to a file."""
    with open(target, "w", encoding="utf-8", newline="") as file:
        for part in read_corpus(names).cut(0, size).texts():
            file.writelines(part)


def measure(text: Path, tokenizer: Path, rounds: int) -> dict[str, list[float]]:
    """Megabytes per second of each way."""
    ways = [OURS, *LIBRARY]
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds):
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            command = [sys.executable, "-m", "tests.benchmarks.tokenize_speed", str(text), "--way", way]
            run = subprocess.run(
                [*command, "--tokenizer", str(tokenizer)], stdout=subprocess.PIPE, text=True, check=True
            )
            seconds, core_seconds = map(float, run.stdout.split())
            speeds[way].append(text.stat().st_size / 1e6 / seconds)
            print(f"{way}: {speeds[way][-1]:.2f} MB/s, {core_seconds:.1f} core-seconds", file=sys.stderr, flush=True)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text")
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        one(options.way, Path(options.text), options.tokenizer)
        return
    with tempfile.TemporaryDirectory() as directory:
        text, json_file = Path(directory) / "text.txt", Path(directory) / "tokenizer.json"
        cut([options.text], options.megabytes * 1_000_000, text)
        corpus = read_corpus([str(text)])
        tokenizer, reason = train_tokenizer(corpus, corpus.text_bytes)
        json_file.write_text(tokenizer.to_json(), "utf-8")
        print(f"{corpus.text_bytes / 1e6:,.0f} MB, {tokenizer.vocab_size:,} tokens ({reason}), {os.cpu_count()} cores")
        speeds = measure(text, json_file, options.rounds)
    medians = {way: statistics.median(values) for way, values in speeds.items()}
    best = max(median for way, median in medians.items() if way != OURS)
    print("| way | MB/s | of the library's best |\n|---|---|---|")
    for way, median in medians.items():
        print(f"| {way} | {median:.2f} | {median / best:.2f} |")


if __name__ == "__main__":
    main()
