"""Total generation speed of the engine of `llm serve` with 1, 4, 8 and 16 texts at a time, without HTTP.

    python -m tests.benchmarks.streams [--real smol.gguf] [--tokens 64] [--rounds 3] [--streams 1 4 8 16]
    python -m tests.benchmarks.streams --compare --real smol.gguf

Models: one with random weights, 1M parameters, and the one in the --real file, if given, in float32 and int8. Every
text has its own prompt of eight tokens and is continued greedily; prints the median tokens per second of all texts
together, and the ratio to one text. With --compare: llama.cpp's server on the same weights (float32 and Q8_0) as well,
with as many slots, asked by as many threads; the two programs alternate, each in a process of its own, since idle
threads of one would slow down the other. Its time includes the prompts, as ours does. Needs the extras ecosystem and
fast. The environment should not restrict the kernels of OpenBLAS: run it with `env -u OPENBLAS_CORETYPE`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from llmcli.config import SamplingConfig, cpu_cores
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats import hf_directory, loading
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.gguf import writer as gguf_writer
from llmcli.generation.engine.engine import Engine
from llmcli.generation.engine.requests import EngineLimits, Event, Failed, Finished, GenerationRequest
from llmcli.models.open_runtime import open_runtime
from tests.benchmarks.engines import SHAPES, random_model

GGUF_DTYPES = {"float32": "f32", "int8": "q8_0"}
PROMPT_LENGTH, CONTEXT = 8, 512


def prompts(count: int, vocab_size: int, seed: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(10, min(vocab_size, 400), PROMPT_LENGTH).tolist()) for _ in range(count)]


def unending(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer without a token that ends a text, so that every text is as long."""
    tokenizer.eos_ids = frozenset()
    return tokenizer


def open_ours(directory: Path, dtype: str) -> Callable[[int, int, int], float]:
    """The function returned measures tokens per second of (texts, tokens of each, seed)."""
    model = loading.load(directory / "hf")
    runtime = open_runtime(model, quantize=None if dtype == "float32" else dtype, fast=True)
    tokenizer = unending(Tokenizer.from_json(model.tokenizer_json))
    engine = Engine(lambda name: (runtime, tokenizer), EngineLimits(prefix_bytes=0))
    engine.start()

    def measure(streams: int, tokens: int, seed: int) -> float:
        sampling, left, done = SamplingConfig(max_tokens=tokens, temperature=0), [streams], threading.Event()

        def on_event(event: Event) -> None:  # in the engine's thread
            assert not isinstance(event, Failed), event.error
            if isinstance(event, Finished):
                left[0] -= 1
                if not left[0]:
                    done.set()

        began = time.perf_counter()
        for ids in prompts(streams, model.config.vocab_size, seed):
            engine.submit(GenerationRequest("model", ids, sampling), on_event)
        done.wait()
        return streams * tokens / (time.perf_counter() - began)

    return measure


def open_llama_cpp(directory: Path, dtype: str, streams: int, vocab_size: int) -> Callable[[int, int, int], float]:
    """The same for llama.cpp's server, with continuous batching in `streams` slots."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(directory / f"{GGUF_DTYPES[dtype]}.gguf")
    params.n_ctx, params.n_parallel, params.port, params.verbosity = CONTEXT * streams, streams, 0, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = cpu_cores()
    server = xllamacpp.Server(params)

    def ask(ids: tuple[int, ...], tokens: int) -> None:
        request = {"prompt": list(ids), "n_predict": tokens, "temperature": 0.0, "ignore_eos": True}
        server.handle_completions(request | {"cache_prompt": False})

    def measure(streams: int, tokens: int, seed: int) -> float:
        with ThreadPoolExecutor(streams) as threads:
            began = time.perf_counter()
            list(threads.map(lambda ids: ask(ids, tokens), prompts(streams, vocab_size, seed)))
            return streams * tokens / (time.perf_counter() - began)

    return measure


def measure_here(options: argparse.Namespace) -> None:
    """In a process of its own: one line of numbers, the median speeds with each number of texts."""
    speeds = []
    for streams in options.streams:
        if options.program == "llama.cpp":
            vocab_size = loading.load(options.directory / "hf").config.vocab_size
            measure = open_llama_cpp(options.directory, options.dtype, streams, vocab_size)
        elif not speeds:
            measure = open_ours(options.directory, options.dtype)
        measure(streams, min(16, options.tokens), 99)  # warm-up
        speeds.append(statistics.median(measure(streams, options.tokens, seed) for seed in range(options.rounds)))
    print(*speeds)


def measure_program(program: str, directory: Path, dtype: str, options: argparse.Namespace) -> list[float]:
    arguments = ["--program", program, "--directory", directory, "--dtype", dtype, "--tokens", options.tokens]
    arguments += ["--rounds", options.rounds, "--streams", *options.streams]
    command = [sys.executable, "-m", "tests.benchmarks.streams", *map(str, arguments)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # as `llm serve` sets it
    process = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    return [float(word) for word in process.stdout.split("\n")[-2].split()]


def write(directory: Path, model: Checkpoint, *, with_gguf: bool) -> None:
    directory.mkdir()
    hf_directory.write(directory / "hf", model, {}, "")
    for dtype in GGUF_DTYPES.values() if with_gguf else ():
        gguf_writer.write(directory / f"{dtype}.gguf", model, dtype, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, help="a model file to measure as well")
    parser.add_argument("--tokens", type=int, default=64, help="of each text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16], help="numbers of texts")
    parser.add_argument("--compare", action="store_true", help="measure llama.cpp's server as well")
    for hidden in ("--program", "--dtype"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.program:
        measure_here(options)
        return
    models = {"1M": random_model(*SHAPES["1M"])}
    if options.real:
        models[options.real.stem] = loading.load(options.real)
    print("| tokens/s | " + " | ".join(f"{n} at a time" for n in options.streams) + " |")
    print("|---" * (1 + len(options.streams)) + "|")
    with tempfile.TemporaryDirectory() as parent:
        for name, model in models.items():
            directory = Path(parent) / name
            write(directory, model, with_gguf=options.compare)
            for dtype in GGUF_DTYPES:
                for program in ("llmcli", "llama.cpp") if options.compare else ("llmcli",):
                    speeds = measure_program(program, directory, dtype, options)
                    cells = [f"{speed:,.0f} ({speed / speeds[0]:.1f}x)" for speed in speeds]
                    print(f"| {program}, {name}, {dtype} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
