"""Starting several processes on this machine with torch's own launcher, as torchrun does."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from llmcli.training.distributed.process_group import LOST_PROCESS
from llmcli.training.distributed.processes import BEGAN, MAX_RESTARTS, OWN_RESTARTS

SAVING_SECONDS = 60  # time for the processes to end after a signal


def launch(count: int, arguments: Sequence[str], on_note: Callable[[str], None]) -> int:
    """Run `llm` with these arguments in `count` processes; return the exit code of rank 0, or of a failed
    process. If a process is killed, all are restarted, and the run resumes from its last saved state."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each sets its own number of threads
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no stack frames when a process is lost
    logging.disable(logging.ERROR)  # torch also logs the exit code, through loggers with separate levels
    command = ["-m", "llmcli", *arguments]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # torch would also restart them after a user error
        shutdown_timeout=SAVING_SECONDS,
        logs_specs=DefaultLogsSpecs(os.devnull),  # otherwise each run leaves an empty temporary directory
    )
    for restarts in range(MAX_RESTARTS + 1):
        os.environ[OWN_RESTARTS] = str(restarts)
        config.run_id = str(uuid.uuid4())
        try:
            elastic_launch(config, sys.executable)(*command)
            return 0
        except SignalException as error:
            return 128 + int(error.sigval)
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            if not _may_restart(codes) or restarts == MAX_RESTARTS:
                code = codes.get(0, next(iter(codes.values())))
                return 128 - code if code < 0 else code
        on_note("a process of this run was killed; restarting all processes from the last saved state")
        os.environ.pop(BEGAN, None)  # the saved state includes the seconds before
    return 1


def _may_restart(codes: Mapping[int, int]) -> bool:
    """Return whether a process was killed or lost another process, unless rank 0 ended with an error."""
    if codes.get(0, 0) > 0 and codes[0] not in (LOST_PROCESS, 128 + signal.SIGTERM):
        return False
    return any(code < 0 or code == LOST_PROCESS for code in codes.values())
