"""The events that a training run yields."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from llmcli.evaluation.evaluator import Score
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.runtime import Array
from llmcli.training.planning.plan import Plan


@dataclass(frozen=True)
class Step:
    """A training step."""

    step: int  # counted from 1
    progress: float  # share of the run, 0 to 1
    loss: float  # nats per token, mean over this batch
    tokens: int  # trained on so far
    epoch: float  # passes over the training text so far
    rate: float  # learning rate as a fraction of its peak
    seconds: float  # since the run began
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluation:
    """An evaluation on the validation slice."""

    step: int
    bits_per_byte: float
    best: bool  # whether these weights replace the best so far


@dataclass(frozen=True)
class Sample:
    """Text generated from a fixed prompt."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Prediction:
    """The likeliest next words after the probe prompt, predicted by the network alone."""

    step: int
    prompt: str
    next: tuple[tuple[str, float], ...]  # (word, probability), likeliest first


@dataclass(frozen=True)
class TeacherTrained:
    """The end of the teacher's training and the start of the student, in distillation."""

    step: int
    bits_per_byte: float  # the teacher's validation loss


@dataclass(frozen=True)
class Restarted:
    """The run starts over with the number of epochs that it found (`plan.search`)."""

    step: int  # steps taken with the previous plan
    seconds: float  # since the run began
    plan: Plan


@dataclass(frozen=True)
class State:
    """The state on which all later steps depend: arrays by name, and JSON values."""

    arrays: dict[str, NDArray[Any]]
    values: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.values["step"])


@dataclass(frozen=True)
class Done:
    """The end of the run. `checkpoint` holds the best weights and the training record."""

    checkpoint: Checkpoint
    step: int
    best_step: int
    seconds: float
    score: Score | None  # score of these weights on the held-out data
    interrupted: bool
    problem: str = ""  # the reason if the run could not continue
    base_score: Score | None = None  # the initial model's score on the same text
    # best LoRA matrices by name, if they were trained
    adapters: Mapping[str, Array] | None = None


RunEvent = Step | Evaluation | Prediction | Sample | TeacherTrained | Restarted  # shown to users
Event = RunEvent | State | Done
