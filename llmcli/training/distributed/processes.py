"""The processes of a training run, read from the environment variables that torchrun sets. Fast to import."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from llmcli.errors import LLMError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RESTARTS = "TORCHELASTIC_RESTART_COUNT"  # number of restarts by torchrun
OWN_RESTARTS = "LLMCLI_RESTARTS"  # number of restarts by `llm train --processes`
MAX_RESTARTS = 3  # by `llm train --processes`
BEGAN = "LLMCLI_BEGAN"  # start of `llm train --processes`, for its processes (cli/process_start.py)


@dataclass(frozen=True)
class Processes:
    """This process's rank among the processes of a run. Rank 0 reads, plans, prints and saves."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # rank among the processes on this machine
    local_count: int = 1
    restarts: int = 0  # number of restarts after a process ended
    began: float | None = None  # start of the command that started the processes (time.monotonic)

    @classmethod
    def of(cls, values: Mapping[str, str] = os.environ) -> "Processes":
        """Read torchrun's variables; without any, there is one process. Raises LLMError if some are
        missing."""
        present = [name for name in VARIABLES if name in values]
        if not present or values.get("WORLD_SIZE") == "1":
            return cls()
        if missing := [name for name in VARIABLES if name not in values]:
            raise LLMError(
                f"the environment has torchrun's variable {present[0]}, but not {missing[0]}; start the run "
                "with torchrun, or with llm train --processes N"
            )
        try:
            rank, count, local_rank, local_count = (int(values[name]) for name in VARIABLES[:4])
            restarts = int(values.get(RESTARTS, "0")) + int(values.get(OWN_RESTARTS, "0"))
            began = float(values[BEGAN]) if BEGAN in values else None
            return cls(rank, count, local_rank, local_count, restarts, began)
        except ValueError as error:
            raise LLMError(f"RANK and WORLD_SIZE, set by torchrun, must be numbers: {error}") from error

    @property
    def are_several(self) -> bool:
        return self.count > 1

    @property
    def are_on_several_machines(self) -> bool:
        return self.count > self.local_count

    def threads(self, cores: int) -> int:
        """Return the threads per process on a machine with this many cores."""
        return max(1, cores // self.local_count)
