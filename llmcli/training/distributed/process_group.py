"""The process group of a run, on one machine or several: connecting the processes, exchanging tensors and
JSON (without pickle), and errors when connecting fails or a connection is lost."""

import datetime
import json
import os
import platform
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.rendezvous import rendezvous

from llmcli.errors import LLMError
from llmcli.training.distributed.processes import MAX_RESTARTS, OWN_RESTARTS, Processes

# other ranks wait while rank 0 plans or evaluates; the end of a process is detected without this limit
GROUP_TIMEOUT = datetime.timedelta(days=7)
# how long rank 0 waits for the other ranks to connect, which is the first thing they do
JOIN_TIMEOUT = datetime.timedelta(minutes=10)
# time limit for connecting: a process cannot detect that others cannot reach it
CONNECT_TIMEOUT = datetime.timedelta(minutes=1)
# exit code when another process ended: the run can be restarted (EX_TEMPFAIL in sysexits.h)
LOST_PROCESS = 75
LOOPBACK = ("lo", "lo0")  # names of the loopback interface
STOP = "llmcli/stop"  # key in the store: a signal received by a rank above 0
STOP_CHECK_SECONDS = 0.5  # between two checks of that key


class ProcessGroup:
    """The processes of a run, which call all methods in the same order, except `request_stop` and
    `stop_request`. If a process has ended, methods raise the errors that `explain_lost_process` turns into
    an LLMError."""

    def __init__(self, processes: Processes, device: str) -> None:
        """Wait until all processes have connected. `device` is the model's: "cpu", "cuda" or "mps"."""
        self.processes = processes
        self.rank = processes.rank
        self.count = processes.count
        self.is_sharded = False  # whether each process holds a part of every weight
        if device == "cuda":
            torch.cuda.set_device(processes.local_rank)
        self._device = torch.device("cuda" if device == "cuda" else "cpu")  # device of the messages
        self._store = _connect(processes, "nccl" if device == "cuda" else "gloo")
        self._next_stop_check = 0.0  # time of the next check for a stop request
        self.stop_signal: int | None = None  # the last signal for which this process asked rank 0 to stop

    def close(self) -> None:
        with suppress(RuntimeError):
            dist.barrier()
        dist.destroy_process_group()

    def request_stop(self, signal: int, _: object = None) -> None:
        """Ask rank 0 to end the run because of a signal."""
        self.stop_signal = signal
        with suppress(RuntimeError):  # rank 0 has ended
            self._store.set(STOP, str(signal))

    def stop_request(self) -> int | None:
        """Return the signal for which another process asked rank 0 to end the run, or None."""
        now = time.monotonic()
        if now < self._next_stop_check:
            return None
        self._next_stop_check = now + STOP_CHECK_SECONDS
        return int(self._store.get(STOP)) if self._store.check([STOP]) else None

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Overwrite a tensor with rank 0's; its shape and dtype are the same everywhere."""
        return self._overwrite(tensor, lambda sent: dist.broadcast(sent, 0))

    def broadcast_json(self, value: Any = None) -> Any:
        """Send rank 0's value to all ranks, and return it."""
        data = json.dumps(value).encode() if self.rank == 0 else b""
        size = int(self.broadcast(torch.tensor([len(data)])))
        content = (
            torch.frombuffer(bytearray(data), dtype=torch.uint8)
            if data
            else torch.empty(size, dtype=torch.uint8)
        )
        return json.loads(self.broadcast(content).numpy().tobytes())

    def sum(self, tensor: Tensor) -> Tensor:
        """Overwrite a tensor with the sum over all processes."""
        return self._overwrite(tensor, dist.all_reduce)

    def _overwrite(self, tensor: Tensor, collective: Callable[[Tensor], object]) -> Tensor:
        sent = tensor.to(self._device).contiguous()  # a view would be sent with the memory between its values
        collective(sent)
        return tensor if sent is tensor else tensor.copy_(sent)

    def part_length(self, length: int) -> int:
        """Return the number of values per process if `length` values are divided, with padding at the end."""
        return -(-length // self.count)

    def sum_part(self, tensor: Tensor) -> Tensor:
        """Sum a tensor [n, ...] over all processes; return this process's part, [`part_length`(n), ...]."""
        size = self.part_length(len(tensor))
        if missing := size * self.count - len(tensor):
            tensor = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
        part = tensor.new_empty(size, *tensor.shape[1:])
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        scatter(part, tensor.contiguous())
        return part

    def rows_of(self, rank: int, length: int) -> range:
        """Return the range of `length` rows that a process has. FSDP2 shards weights in the same way."""
        size = self.part_length(length)
        return range(length)[rank * size : (rank + 1) * size]

    def rows(self, tensor: Tensor) -> Tensor:
        """Select this process's rows of a tensor [n, ...] that all processes have."""
        own = self.rows_of(self.rank, len(tensor))
        return tensor[own.start : own.stop]

    def gather(self, part: Tensor, length: int) -> Tensor:
        """Gather the tensor [length, ...] from the rows of all processes."""
        if missing := self.part_length(length) - len(part):
            part = torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
        whole = part.new_empty(self.count * len(part), *part.shape[1:])
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(whole, part.contiguous())
        return whole[:length]

    def exchange(self, sent: Sequence[Tensor], received: Sequence[int]) -> list[Tensor]:
        """Send rows to every rank and receive rows from it; `received` has the number of rows per rank."""
        rows = torch.cat(list(sent))
        result = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(result, rows, list(received), [len(part) for part in sent])
        return list(torch.split(result, list(received)))


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turn errors of torch.distributed into an LLMError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise lost_process() from error
        raise


def _connect(processes: Processes, backend: str) -> Any:
    """Wait for all processes and connect them; return a torch.distributed.Store for this group."""
    try:
        # torchrun starts it before its processes
        store, _, _ = next(rendezvous("env://", timeout=CONNECT_TIMEOUT))
        store.set_timeout(GROUP_TIMEOUT)
        prefix = meet(store, processes)
    except RuntimeError as error:
        raise lost_process() from error
    store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    try:
        dist.init_process_group(
            backend, store=store, rank=processes.rank, world_size=processes.count, timeout=CONNECT_TIMEOUT
        )
    except RuntimeError as error:
        raise _unreachable(processes, error) from error
    _set_pg_timeout(GROUP_TIMEOUT)
    return store


def meet(store: Any, processes: Processes) -> str:
    """Return a new group name shared by all ranks: torchrun's store keeps addresses of ended processes."""
    own = uuid.uuid4().hex
    if processes.rank:
        store.set(f"llmcli/joined/{processes.rank}", own)
        return str(store.get(f"llmcli/answer/{own}").decode())
    joined = [f"llmcli/joined/{rank}" for rank in range(1, processes.count)]
    store.wait(joined, JOIN_TIMEOUT)
    for key in joined:
        store.set(f"llmcli/answer/{store.get(key).decode()}", own)
        store.delete_key(key)
    return own


def lost_process() -> LLMError:
    problem = "another process of this run has ended, or cannot be reached"
    if int(os.environ.get(OWN_RESTARTS, MAX_RESTARTS)) < MAX_RESTARTS:
        return LLMError(problem, LOST_PROCESS)  # the launcher notes the restart
    return LLMError(
        f"{problem}; unless the processes restart automatically, start the same command again: it resumes "
        "from the last saved state",
        LOST_PROCESS,
    )


def _unreachable(processes: Processes, error: RuntimeError) -> LLMError:
    if not processes.are_on_several_machines:
        return lost_process()
    reason = str(error).partition("\n")[0].rpartition("] ")[2]  # without the position in torch's source code
    names = [name for _, name in socket.if_nameindex() if name not in LOOPBACK] or ["eth0"]
    return LLMError(
        f"the process on {platform.node()} cannot connect to the processes on other machines ({reason}); set "
        "GLOO_SOCKET_IFNAME (on GPUs: NCCL_SOCKET_IFNAME) to the network interface between them on each "
        f"machine, and start again: GLOO_SOCKET_IFNAME={names[0]} torchrun ...",
        LOST_PROCESS,
    )
