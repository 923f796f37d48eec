"""The group of the processes of a run: what they send each other. Without pickle: tensors, and JSON as bytes.

N = processes.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmcli.training.distributed.connection import connect, lost_process
from llmcli.training.distributed.processes import Processes

STOP = "llmcli/stop"  # key in the store: a signal that another process than rank 0 has received
LOOK_SECONDS = 0.5  # between two looks at it


class ProcessGroup:
    """All processes of a run, connected. Every method is called by all of them in the same order.

    Raises LLMError when another process has ended.
    """

    def __init__(self, processes: Processes, device: str) -> None:
        """Wait until all have connected. `device` is that of the model: "cpu", "cuda" or "mps"."""
        self.processes = processes
        if device == "cuda":
            torch.cuda.set_device(processes.local_rank)
        self._device = torch.device("cuda" if device == "cuda" else "cpu")  # of what is sent
        self._store = connect(processes, "nccl" if device == "cuda" else "gloo")
        self._next_look = 0.0  # when to look for a stop request again

    @property
    def rank(self) -> int:
        return self.processes.rank

    @property
    def count(self) -> int:
        return self.processes.count

    def close(self) -> None:
        """Wait for the others, if they still run, and disconnect."""
        with suppress(RuntimeError):
            dist.barrier()
        dist.destroy_process_group()

    def request_stop(self, signal: int) -> None:
        """Ask rank 0 to end the run because of a signal; only this method is called by one process alone."""
        self._store.set(STOP, str(signal))

    def stop_request(self) -> int | None:
        """The signal for which another process asked rank 0 to end the run."""
        now = time.monotonic()
        if now < self._next_look:
            return None
        self._next_look = now + LOOK_SECONDS
        with explain_lost_process():
            return int(self._store.get(STOP)) if self._store.check([STOP]) else None

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Overwrite a tensor with that of rank 0; its shape and dtype are the same everywhere."""
        return self._overwrite(tensor, lambda sent: dist.broadcast(sent, 0))

    def broadcast_all(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self.broadcast(tensor.data)

    def broadcast_json(self, value: Any = None) -> Any:
        """The value that rank 0 gives."""
        data = json.dumps(value).encode() if self.rank == 0 else b""
        size = int(self.broadcast(torch.tensor([len(data)])))
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(size, dtype=torch.uint8)
        return json.loads(self.broadcast(content).numpy().tobytes())

    def sum(self, tensor: Tensor) -> Tensor:
        """Overwrite a tensor with the sum over all processes."""
        return self._overwrite(tensor, dist.all_reduce)

    def _overwrite(self, tensor: Tensor, collective: Callable[[Tensor], object]) -> Tensor:
        """Overwrite a tensor with the result of a collective operation that works in place."""
        sent = tensor.to(self._device).contiguous()  # a view would be sent with what lies between its values
        with explain_lost_process():
            collective(sent)
        return tensor if sent is tensor else tensor.copy_(sent)

    def part_length(self, length: int) -> int:
        """How many of `length` values each process has; the last ones may have fewer, filled up with zeros."""
        return -(-length // self.count)

    def sum_part(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of the part of a tensor [n, ...] that this one has: [`part_length`(n), ...]."""
        size = self.part_length(len(tensor))
        if missing := size * self.count - len(tensor):
            tensor = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
        part = tensor.new_empty(size, *tensor.shape[1:])
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        with explain_lost_process():
            scatter(part, tensor.contiguous())
        return part

    def rows_of(self, rank: int, length: int) -> range:
        """Which of `length` rows a process has. FSDP2 shards weights in the same way."""
        size = self.part_length(length)
        return range(length)[rank * size : (rank + 1) * size]

    def rows(self, tensor: Tensor) -> Tensor:
        """The rows of a tensor [n, ...], known to all, that this process has."""
        own = self.rows_of(self.rank, len(tensor))
        return tensor[own.start : own.stop]

    def part(self, tensor: Tensor) -> Tensor:
        """As `rows`, filled up with zeros: as `sum_part`."""
        return self._filled(self.rows(tensor), len(tensor))

    def _filled(self, rows: Tensor, length: int) -> Tensor:
        """The rows of this process, filled up with zeros to the `part_length` of `length`."""
        return torch.cat([rows, rows.new_zeros(self.part_length(length) - len(rows), *rows.shape[1:])])

    def gather(self, part: Tensor, length: int) -> Tensor:
        """The tensor [length, ...] whose parts the processes have."""
        whole = part.new_empty(self.count * len(part), *part.shape[1:])
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        with explain_lost_process():
            gather(whole, part.contiguous())
        return whole[:length]

    def gather_rows(self, rows: Tensor, length: int) -> Tensor:
        """As `gather`, of parts that are not filled up with zeros."""
        return self.gather(self._filled(rows, length), length)

    def exchange(self, sent: Sequence[Tensor], received: Sequence[int]) -> list[Tensor]:
        """Send rows to every process, by its rank, and receive rows from every process: `received` are their numbers.
        All rows have the same shape."""
        rows = torch.cat(list(sent))
        result = rows.new_empty(sum(received), *rows.shape[1:])
        with explain_lost_process():
            dist.all_to_all_single(result, rows, list(received), [len(part) for part in sent])
        return list(torch.split(result, list(received)))


class explain_lost_process:  # noqa: N801 (used as a function, many times per step)
    """Turns the errors of torch.distributed into an LLMError."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise lost_process(Processes.of()) from error
