"""Structured output: how many of 1,000 random schemas are met, and what a token costs.

    python -m tests.benchmarks.structured MODEL... --schemas 1000
    python -m tests.benchmarks.structured MODEL... --tokens 200

The schemas come from tests/generation/random_schemas.py and are checked by jsonschema. For the cost, texts with and
without a grammar are generated alternately by numpy; the time of the first token, with the prompt and the compilation
of the grammar, is given apart. `1M` stands for a model of a million random weights.
"""

import argparse
import json
import random
import statistics
import time
from collections import Counter
from pathlib import Path

import jsonschema

from llmcli.config import Grammar, ModelConfig, SamplingConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.loading import load_any, open_tokenizer
from llmcli.generation.generator import generate
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.open_runtime import open_runtime
from llmcli.models.runtime import Runtime
from tests.conftest import random_checkpoint
from tests.generation.random_schemas import random_schema

PROMPT = "A record of the order as JSON: "
ORDERS = {  # never complete: as many tokens as are asked for
    "type": "array", "minItems": 1000, "items": {
        "type": "object", "required": ["name", "count", "dish"], "additionalProperties": False, "properties": {
            "name": {"type": "string"}, "count": {"type": "integer", "minimum": 1, "maximum": 99},
            "dish": {"enum": ["soup", "rice", "りんご"]}},
    },
}  # fmt: skip


def open_model(name: str) -> tuple[Runtime, Tokenizer]:
    if name != "1M":
        source = load_any(Path(name))
        return open_runtime(source, cache=False), open_tokenizer(source)
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    tokenizer = Tokenizer.train_bpe([readme], 2048)
    config = ModelConfig(tokenizer.vocab_size, 128, 384, 4, 4, 2, 32, 512)
    return NumpyRuntime(random_checkpoint(config, tokenizer_json=tokenizer.to_json())), tokenizer


def check_schemas(name: str, count: int, temperature: float, max_tokens: int) -> None:
    runtime, tokenizer = open_model(name)
    checker, reasons = jsonschema.Draft202012Validator.FORMAT_CHECKER, Counter[str]()
    for number in range(count):
        schema = random_schema(random.Random(number))
        sampling = SamplingConfig(max_tokens, temperature, seed=number, grammar=Grammar.of_schema(schema))
        pieces = [*generate(runtime, tokenizer, PROMPT, sampling)]
        reason = str(pieces[-1].finish_reason)
        if reason == "stop":
            value = json.loads("".join(piece.text for piece in pieces))
            jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)
        reasons[reason] += 1
    done = ", ".join(f"{count:,} ended with {reason}" for reason, count in reasons.items())
    print(f"{name} ({tokenizer.kind}), temperature {temperature:g}: {done}; every one with stop is valid")


def time_tokens(name: str, tokens: int, rounds: int) -> None:
    runtime, tokenizer = open_model(name)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    first: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * rounds):
        is_structured = number % 2 == 1
        grammar = Grammar.of_schema(ORDERS) if is_structured else None
        pieces = generate(runtime, tokenizer, PROMPT, SamplingConfig(tokens, 0.8, seed=number // 2, grammar=grammar))
        started = time.perf_counter()
        next(pieces)
        begun = time.perf_counter()
        count = sum(piece.id is not None for piece in pieces)
        first[is_structured].append(begun - started)
        seconds[is_structured].append((time.perf_counter() - begun) / max(1, count))
    free, formed = (1e6 * statistics.median(seconds[kind]) for kind in (False, True))
    begun_free, begun_formed = (1e3 * statistics.median(first[kind]) for kind in (False, True))
    print(
        f"{name}: {runtime.parameters / 1e6:.1f}M parameters, V {tokenizer.vocab_size:,}: {free:,.0f} us a token, with "
        f"a schema {formed:,.0f} ({formed / free - 1:+.1%}); first token {begun_free:.1f} ms, with a schema "
        f"{begun_formed:.1f} (the first time {1e3 * first[True][0]:.0f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--schemas", type=int)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for name in options.models:
        if options.schemas:
            check_schemas(name, options.schemas, options.temperature, options.max_tokens)
        else:
            time_tokens(name, options.tokens, options.rounds)


if __name__ == "__main__":
    main()
