"""How long a training step takes in several processes, and what they send each other, by formula.

Follows llmcli/training: data_parallel.py, muon.py, optimizer.py and sharded_model.py. Replicated weights:
each process sums the gradients of its part of the matrices (reduce-scatter) and gathers the updates of all, in the data
type of Muon's products; the other gradients are summed everywhere (all-reduce). Sharded weights (FSDP2): for each
micro-batch the layers are gathered in float32 when they are used, forward and backward, and their gradients are reduced
to the owners of the parts; for Muon, the parts of a matrix are sent to one process and back. N = processes.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from llmcli.config import EMBEDDING, HEAD, ModelConfig, TrainConfig
from llmcli.training.planning.cost_model import FLOAT32, activation_size, flops_per_token, micro_batches
from llmcli.training.planning.recipe import POLAR_EXPRESS
from tests.benchmarks.collectives import OPERATIONS, Link, least_sent

MESSAGES = 3  # small ones of each step: what to do, the batch, whether all have its loss
EXCHANGE = "all-to-all"


@dataclass(frozen=True)
class Transfer:
    """One collective operation of a step."""

    operation: str
    size: float  # bytes of the tensor
    overlapped: bool = False  # with what is computed before or after it

    def sent(self, processes: int) -> float:
        """Bytes that each process has to send."""
        return least_sent(self.operation, self.size, processes)


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


def transfers(model: ModelConfig, train: TrainConfig, processes: int, sharded: bool) -> list[Transfer]:
    """The collective operations of a step; none of one process."""
    if processes == 1:
        return []
    divided = {  # numbers in the matrices of a shape, as many at each process
        shape: per_process(count, processes) * processes * math.prod(shape)
        for shape, count in matrix_groups(model).items()
    }
    product = activation_size(train)  # bytes of a number in Muon's products
    messages = [Transfer("all-reduce", 0.0)] * MESSAGES
    if not sharded:
        summed = [Transfer("reduce-scatter", FLOAT32 * numbers) for numbers in divided.values()]
        gathered = [Transfer("all-gather", product * numbers) for numbers in divided.values()]
        return [*messages, *summed, *gathered, Transfer("all-reduce", FLOAT32 * others(model))]
    exchanged = [Transfer(EXCHANGE, product * numbers / processes) for numbers in divided.values()]
    passes = _passes(model) * micro_batches(model, train, processes)
    return [*messages, *passes, *exchanged, *exchanged]  # there and back


def _passes(model: ModelConfig) -> list[Transfer]:
    """Of sharded weights, in a forward and a backward pass. While a layer computes, the next one is gathered, and the
    gradients of the one before are reduced. Nothing is computed while the embeddings and the first layer are gathered,
    and while their gradients are reduced, the last of all."""
    layers, embeddings = model.num_hidden_layers, FLOAT32 * others(model)
    layer = (FLOAT32 * model.parameters - embeddings) / layers
    ends = [Transfer(operation, size) for operation in ("all-gather", "reduce-scatter") for size in (embeddings, layer)]
    gathered = [Transfer("all-gather", layer, overlapped=True)] * (2 * layers - 1)
    reduced = [Transfer("reduce-scatter", layer, overlapped=True)] * (layers - 1)
    return [*ends, *gathered, *reduced]


def bytes_sent(model: ModelConfig, train: TrainConfig, processes: int, sharded: bool) -> float:
    """By each process in a step."""
    return sum(transfer.sent(processes) for transfer in transfers(model, train, processes, sharded))


def step(
    model: ModelConfig, train: TrainConfig, processes: int, rate: float, links: Mapping[str, Link], sharded: bool
) -> Step:
    """A step, of which each process computes a part at `rate` FLOP/s."""
    passes = flops_per_token(model, train.context) * train.context * train.batch_size / processes / rate
    found = [
        (transfer.overlapped, links[transfer.operation].seconds(transfer.sent(processes)))
        for transfer in transfers(model, train, processes, sharded)
    ]
    communication = sum(seconds for _, seconds in found)
    hidden = min(passes, sum(seconds for overlapped, seconds in found if overlapped))
    return Step(passes + muon_flops(model, processes) / rate, communication, communication - hidden)


def same_link(link: Link) -> dict[str, Link]:
    """All operations at the speed of one link."""
    return dict.fromkeys((*OPERATIONS, EXCHANGE), link)
