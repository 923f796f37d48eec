"""How much memory and time a training step needs in several processes, by formula.

Follows llmcli/training: data_parallel.py and optimizer.py. Replicated: every process has all weights, sums its part of
the matrices (reduce-scatter), and gathers their updates; the other gradients are summed everywhere (all-reduce).
Sharded (FSDP2): weights, gradients and the optimizer's state are divided among the processes; a layer is gathered in
float32 when it is used, forward and backward, and its gradients are reduced to their owners; for Muon, the parts of a
matrix are sent to one process and back. N = processes.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from llmcli.config import EMBEDDING, HEAD, ModelConfig, TrainConfig
from llmcli.training.cost_model import FLOAT32, _optimizer_bytes, flops_per_token, memory_needed
from llmcli.training.optimizer import POLAR_EXPRESS
from tests.benchmarks.collectives import OPERATIONS, Link, least_sent

BFLOAT16 = 2.0  # bytes
MESSAGES = 3  # small ones of each step: what to do, the batch, whether all have its loss
GATHERED_LAYERS = 2  # at a time, of sharded weights: the one in use and the next; the embeddings stay
EXCHANGE = "all-to-all"


@dataclass(frozen=True)
class Transfer:
    """One collective operation of a step."""

    operation: str
    size: float  # bytes of the tensor


@dataclass(frozen=True)
class Step:
    """The time of a step, in seconds."""

    compute: float
    communication: float
    exposed: float  # communication while nothing is computed

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed


def matrix_groups(model: ModelConfig) -> Counter[tuple[int, ...]]:
    """The matrices that Muon updates: how many there are of each shape."""
    shapes = model.tensor_shapes()
    return Counter(shape for name, shape in shapes.items() if len(shape) == 2 and name not in (EMBEDDING, HEAD))


def others(model: ModelConfig) -> int:
    """Parameters that AdamW updates."""
    return model.parameters - sum(count * math.prod(shape) for shape, count in matrix_groups(model).items())


def per_process(count: int, processes: int) -> int:
    """Matrices of one shape that a process updates, as ProcessGroup.part_length: the last may have fewer, but send as
    many."""
    return -(-count // processes)


def muon_flops(model: ModelConfig, processes: int) -> float:
    """FLOPs of orthogonalizing the matrices of a process. An iteration multiplies (m, n) by its transpose, the result
    by itself and by (m, n), where m is the smaller side."""
    return sum(
        per_process(count, processes) * len(POLAR_EXPRESS) * (4 * min(shape) ** 2 * max(shape) + 2 * min(shape) ** 3)
        for shape, count in matrix_groups(model).items()
    )


def transfers(model: ModelConfig, processes: int, sharded: bool) -> list[Transfer]:
    """The collective operations of a step; none of one process."""
    if processes == 1:
        return []
    messages = [Transfer("all-reduce", 0.0)] * MESSAGES
    if not sharded:
        sizes = [
            FLOAT32 * per_process(count, processes) * processes * math.prod(shape)
            for shape, count in matrix_groups(model).items()
        ]
        matrices = [Transfer(operation, size) for size in sizes for operation in ("reduce-scatter", "all-gather")]
        return [*messages, *matrices, Transfer("all-reduce", FLOAT32 * others(model))]
    layers, embeddings = model.num_hidden_layers, FLOAT32 * others(model)
    layer = (FLOAT32 * model.parameters - embeddings) / layers
    gathered = [Transfer("all-gather", embeddings), *[Transfer("all-gather", layer)] * 2 * layers]
    reduced = [Transfer("reduce-scatter", embeddings), *[Transfer("reduce-scatter", layer)] * layers]
    exchanged = [
        Transfer(EXCHANGE, BFLOAT16 * count * math.prod(shape) / processes)
        for shape, count in matrix_groups(model).items()
    ] * 2
    return [*messages, *gathered, *reduced, *exchanged]


def bytes_sent(model: ModelConfig, processes: int, sharded: bool) -> float:
    """By each process in a step."""
    found = transfers(model, processes, sharded)
    return sum(least_sent(transfer.operation, transfer.size, processes) for transfer in found)


def overlapping(model: ModelConfig, sharded: bool) -> float:
    """The share of communication that runs while something is computed: none of replicated weights today; of sharded
    ones all but that of the first layer, which nothing precedes."""
    return 1 - 1 / model.num_hidden_layers if sharded else 0.0


def step(
    model: ModelConfig, context: int, tokens: int, processes: int, rate: float, links: Mapping[str, Link], sharded: bool
) -> Step:
    """A step of `tokens` tokens, of which each process computes a part at `rate` FLOP/s."""
    operations = flops_per_token(model, context) * tokens / processes + muon_flops(model, processes)
    compute = operations / rate
    communication = sum(
        links[transfer.operation].seconds(least_sent(transfer.operation, transfer.size, processes))
        for transfer in transfers(model, processes, sharded)
    )
    hidden = min(compute, overlapping(model, sharded) * communication)
    return Step(compute, communication, communication - hidden)


def memory(model: ModelConfig, train: TrainConfig, processes: int, sharded: bool) -> float:
    """Bytes on the GPU of a process that computes `train.batch_size` windows of a step."""
    needed = memory_needed(model, train).device
    optimizer = _optimizer_bytes(model, train)
    weights = FLOAT32 * model.parameters
    if not sharded:  # Muon's momenta are divided among the processes
        momenta = FLOAT32 * (model.parameters - others(model))
        return needed - momenta * (1 - 1 / processes)
    copies = BFLOAT16 * model.parameters  # of all matrices, as they are multiplied
    layer = (model.parameters - others(model)) / model.num_hidden_layers
    divided = weights + weights + optimizer  # the second are the gradients
    gathered = 2 * FLOAT32 * (others(model) + GATHERED_LAYERS * layer)  # with their gradients
    return needed - copies - divided * (1 - 1 / processes) + gathered


def same_link(link: Link) -> dict[str, Link]:
    """All operations at the speed of one link."""
    return dict.fromkeys((*OPERATIONS, EXCHANGE), link)
