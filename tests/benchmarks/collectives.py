"""Collective operations between processes on this machine: time by size, and a line through the times.

    python -m tests.benchmarks.collectives [--counts 2 4] [--largest 256] [--seconds 1]

All-reduce, reduce-scatter and all-gather of torch.distributed with gloo, one thread each. Prints the median time of
each size, and for each operation the line `latency + bytes / bandwidth` through them, where the bytes are the least
that each of N processes can send: (N - 1) / N of the tensor, and twice that for an all-reduce.
"""

import argparse
import datetime
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path

OPERATIONS = ("all-reduce", "reduce-scatter", "all-gather")
SMALLEST, GROWTH = 4096, 4  # bytes of a tensor; factor from one size to the next
ROUNDS = (3, 200)  # least and most measurements of a size
PATIENCE = datetime.timedelta(minutes=5)


@dataclass(frozen=True)
class Link:
    """How long a collective operation takes: `latency` seconds and its bytes at `bandwidth` bytes per second."""

    latency: float
    bandwidth: float

    def seconds(self, sent: float) -> float:
        return self.latency + sent / self.bandwidth


def least_sent(operation: str, size: float, processes: int) -> float:
    """Bytes that each process has to send for an operation on a tensor of `size` bytes.

    >>> [least_sent(operation, 100, 4) for operation in OPERATIONS]
    [150.0, 75.0, 75.0]
    """
    return (2 if operation == "all-reduce" else 1) * size * (processes - 1) / processes


def fit(sent: Sequence[float], seconds: Sequence[float]) -> Link:
    """The line through the times of each number of bytes, with the least sum of squares of relative errors.

    >>> fit([0, 1e6, 2e6], [0.1, 0.2, 0.3])
    Link(latency=0.1, bandwidth=10000000)
    """
    weights = [1 / time**2 for time in seconds]
    total = sum(weights)
    x = sum(w * b for w, b in zip(weights, sent, strict=True)) / total
    y = sum(w * t for w, t in zip(weights, seconds, strict=True)) / total
    covariance = sum(w * (b - x) * (t - y) for w, b, t in zip(weights, sent, seconds, strict=True))
    slope = covariance / sum(w * (b - x) ** 2 for w, b in zip(weights, sent, strict=True))
    return Link(round(max(0.0, y - slope * x), 9), round(1 / slope))


def sizes(largest: int) -> list[int]:
    """Bytes of the tensors that are measured.

    >>> sizes(100_000)
    [4096, 16384, 65536]
    """
    found = [SMALLEST]
    while found[-1] * GROWTH <= largest:
        found.append(found[-1] * GROWTH)
    return found


def _operation(name: str, size: int, processes: int) -> Callable[[], object]:
    """A call of the operation on tensors made before."""
    import torch
    import torch.distributed as dist

    whole = torch.ones(size // 4)
    part = torch.ones(size // 4 // processes)
    if name == "all-reduce":
        return lambda: dist.all_reduce(whole)
    if name == "reduce-scatter":
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        return lambda: scatter(part, whole)
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return lambda: gather(whole, part)


def _measure(rank: int, processes: int, store: str, largest: int, seconds: float, results: "Queue[object]") -> None:
    """What each process runs; rank 0 sends (operation, size, median time)."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes, timeout=PATIENCE)
    for name in OPERATIONS:
        for size in sizes(largest):
            call = _operation(name, size, processes)
            call()
            first = _timed(call)
            rounds = torch.tensor([min(max(int(seconds / first), ROUNDS[0]), ROUNDS[1])])
            dist.broadcast(rounds, 0)
            median = statistics.median(_timed(call) for _ in range(int(rounds)))
            if rank == 0:
                results.put((name, size, median))
    dist.destroy_process_group()


def _timed(call: Callable[[], object]) -> float:
    import torch.distributed as dist

    dist.barrier()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(processes: int, largest: int, seconds: float) -> dict[str, dict[int, float]]:
    """Median seconds by operation and size."""
    context = multiprocessing.get_context("spawn")
    results: Queue[object] = context.Queue()
    with tempfile.TemporaryDirectory() as directory:
        store = str(Path(directory) / "store")
        started = [
            context.Process(target=_measure, args=(rank, processes, store, largest, seconds, results))
            for rank in range(processes)
        ]
        for process in started:
            process.start()
        found = [results.get(timeout=PATIENCE.total_seconds()) for _ in OPERATIONS for _ in sizes(largest)]
        for process in started:
            process.join()
    times: dict[str, dict[int, float]] = {name: {} for name in OPERATIONS}
    for name, size, median in found:  # type: ignore[misc]
        times[name][size] = median
    return times


def line_of(operation: str, times: dict[int, float], processes: int) -> Link:
    return fit([least_sent(operation, size, processes) for size in times], list(times.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 4], help="numbers of processes")
    parser.add_argument("--largest", type=int, default=256, help="size of the largest tensor, in MB of 2**20 bytes")
    parser.add_argument("--seconds", type=float, default=1.0, help="time to measure each size, about")
    options = parser.parse_args()
    print("| operation | processes | size, kB | median, ms | line, ms |\n|---|---|---|---|---|")
    lines = []
    for count in options.counts:
        for name, times in measure(count, options.largest << 20, options.seconds).items():
            line = line_of(name, times, count)
            for size, median in times.items():
                predicted = line.seconds(least_sent(name, size, count))
                print(f"| {name} | {count} | {size // 1024:,} | {1e3 * median:,.3f} | {1e3 * predicted:,.3f} |")
            lines.append(f"| {name} | {count} | {1e6 * line.latency:,.0f} | {line.bandwidth / 1e9:.2f} |")
    print("\n| operation | processes | latency, µs | bandwidth, GB/s |\n|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
