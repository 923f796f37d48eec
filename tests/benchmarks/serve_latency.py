"""Time to the first token and time per token of `llm serve` over HTTP, against the same model in this process.

    python -m tests.benchmarks.serve_latency [--real smol.gguf] [--rounds 9] [--tokens 48]

Models: one with random weights, 1M parameters, and the one in the --real file, if given. The server is a process of its
own, asked on loopback for a stream. In every round it and this process continue the same prompt greedily, one after the
other, and the texts must be equal: with `generate`, and for a model with a chat template with `Assistant`, which
`llm chat` uses. The prompts of the rounds begin differently, so that the server finds nothing of them in its cache.
Prints medians in milliseconds; the difference is the median of the differences within rounds. "First request" is the
first one after the start of each, in process and over HTTP, which waits for the model to be loaded.

The environment should not restrict the kernels of OpenBLAS: run it with `env -u OPENBLAS_CORETYPE`.
"""

import argparse
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli.config import SamplingConfig
from llmcli.data.conversations.messages import Message
from llmcli.formats import loading
from llmcli.formats.checkpoint import save
from llmcli.generation.chat import open_assistant
from llmcli.generation.generator import Piece, generate
from llmcli.models.open_runtime import open_runtime
from tests.benchmarks.engines import SHAPES, random_model
from tests.server.processes import serving

TEXT = "{} things are in the garden behind the house of the old teacher, and the first of them is"
SYSTEM, QUESTION = "{} is your lucky number. You answer in one sentence.", "Why is the sky blue in the morning?"


@dataclass(frozen=True)
class Timing:
    """One text. Times in seconds."""

    text: str
    first: float  # until its first token
    each: float  # between two tokens after the first


Ask = Callable[[int], Timing]  # the prompt of this number


def timed(parts: Iterable[str]) -> Timing:
    """The timing of a text that arrives in parts, one of each token; those without text are incomplete characters."""
    began, text, times = time.perf_counter(), "", []
    for part in parts:
        text += part
        times.append(time.perf_counter())
    return Timing(text, times[0] - began, (times[-1] - times[0]) / max(1, len(times) - 1))


def http_parts(port: int, path: str, body: dict[str, Any]) -> Iterable[str]:
    """The texts of a stream, as they arrive."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(
        "POST", path, json.dumps(body | {"stream": True, "temperature": 0}), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    assert response.status == 200, response.read()
    for line in response:
        if line.startswith(b"data: {"):
            choice = json.loads(line[6:])["choices"][0]
            text = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            if text:
                yield text
    connection.close()


def ways(path: Path, port: int, tokens: int) -> dict[str, dict[str, Ask]]:
    """{kind of prompt: {"in process" or "HTTP": how to ask}}"""
    model = loading.load(path)
    tokenizer = loading.open_tokenizer(model)
    runtime = open_runtime(model, fast=True)
    sampling = SamplingConfig(max_tokens=tokens, temperature=0)

    def complete(number: int) -> Timing:
        runtime.rewind()
        return timed(p.text for p in generate(runtime, tokenizer, TEXT.format(number), sampling) if p.text)

    def complete_over_http(number: int) -> Timing:
        return timed(http_parts(port, "/v1/completions", {"prompt": TEXT.format(number), "max_tokens": tokens}))

    found = {"text": {"in process": complete, "HTTP": complete_over_http}}
    if loading.open_chat_template(model, tokenizer) is None:
        return found
    assistant = open_assistant(model, open_runtime(model, fast=True), tokenizer)

    def messages(number: int) -> list[Message]:
        return [Message("system", SYSTEM.format(number)), Message("user", QUESTION)]

    def answer(number: int) -> Timing:
        assistant.runtime.rewind()
        return timed(p.text for p in assistant.answer(messages(number), sampling) if isinstance(p, Piece) and p.text)

    def answer_over_http(number: int) -> Timing:
        sent = [{"role": message.role, "content": message.content} for message in messages(number)]
        return timed(http_parts(port, "/v1/chat/completions", {"messages": sent, "max_tokens": tokens}))

    return found | {"chat": {"in process": answer, "HTTP": answer_over_http}}


def measure(name: str, path: Path, rounds: int, tokens: int) -> None:
    with serving(path, options=("-q",)) as served:
        for kind, asks in ways(path, served.port, tokens).items():
            first_request = {way: 1000 * ask(99).first for way, ask in asks.items()}
            here, http_ = [], []
            for number in range(rounds):
                order = list(asks) if number % 2 else list(asks)[::-1]
                got = {way: asks[way](10 + number) for way in order}
                assert got["HTTP"].text == got["in process"].text, got
                here.append(got["in process"])
                http_.append(got["HTTP"])
            first = [statistics.median(1000 * t.first for t in one) for one in (here, http_)]
            each = [statistics.median(1000 * t.each for t in one) for one in (here, http_)]
            later = statistics.median(1000 * (b.first - a.first) for a, b in zip(here, http_, strict=True))
            more = statistics.median(b.each / a.each - 1 for a, b in zip(here, http_, strict=True))
            cells = [f"{first[0]:.1f}", f"{first[1]:.1f}", f"{later:+.1f}", f"{each[0]:.3f}", f"{each[1]:.3f}"]
            cells += [f"{more:+.1%}", " / ".join(f"{value:.0f}" for value in first_request.values())]
            print(f"| {name}, {kind} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="a model file to measure as well")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=48, help="of each text")
    options = parser.parse_args()
    print("| ms | first token, in process | HTTP | difference | each token, in process | HTTP | more | first request |")
    print("|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent) / "1M.safetensors"
        save(path, random_model(*SHAPES["1M"]))
        for one in (path, *([options.real] if options.real else [])):
            measure(one.stem, one, options.rounds, options.tokens)


if __name__ == "__main__":
    main()
