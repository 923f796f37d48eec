"""Training with several processes on this machine: speed, loss, and bytes sent.

    python -m tests.benchmarks.processes TEXT [--widths 128 256 512] [--steps 200] [--counts 1 2 4]

For each width: a run of each number of processes, with the same seed and batches of 2,048 tokens; one process has all
cores as threads, several share them. Prints tokens per second (of the second half of the steps), the loss of the last
steps, and the bytes that went over the loopback interface per step, against the least that any algorithm sends: for the
sum of all gradients to reach all of N processes, each sends 2 (N - 1) / N times the gradients.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

LLM = [sys.executable, "-m", "llmcli"]
BATCH_TOKENS, LAYERS, CONTEXT, VOCAB_SIZE = 2048, 4, 256, 2048


@dataclass(frozen=True)
class Figures:
    """Of one run."""

    tokens_per_second: float
    loss: float  # mean of the last tenth of the steps
    sent: float  # bytes per step, by all processes
    parameters: int


def loopback_bytes() -> int:
    """Bytes sent over the loopback interface since the machine started."""
    line = next(
        line for line in Path("/proc/net/dev").read_text("ascii").splitlines() if line.strip().startswith("lo:")
    )
    return int(line.split(":")[1].split()[8])


def measure(
    text: Path, output: Path, width: int, steps: int, processes: int, *, threads: int = 0, tokens: int = BATCH_TOKENS
) -> Figures:
    """A run with batches of so many tokens; by default with all cores."""
    command = [
        *LLM, "train", text, "-o", output, "--force", "--json", "--steps", steps, "--layers", LAYERS, "--width", width,
        "--context", CONTEXT, "--batch-tokens", tokens, "--vocab-size", VOCAB_SIZE, "--seed", 1, "--dropout", 0,
        "--dtype", "float32", *(["--processes", processes] if processes > 1 else []),
        *(["--threads", threads] if threads else []),
    ]  # fmt: skip
    before = loopback_bytes()
    run = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
    sent = (loopback_bytes() - before) / steps
    events = [json.loads(line) for line in run.stdout.splitlines()]
    found = [event for event in events if event["event"] == "step"]
    half = found[len(found) // 2]
    speed = (found[-1]["tokens"] - half["tokens"]) / (found[-1]["seconds"] - half["seconds"])
    last = found[-max(1, len(found) // 10) :]
    inspected = subprocess.run(
        [sys.executable, "-m", "llmcli", "inspect", str(output), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    parameters = int(json.loads(inspected.stdout)["parameters"])
    return Figures(speed, sum(event["loss"] for event in last) / len(last), sent, parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    print("| width | processes | tokens/s | loss | MB sent per step | of the least |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for width in options.widths:
            for count in options.counts:
                found = measure(options.text, Path(directory) / "model.safetensors", width, options.steps, count)
                least = 2 * (count - 1) * 4 * found.parameters  # of all processes together
                share = f"{found.sent / least:.2f}" if least else ""
                cells = [
                    width,
                    count,
                    f"{found.tokens_per_second:,.0f}",
                    f"{found.loss:.5f}",
                    f"{found.sent / 1e6:.2f}",
                ]
                print(f"| {' | '.join(map(str, cells))} | {share} |", flush=True)


if __name__ == "__main__":
    main()
