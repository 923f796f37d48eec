"""What the n-gram cache of a model costs and changes in generation.

    python -m tests.benchmarks.cache_cost MODEL TEXT [--tokens 300] [--rounds 5]

Continues pieces of TEXT greedily with and without the cache, alternating: tokens per second. Then, at temperatures 0.8
and 1, how much the generated texts repeat themselves: the share of repeated 4-grams of tokens, and the share of
different tokens and pairs of tokens, beside the same figures for as many tokens of TEXT itself.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmcli.config import SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.loading import load_any, open_tokenizer
from llmcli.generation.generator import continue_ids
from llmcli.models.open_runtime import open_runtime
from llmcli.models.runtime import Runtime

PROMPT_TOKENS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    source = load_any(options.model)
    tokenizer = open_tokenizer(source)
    runtimes = {"network": open_runtime(source, cache=False), "with cache": open_runtime(source)}
    ids = tokenizer.encode(options.text.read_text("utf-8"))
    length = PROMPT_TOKENS + options.tokens
    places = np.linspace(0.9 * len(ids), len(ids) - length, options.rounds).astype(int)
    pieces = [ids[place : place + length] for place in places]
    speeds: dict[str, list[float]] = {name: [] for name in runtimes}
    for piece in pieces:
        for name, runtime in runtimes.items():
            speeds[name].append(tokens_per_second(runtime, piece))
    for name, values in speeds.items():
        print(
            f"{name:>12}: {statistics.median(values):,.0f} tokens/s ({' '.join(f'{value:,.0f}' for value in values)})"
        )
    print(f"{'text itself':>12}: {repetition([piece[PROMPT_TOKENS:] for piece in pieces])}")
    for temperature in (0.8, 1.0):
        for name, runtime in runtimes.items():
            written = [
                generate(runtime, tokenizer, piece[:PROMPT_TOKENS], options.tokens, temperature, seed)
                for seed, piece in enumerate(pieces)
            ]
            print(f"{name:>12}: {repetition(written)}, temperature {temperature}", flush=True)


def tokens_per_second(runtime: Runtime, ids: Sequence[int]) -> float:
    """Of single steps through a text, after its prompt."""
    runtime.rewind()
    runtime.prefill(ids[:PROMPT_TOKENS])
    began = time.perf_counter()
    for token in ids[PROMPT_TOKENS:]:
        runtime.step(token)
    return (len(ids) - PROMPT_TOKENS) / (time.perf_counter() - began)


def generate(
    runtime: Runtime, tokenizer: Tokenizer, prompt: Sequence[int], count: int, temperature: float, seed: int
) -> list[int]:
    runtime.rewind()
    sampling = SamplingConfig(max_tokens=count, temperature=temperature, seed=seed)
    pieces = continue_ids(runtime, tokenizer, prompt, sampling)
    return [piece.id for piece in pieces if piece.id is not None]


def repetition(texts: Sequence[Sequence[int]]) -> str:
    texts = [text for text in texts if len(text) > 3]
    grams = [[tuple(text[i : i + 4]) for i in range(len(text) - 3)] for text in texts]
    repeated = statistics.mean(1 - len(set(one)) / len(one) for one in grams)
    distinct = statistics.mean(len(set(text)) / len(text) for text in texts)
    pairs = statistics.mean(len(set(itertools.pairwise(text))) / len(text) for text in texts)
    return f"repeated 4-grams {repeated:.3f}, distinct tokens {distinct:.3f}, distinct pairs {pairs:.3f}"


if __name__ == "__main__":
    main()
