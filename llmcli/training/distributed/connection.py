"""Connecting the processes of a run, on one machine or several, and the errors where that fails or does not last."""

import datetime
import os
import platform
import socket
import uuid
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.rendezvous import rendezvous

from llmcli.errors import LLMError
from llmcli.training.distributed.processes import Processes

PATIENCE = datetime.timedelta(days=7)  # the others wait while rank 0 plans or evaluates; an ended process is noticed
JOINING = datetime.timedelta(minutes=10)  # rank 0 waits for the others, which have nothing to do before
CONNECTING = datetime.timedelta(minutes=1)  # a process that others cannot reach does not notice that
LOST_PROCESS = 75  # exit code when another process ended: the run can be started again (EX_TEMPFAIL of sysexits.h)
LAUNCHER = os.getppid()  # the process that started this one, and starts it again
LOOPBACK = ("lo", "lo0")  # names of the interface by which a machine reaches itself


def connect(processes: Processes, backend: str) -> Any:
    """Wait for all processes and connect each with each other; returns a torch.distributed.Store of this group.

    Raises LLMError if one has ended or cannot be reached.
    """
    try:
        store, _, _ = next(rendezvous("env://", timeout=CONNECTING))  # torchrun has started it before its processes
        store.set_timeout(PATIENCE)
        prefix = meet(store, processes)
    except RuntimeError as error:
        raise lost_process(processes) from error
    store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    try:
        dist.init_process_group(
            backend, store=store, rank=processes.rank, world_size=processes.count, timeout=CONNECTING
        )
    except RuntimeError as error:
        raise _unreachable(processes, error) from error
    _set_pg_timeout(PATIENCE)
    return store


def meet(store: Any, processes: Processes) -> str:
    """A name that all processes agree on, and that no earlier group has had.

    torchrun keeps its store when it starts the processes again, with the addresses of those that have ended in it.
    """
    own = uuid.uuid4().hex
    if processes.rank:
        store.set(f"llmcli/joined/{processes.rank}", own)
        return str(store.get(f"llmcli/answer/{own}").decode())
    joined = [f"llmcli/joined/{rank}" for rank in range(1, processes.count)]
    store.wait(joined, JOINING)
    for key in joined:
        store.set(f"llmcli/answer/{store.get(key).decode()}", own)
        store.delete_key(key)
    return own


def lost_process(processes: Processes) -> LLMError:
    """The error of a process that has lost another one."""
    will_restart = processes.restarts_left and os.getppid() == LAUNCHER  # else that one was killed
    again = "all are started again, and resume" if will_restart else "start the same command again to resume"
    return LLMError(
        f"another process of this run has ended, or cannot be reached; {again} from the last saved state", LOST_PROCESS
    )


def _unreachable(processes: Processes, error: RuntimeError) -> LLMError:
    """The error of a process that is not connected with another one: between machines, mostly of the network."""
    if not processes.are_on_several_machines:
        return lost_process(processes)
    reason = str(error).partition("\n")[0].rpartition("] ")[2]  # without the place in torch's source
    names = [name for _, name in socket.if_nameindex() if name not in LOOPBACK] or ["eth0"]
    return LLMError(
        f"the process on {platform.node()} cannot be connected with those of other machines ({reason}); set "
        "GLOO_SOCKET_IFNAME (on GPUs: NCCL_SOCKET_IFNAME) to the network interface between them on each machine, and "
        f"start again: GLOO_SOCKET_IFNAME={names[0]} torchrun ...",
        LOST_PROCESS,
    )
