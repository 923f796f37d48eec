"""Training speed, and its share of the machine's peak in matrix products.

    python -m tests.benchmarks.throughput [--dtype float32|bfloat16] [--threads N]

Real steps (forward, backward, optimizer) of shapes that the planner chooses. Useful FLOPs are counted as in
cost_model.flops_per_token: 6 for each weight of a matrix product and for each unmasked pair of query and key. The
longest and the shortest windows of a run with induction heads alternate. The peak is the fastest product of two
2048 x 2048 matrices in the same dtype, measured just before and after each shape.
"""

import argparse
import statistics
import time

import torch

from llmcli.config import ModelConfig, TrainConfig
from llmcli.training.data.run_data import window_length
from llmcli.training.planning.cost_model import flops_per_token
from llmcli.training.step.hardware import pick_dtype
from llmcli.training.step.throughput import measure_throughput

SHAPES = ((2, 96, 2), (2, 128, 2), (4, 128, 2), (4, 192, 3), (4, 256, 4), (6, 256, 4))  # layers, hidden size, heads
CONTEXT = 1024


def peak(dtype: str) -> float:
    """FLOP/s of the fastest matrix product."""
    x = torch.ones(2048, 2048, dtype=getattr(torch, dtype))
    times = []
    for _ in range(12):
        began = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement; three for each shape and batch")
    options = parser.parse_args()
    dtype, _ = pick_dtype(options.dtype, "cpu", options.threads)
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, {dtype}, torch {torch.__version__}, context {CONTEXT}")
    print("| layers x width | tokens per batch | tokens/s | GFLOP/s | peak | share |\n|---|---|---|---|---|---|")
    for layers, width, heads in SHAPES:
        mlp_size = round(width * 8 / 3 / 32) * 32
        model = ModelConfig(1024, width, mlp_size, layers, heads, heads, width // heads, CONTEXT)
        for batch_size in (2, 4):
            settings = TrainConfig(
                steps=100, context=CONTEXT, batch_size=batch_size, dtype=dtype, threads=options.threads, induction=True
            )
            best = peak(dtype)
            speeds = [measure_throughput(model, settings, options.seconds).mean for _ in range(3)]
            best, speed = max(best, peak(dtype)), statistics.median(speeds)
            # measure_throughput processes as many tokens in the shortest windows of a run as in the longest
            useful = (
                speed * (flops_per_token(model, CONTEXT) + flops_per_token(model, window_length(0.0, settings))) / 2
            )
            print(
                f"| {layers} x {width} | {batch_size * CONTEXT:,} | {speed:,.0f} | {useful / 1e9:.0f} | "
                f"{best / 1e9:.0f} | {useful / best:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
