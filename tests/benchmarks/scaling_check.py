"""Whether the formula behind docs/scaling.md predicts the speed of two processes on this machine.

    python -m tests.benchmarks.scaling_check TEXT [--widths 128 256] [--steps 40] [--rounds 3]

Measured: the collective operations between two processes, and the speed of one process with one thread on its part of
the batch, while another one does the same on the other core. Predicted from these by tests/benchmarks/step_model.py,
the formula of tests/benchmarks/scaling.py: the speed of two processes of one thread. That is measured too, in turn with
the one process; the figures are medians of the rounds.
"""

import argparse
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llmcli.config import ModelConfig, TrainConfig
from llmcli.training.planning.cost_model import flops_per_token
from llmcli.training.planning.model_shapes import model_config
from llmcli.training.planning.plan import PlanRequest
from tests.benchmarks import collectives, processes
from tests.benchmarks.collectives import Link
from tests.benchmarks.processes import BATCH_TOKENS, CONTEXT, LAYERS, VOCAB_SIZE
from tests.benchmarks.step_model import Step, muon_flops, step

COUNT = 2  # processes, of one thread each
LARGEST = 16 << 20  # bytes of a tensor; these models send less at a time


def measured_links() -> dict[str, Link]:
    times = collectives.measure(COUNT, LARGEST, 0.5)
    return {name: collectives.line_of(name, found, COUNT) for name, found in times.items()}


def measured_rate(text: Path, directory: Path, model: ModelConfig, steps: int) -> float:
    """FLOP/s of one process of one thread, while another one does the same."""
    tokens = BATCH_TOKENS // COUNT

    def run(copy: int) -> float:
        output = directory / f"{copy}.safetensors"
        found = processes.measure(text, output, model.hidden_size, steps, 1, threads=1, tokens=tokens)
        assert found.parameters == model.parameters
        return found.tokens_per_second

    with ThreadPoolExecutor(COUNT) as pool:
        speed = sum(pool.map(run, range(COUNT))) / COUNT
    return (flops_per_token(model, CONTEXT) + muon_flops(model, 1) / tokens) * speed


def predicted(model: ModelConfig, rate: float, links: dict[str, Link]) -> Step:
    train = TrainConfig(steps=1, context=CONTEXT, batch_size=BATCH_TOKENS // CONTEXT)  # in float32
    return step(model, train, COUNT, rate, links, sharded=False)


def row(text: Path, directory: Path, width: int, steps: int, rounds: int, links: dict[str, Link]) -> str:
    """Predicted and measured for a width."""
    shape = PlanRequest(layers=LAYERS, width=width)
    model = model_config(shape, LAYERS, width, CONTEXT, VOCAB_SIZE, 0, induction=False)
    rates, speeds = [], []
    for _ in range(rounds):
        rates.append(measured_rate(text, directory, model, steps))
        found = processes.measure(text, directory / "several.safetensors", width, steps, COUNT)
        speeds.append(found.tokens_per_second)
    rate, speed = statistics.median(rates), statistics.median(speeds)
    time = predicted(model, rate, links)
    expected = BATCH_TOKENS / time.seconds
    cells = [width, f"{rate / 1e9:.1f}", f"{1e3 * time.compute:.1f}", f"{1e3 * time.communication:.1f}"]
    cells += [f"{expected:,.0f}", f"{speed:,.0f}", f"{100 * (expected / speed - 1):+.0f} %"]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    links = measured_links()
    print("| operation | latency, µs | bandwidth, GB/s |\n|---|---|---|")
    for name, link in links.items():
        print(f"| {name} | {1e6 * link.latency:,.0f} | {link.bandwidth / 1e9:.2f} |")
    print("\n| width | GFLOP/s of one | compute, ms | communication, ms | predicted tokens/s | measured | error |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for width in options.widths:
            print(row(options.text, Path(name), width, options.steps, options.rounds, links), flush=True)


if __name__ == "__main__":
    main()
