"""Tokens a second when generating: ours beside transformers and llama.cpp, the same weights, in one run.

    python -m tests.benchmarks.engines [--real smol.gguf] [--tokens 128] [--rounds 5]

Models: two of ours with random weights, 1M and 10M parameters, and a real one if its file is named. Each engine
continues a short prompt greedily by so many tokens, whatever they are, in a process of its own, since an engine's idle
threads spin in the way of another's; the median of the rounds is printed. llama.cpp tells its own time, of the model
alone; the others' is measured from outside, with the choice of each token. Needs the extras ecosystem and fast.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmcli.config import ModelConfig
from llmcli.data.tokenizer import Tokenizer
from llmcli.formats import gguf_writer, hf_directory, loading
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.onnx_runtime import OnnxRuntime
from tests.conftest import random_checkpoint
from tests.ecosystem import texts
from tests.ecosystem.conftest import LlamaCpp

ENGINES = (
    "ours, float32", "ours, int8", "ours, int4", "transformers, float32",
    "llama.cpp, f32", "llama.cpp, q8_0", "llama.cpp, q4_0",
)  # fmt: skip
PROMPT = [5, 6, 7, 8, 9]
SHAPES = {"1M": (4, 128, 1024), "10M": (6, 320, 4096)}  # layers, width, vocabulary


def untrained(layers: int, width: int, vocabulary: int) -> Checkpoint:
    tokenizer = Tokenizer.train_bpe(texts.varied(8000), vocabulary)
    inner = round(width * 8 / 3 / 32) * 32
    config = ModelConfig(tokenizer.vocab_size, width, inner, layers, width // 64, width // 64, 64, 512)
    return random_checkpoint(config, tokenizer_json=tokenizer.to_json())


def ours(runtime: Any, tokens: int) -> float:
    runtime.rewind()
    logits = runtime.prefill(PROMPT)
    began = time.perf_counter()
    for _ in range(tokens):
        logits = runtime.step(int(logits.argmax()))
    return tokens / (time.perf_counter() - began)


def transformers(model: Any, tokens: int) -> float:
    import torch

    with torch.inference_mode():
        found = model(torch.tensor([PROMPT]), use_cache=True)
        began = time.perf_counter()
        for _ in range(tokens):
            token = found.logits[:, -1:].argmax(-1)
            found = model(token, past_key_values=found.past_key_values, use_cache=True)
    return tokens / (time.perf_counter() - began)


def llama_cpp(model: LlamaCpp, tokens: int) -> float:
    return float(model.ask(PROMPT, tokens, ignore_eos=True)["timings"]["predicted_per_second"])


def opened(engine: str, place: Path) -> Callable[[int], float]:
    """An engine with its model, ready to be timed."""
    program, _, dtype = engine.partition(", ")
    if program == "llama.cpp":
        server = LlamaCpp(place / f"{dtype}.gguf", 512)
        return lambda tokens: llama_cpp(server, tokens)
    if program == "transformers":
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(os.cpu_count() or 1)
        theirs = AutoModelForCausalLM.from_pretrained(place / "hf", dtype=torch.float32).eval()
        return lambda tokens: transformers(theirs, tokens)
    model = loading.load(place / "hf")
    runtime = NumpyRuntime(model) if dtype == "float32" else OnnxRuntime(model, dtype)
    return lambda tokens: ours(runtime, tokens)


def one(engine: str, place: Path, tokens: int, rounds: int) -> float:
    """In a process of its own, so that no other engine's threads are in the way."""
    words = ["--engine", engine, "--place", str(place), "--tokens", str(tokens), "--rounds", str(rounds)]
    command = [sys.executable, "-m", "tests.benchmarks.engines", *words]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return float(found.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        run = opened(options.engine, options.place)
        run(options.tokens)
        print(statistics.median(run(options.tokens) for _ in range(options.rounds)))
        return
    models = {name: untrained(*shape) for name, shape in SHAPES.items()}
    if options.real:
        models[options.real.stem] = loading.load(options.real)
    speeds: dict[str, list[str]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as directory:
        for name, model in models.items():
            place = Path(directory) / name
            place.mkdir()
            hf_directory.write(place / "hf", model, {}, "")
            for dtype in ("f32", "q8_0", "q4_0"):
                gguf_writer.write(place / f"{dtype}.gguf", model, dtype, {})
            for engine in ENGINES:
                speeds[engine].append(f"{one(engine, place, options.tokens, options.rounds):,.0f}")
    print("| tokens a second | " + " | ".join(f"{n}, {m.config.parameters:,}" for n, m in models.items()) + " |")
    print("|---" * (1 + len(models)) + "|")
    for engine, found in speeds.items():
        print(f"| {engine} | {' | '.join(found)} |")


if __name__ == "__main__":
    main()
