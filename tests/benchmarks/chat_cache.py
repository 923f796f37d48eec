"""Seconds to the first token of a second answer: with the KV cache of the first one, and without it.

    python -m tests.benchmarks.chat_cache MODEL [--tokens 600] [--rounds 5]

The model, such as SmolLM2-135M-Instruct, answers a question about a text, and then another one. The two ways alternate;
prints the tokens of the conversation, those in the cache, and the medians. Both answers must be the same.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from llmcli.config import SamplingConfig
from llmcli.data.conversations.messages import Message
from llmcli.formats.loading import load, open_tokenizer
from llmcli.generation.chat import Assistant, PrefillProgress, open_assistant
from llmcli.generation.generator import Piece
from llmcli.models.numpy_runtime import NumpyRuntime

SENTENCE = "The cat sat on the mat, and the dog looked at the moon. "
QUESTION = Message("user", "And where was the dog?")
GREEDY = SamplingConfig(max_tokens=16, temperature=0.0)


def answer(assistant: Assistant, messages: Sequence[Message]) -> tuple[float, PrefillProgress, str]:
    """(seconds to the first token, what was processed before it, the answer)"""
    began, first, text, reading = time.perf_counter(), 0.0, "", None
    for event in assistant.answer(messages, GREEDY):
        if isinstance(event, PrefillProgress):
            reading = event
        elif isinstance(event, Piece):
            first = first or time.perf_counter() - began
            text += event.text
    assert reading is not None
    return first, reading, text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = load(options.model)
    tokenizer = open_tokenizer(model)
    assistant = open_assistant(model, NumpyRuntime(model), tokenizer)
    sentences = options.tokens // len(tokenizer.encode(SENTENCE))
    asked = Message("user", SENTENCE * sentences + "Where did the cat sit?")
    seconds: dict[str, list[float]] = {"kept": [], "empty": []}
    for _ in range(options.rounds):
        assistant.runtime.rewind()
        *_, said = answer(assistant, [asked])
        messages = [asked, Message("assistant", said), QUESTION]
        with_cache, reading, expected = answer(assistant, messages)
        assistant.runtime.rewind()
        without_cache, _, text = answer(assistant, messages)
        assert text == expected
        seconds["kept"].append(with_cache)
        seconds["empty"].append(without_cache)
    print(f"{reading.tokens:,} tokens in the conversation, {reading.cached:,} of them in the cache")
    for cache, values in seconds.items():
        print(f"cache {cache}: {statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
