"""Generation speed: the numpy runtime and eager torch on the same weights, in one run.

    python -m tests.benchmarks.decode [--tokens 200] [--rounds 5]

Two models with random weights: 15.2M parameters (the shape of llama2.c's stories15M: hidden size 288, 6 layers, 6
heads, MLP size 768, vocabulary 32,000, tied embeddings) and 0.8M (hidden size 128, 4 layers, vocabulary 512). The two
runtimes alternate; prints the median tokens per second over the rounds, and the memory bandwidth, since every token of
the larger model reads all weights.
"""

import argparse
import os
import platform
import statistics
import time

import numpy as np
import torch

from llmcli.config import ModelConfig
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.torch.runtime import TorchRuntime

MODELS = {
    "15.2M": ModelConfig(32000, 288, 768, 6, 6, 6, 48, 256, tie_word_embeddings=True),
    "0.8M": ModelConfig(512, 128, 352, 4, 4, 4, 32, 256),
}


def random_model(config: ModelConfig) -> Checkpoint:
    rng = np.random.default_rng(0)
    tensors = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else rng.normal(0, 0.05, shape).astype(np.float32)
        for name, shape in config.tensor_shapes().items()
    }
    return Checkpoint(config, "", tensors)


def tokens_per_second(runtime: NumpyRuntime | TorchRuntime, tokens: int) -> float:
    runtime.rewind()
    logits = runtime.prefill([1, 2, 3])
    began = time.perf_counter()
    for _ in range(tokens):
        logits = runtime.step(int(logits.argmax()))
    return tokens / (time.perf_counter() - began)


def bandwidth() -> float:
    """Bytes per second that one core reads from a large array, best of five."""
    array = np.ones(1 << 26, np.float32)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        array.sum()
        best = max(best, array.nbytes / (time.perf_counter() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=200, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, one core reads {bandwidth() / 1e9:.1f} GB/s")
    for size, config in MODELS.items():
        runtimes: dict[str, NumpyRuntime | TorchRuntime] = {
            "numpy": NumpyRuntime(random_model(config)),
            "torch eager": TorchRuntime(random_model(config), "cpu"),
        }
        speeds: dict[str, list[float]] = {name: [] for name in runtimes}
        for _ in range(options.rounds):
            for name, runtime in runtimes.items():
                time.sleep(0.3)  # the other runtime's threads spin for a while
                speeds[name].append(tokens_per_second(runtime, options.tokens))
        medians = {name: statistics.median(values) for name, values in speeds.items()}
        ratio = medians["numpy"] / medians["torch eager"]
        print(
            f"{size} ({config.parameters:,} parameters): numpy {medians['numpy']:,.0f} tokens/s, "
            f"torch eager {medians['torch eager']:,.0f}, ratio {ratio:.2f}; "
            f"numpy reads {medians['numpy'] * 4 * config.parameters / 1e9:.1f} GB/s of weights"
        )


if __name__ == "__main__":
    main()
