"""What a run is to do: what it trains, on which data, with what it computes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmcli.formats.checkpoint import Checkpoint
from llmcli.training.data.run_data import RunData
from llmcli.training.planning import recipe
from llmcli.training.planning.plan import Plan, Regularization
from llmcli.training.step.data_parallel import Leader
from llmcli.training.step.thread_tuner import ThreadTuner
from llmcli.training.step.training_step import Compute


@dataclass(frozen=True)
class EvaluationSchedule:
    """How much training has to lie between two evaluations."""

    training_per_evaluated: float = recipe.TRAINING_PER_EVALUATED  # tokens trained on, per token evaluated, at least
    min_progress: float = recipe.EVALUATION_INTERVAL  # of the run, at least
    long_evaluation: float = 5e11  # FLOPs (a few seconds on a few cores), before which the state of the run is saved

    def is_due(self, trained: int, evaluated: int, progress: float) -> bool:
        """Whether to evaluate `evaluated` tokens, after `trained` tokens and `progress` (0 to 1) since the last."""
        return trained >= self.training_per_evaluated * evaluated and progress >= self.min_progress


@dataclass(frozen=True)
class Job:
    """A run before it begins. It evaluates the held-out answers of its data, if these have conversations."""

    plan: Plan
    data: RunData
    record: dict[str, Any]  # describes the corpus; it becomes part of the training record
    start: Checkpoint | None = None  # the model that is trained further; None: fresh weights
    sample_prompt: str | None = None
    regularize: Callable[[float], Regularization] | None = None  # by the number of epochs, in a run with a time limit
    tuner: ThreadTuner | None = None  # chooses the number of threads from step to step, in a run with a time limit
    schedule: EvaluationSchedule = EvaluationSchedule()
    compute: Compute = field(default_factory=Compute)
    leader: Leader | None = None  # of several processes, which compute each step together
    save_due: Callable[[], bool] = lambda: False  # whether to yield a State, from which a run can be resumed
    on_progress: Callable[[float], None] = lambda share: None  # of text that a base model generates first

    @property
    def is_sharded(self) -> bool:
        """Whether each process has a part of the weights."""
        return self.plan.sharded and self.leader is not None
