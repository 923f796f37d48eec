"""The inputs of a run: plan, data, initial weights, time and compute."""

from collections.abc import Callable
from dataclasses import dataclass

from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.training_record import TrainingRecord
from llmcli.training.data.run_data import RunData
from llmcli.training.loop.clock import Clock
from llmcli.training.planning.plan import Plan
from llmcli.training.step.data_parallel import Leader
from llmcli.training.step.thread_tuner import ThreadTuner


@dataclass(frozen=True)
class Job:
    """A run that has not begun. If the data include conversations, their held-out answers are evaluated."""

    plan: Plan
    data: RunData
    record: TrainingRecord  # the part about the corpus; loop/record.py adds the rest
    clock: Clock
    start: Checkpoint | None = None  # initial model; None: fresh weights
    sample_prompt: str | None = None
    # prompt or question; None: a held-out question or, without conversations, no predictions
    probe: str | None = None
    # (dropout, BPE-dropout) by the number of epochs, in a run with a time limit
    regularize: Callable[[float], tuple[float, float]] | None = None
    # chooses the number of threads from step to step, in a run with a time limit
    tuner: ThreadTuner | None = None
    leader: Leader | None = None  # rank 0 of several processes, which compute each step together
    save_due: Callable[[], bool] = lambda: False  # whether to yield a State for resuming
    # receives the progress of the base model's text generation before the first step
    on_progress: Callable[[float], None] = lambda share: None

    @property
    def is_sharded(self) -> bool:
        """Whether each process has a part of the weights."""
        return self.plan.sharded and self.leader is not None
