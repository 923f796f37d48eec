"""Tokens of a long text: megabytes per second of `tokenize_in_shards` with an empty cache, and of the library alone.

    python -m tests.benchmarks.tokenize_speed TEXT [--megabytes 256] [--rounds 3]

TEXT is a file or a directory; the tokenizer is trained on it as `llm train` does. "tokenize_in_shards" is all that a
run does: it reads and decodes the text, tokenizes, checks, hashes and writes. The library alone has the decoded text in
memory and its `encode_batch_fast` is called with many texts, in three ways: the pieces of a shard in calls of as many
as `Tokenizer.encode_stream` takes, all of a shard in one call, and documents of a megabyte. What it returns is thrown
away. The ways take turns; medians are printed.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import tokenizers

from llmcli.data.corpus import Corpus, read_corpus
from llmcli.data.corpus_tokens import tokenize_in_shards
from llmcli.data.shard_texts import SHARD_BYTES
from llmcli.data.text_pieces import pieces
from llmcli.data.tokenizer import BATCH_PIECES, Tokenizer
from llmcli.data.train_tokenizer import train_tokenizer

DOCUMENT_CHARACTERS = 1_000_000


def library(json_text: str) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer.from_str(json_text)
    inner.encode_special_tokens = True
    return inner


def encode(inner: tokenizers.Tokenizer, texts: Iterator[str], per_call: int) -> int:
    """The number of tokens of texts, so many of which are given to the library at a time."""
    count = 0
    while batch := list(itertools.islice(texts, per_call)):
        count += sum(len(encoding) for encoding in inner.encode_batch_fast(batch, add_special_tokens=False))
    return count


def in_shards(corpus: Corpus, size: int, tokenizer: Tokenizer) -> int:
    """The number of tokens; the cache is empty before."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_CACHE_HOME"] = directory
        return len(tokenize_in_shards(corpus.parts(0, size), tokenizer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text")
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    corpus = read_corpus([options.text])
    size = min(corpus.text_bytes, options.megabytes * 1_000_000)
    tokenizer, reason = train_tokenizer(corpus, size)
    inner = library(tokenizer.to_json())
    text = "".join(piece for part in corpus.texts(0, size) for piece in part)
    print(f"{size / 1e6:,.0f} MB, {tokenizer.vocab_size} tokens in the vocabulary ({reason}), {os.cpu_count()} cores")
    documents = [text[i : i + DOCUMENT_CHARACTERS] for i in range(0, len(text), DOCUMENT_CHARACTERS)]
    cut = list(pieces([text], tokenizer._boundary))
    del text
    per_shard = SHARD_BYTES // len(cut[0])
    ways: dict[str, Callable[[], int]] = {
        "tokenize_in_shards": lambda: in_shards(corpus, size, tokenizer),
        f"library, {BATCH_PIECES} pieces per call": lambda: encode(inner, iter(cut), BATCH_PIECES),
        f"library, {per_shard} pieces per call": lambda: encode(inner, iter(cut), per_shard),
        "library, 16 documents of 1 MB per call": lambda: encode(inner, iter(documents), 16),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            speeds[name].append(size / 1e6 / (time.perf_counter() - start))
    print(json.dumps({name: [round(value, 2) for value in values] for name, values in speeds.items()}))
    best = max(statistics.median(values) for name, values in speeds.items() if name.startswith("library"))
    print("| way | MB/s | of the library's best |\n|---|---|---|")
    for name, values in speeds.items():
        print(f"| {name} | {statistics.median(values):.2f} | {statistics.median(values) / best:.2f} |")


if __name__ == "__main__":
    main()
