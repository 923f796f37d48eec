"""The events that a training run yields."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.evaluation.evaluator import Score
from llmcli.formats.checkpoint import Checkpoint
from llmcli.training.planning.plan import Plan


@dataclass(frozen=True)
class Step:
    """A training step was taken."""

    step: int  # from 1
    progress: float  # of the run, 0 to 1
    loss: float  # nats per token, mean over this batch
    tokens: int  # trained on so far
    epoch: float  # passes over the training text so far
    rate: float  # learning rate as a fraction of its peak
    seconds: float  # since the run began
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluation:
    """The model was evaluated on the validation slice."""

    step: int
    bits_per_byte: float
    best: bool  # whether these weights replace the best so far


@dataclass(frozen=True)
class Sample:
    """Text that the model generates from a fixed prompt."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class TeacherTrained:
    """In distillation: the first of two models is trained, the second begins."""

    step: int
    bits_per_byte: float  # of the first, on the validation slice


@dataclass(frozen=True)
class Restarted:
    """The first steps ran at a different speed than the plan assumed, so the run starts over with another model."""

    step: int  # taken by the plan before
    seconds: float  # since the run began
    speed: float  # relative to the plan's
    before: Plan
    plan: Plan


@dataclass(frozen=True)
class State:
    """Everything that the steps after this one depend on: arrays by name, and values that JSON can hold."""

    arrays: dict[str, NDArray[Any]]
    values: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.values["step"])


@dataclass(frozen=True)
class Done:
    """The run has ended. `checkpoint` holds the best weights and the training record."""

    checkpoint: Checkpoint
    step: int
    best_step: int
    seconds: float
    score: Score | None  # of these weights, on the held-out data
    interrupted: bool
    problem: str = ""  # why the run could not continue, if it could not
    base_score: Score | None = None  # of the model that the run started from, on the same text
    adapters: Mapping[str, NDArray[np.float32]] | None = None  # the best LoRA matrices by name, if any were trained


Event = Step | Evaluation | Sample | TeacherTrained | Restarted | State | Done
