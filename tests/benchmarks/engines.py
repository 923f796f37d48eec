"""Generation speed: llmcli, transformers and llama.cpp on the same weights, in one run.

    python -m tests.benchmarks.engines [--real smol.gguf] [--tokens 128] [--rounds 5] [--json]

Models: two with random weights, 1M and 10M parameters, and the one in the --real file, if given. Each engine continues
a short prompt greedily, ignoring the end-of-text token, in a process of its own: an engine's idle threads spin and
would slow down the others. Prints the median tokens per second over the rounds. llama.cpp reports its own time, of the
model alone; for the others, the time includes choosing each token. llmcli is measured without and with ("adapting") an
n-gram cache, as models that it trained on plain text run. Needs the extras ecosystem and fast.
"""

import argparse
import json
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
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats import loading
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.gguf import writer as gguf_writer
from llmcli.formats.huggingface import directory as hf_directory
from llmcli.formats.training_record import CacheWeights
from llmcli.models.ngram_runtime import with_ngram_cache
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.onnx.runtime import OnnxRuntime
from llmcli.models.runtime import Runtime
from tests.conftest import random_checkpoint
from tests.ecosystem import texts
from tests.ecosystem.conftest import LlamaCpp

ENGINES = (
    "llmcli, float32", "llmcli, int8", "llmcli, int4",  # the network alone
    "llmcli, float32, adapting", "llmcli, int8, adapting", "llmcli, int4, adapting",  # with an n-gram cache
    "transformers, float32",
    "llama.cpp, f32", "llama.cpp, q8_0", "llama.cpp, q4_0",
)  # fmt: skip
PROMPT = [5, 6, 7, 8, 9]  # token ids
CACHE = CacheWeights(  # of a model of tiny Shakespeare; their values hardly matter for the speed
    (
        (-2.1, -0.3, -0.2, -0.2), (-0.7, -0.6, -1.6, -0.4), (-1.3, -0.5, -1.4, -0.2), (-1.6, -0.2, -0.9, -0.1),
        (-1.3, -0.4, -1.0, -0.1),
    )
)  # fmt: skip
SHAPES = {"1M": (4, 128, 1024), "10M": (6, 320, 4096)}  # layers, hidden size, vocabulary size


def random_model(layers: int, width: int, vocabulary: int) -> Checkpoint:
    tokenizer = Tokenizer.train_bpe(texts.varied(8000), vocabulary)
    mlp_size = round(width * 8 / 3 / 32) * 32
    config = ModelConfig(tokenizer.vocab_size, width, mlp_size, layers, width // 64, width // 64, 64, 512)
    return random_checkpoint(config, tokenizer_json=tokenizer.to_json())


def llmcli_speed(runtime: Runtime, tokens: int) -> float:
    """Tokens per second, like the two functions below."""
    runtime.rewind()
    logits = runtime.prefill(PROMPT)
    began = time.perf_counter()
    for _ in range(tokens):
        logits = runtime.step(int(logits.argmax()))
    return tokens / (time.perf_counter() - began)


def transformers_speed(model: Any, tokens: int) -> float:
    import torch

    with torch.inference_mode():
        output = model(torch.tensor([PROMPT]), use_cache=True)
        began = time.perf_counter()
        for _ in range(tokens):
            token = output.logits[:, -1:].argmax(-1)
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
    return tokens / (time.perf_counter() - began)


def llama_cpp_speed(server: LlamaCpp, tokens: int) -> float:
    return float(server.ask(PROMPT, tokens, ignore_eos=True)["timings"]["predicted_per_second"])


def open_engine(engine: str, directory: Path) -> Callable[[int], float]:
    """Load the model in `directory` into an engine; the function returned measures tokens per second over a number of
    tokens."""
    program, dtype, *adapting = engine.split(", ")
    if program == "llama.cpp":
        server = LlamaCpp(directory / f"{dtype}.gguf", 512)
        return lambda tokens: llama_cpp_speed(server, tokens)
    if program == "transformers":
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(os.cpu_count() or 1)
        hf_model = AutoModelForCausalLM.from_pretrained(directory / "hf", dtype=torch.float32).eval()
        return lambda tokens: transformers_speed(hf_model, tokens)
    model = loading.load(directory / "hf")
    runtime: Runtime = NumpyRuntime(model) if dtype == "float32" else OnnxRuntime(model, dtype)
    as_it_runs = with_ngram_cache(runtime, CACHE if adapting else None)
    return lambda tokens: llmcli_speed(as_it_runs, tokens)


def write(directory: Path, model: Checkpoint) -> None:
    """The model in the formats that the engines read."""
    directory.mkdir()
    hf_directory.write(directory / "hf", model, {}, "")
    for dtype in ("f32", "q8_0", "q4_0"):
        gguf_writer.write(directory / f"{dtype}.gguf", model, dtype, {})


def measure(engine: str, directory: Path, tokens: int, rounds: int) -> float:
    """Median tokens per second of an engine, measured in a process of its own."""
    arguments = ["--engine", engine, "--directory", str(directory), "--tokens", str(tokens), "--rounds", str(rounds)]
    command = [sys.executable, "-m", "tests.benchmarks.engines", *arguments]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return float(process.stdout.split()[-1])


def measure_all(real: Path | None, tokens: int, rounds: int) -> dict[str, Any]:
    """As JSON: the parameters of each model, and the tokens per second of each engine on each model."""
    models = {name: random_model(*shape) for name, shape in SHAPES.items()}
    if real:
        models[real.stem] = loading.load(real)
    speeds: dict[str, dict[str, float]] = {engine: {} for engine in ENGINES}
    with tempfile.TemporaryDirectory() as parent:
        for name, model in models.items():
            directory = Path(parent) / name
            write(directory, model)
            for engine in ENGINES:
                speeds[engine][name] = round(measure(engine, directory, tokens, rounds), 1)
    return {"parameters": {name: model.config.parameters for name, model in models.items()}, "speeds": speeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, help="a model file to measure as well")
    parser.add_argument("--tokens", type=int, default=128, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:  # in the process of one engine
        run = open_engine(options.engine, options.directory)
        run(options.tokens)  # warm-up
        print(statistics.median(run(options.tokens) for _ in range(options.rounds)))
        return
    result = measure_all(options.real, options.tokens, options.rounds)
    if options.json:
        print(json.dumps(result))
        return
    parameters = result["parameters"]
    print("| tokens/s | " + " | ".join(f"{name}, {count:,}" for name, count in parameters.items()) + " |")
    print("|---" * (1 + len(parameters)) + "|")
    for engine, speeds in result["speeds"].items():
        print(f"| {engine} | {' | '.join(f'{speeds[name]:,.0f}' for name in parameters)} |")


if __name__ == "__main__":
    main()
