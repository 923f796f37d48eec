"""The position of a training run between two steps, and its history so far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from llmcli.config import TrainConfig, convert_fields

HISTORY = ("evaluations", "samples", "predictions")


@dataclass
class Position:
    """Counters, the best evaluation so far, the current regularization, and the history. The field names are
    stored in resume files."""

    step: int = 0
    progress: float = 0.0  # share of the run, 0 to 1
    evaluated_step: int = 0  # step of the last evaluation
    evaluated_progress: float = 0.0
    best_step: int = 0
    best_bits: float | None = None  # bits per byte on the validation slice; None before the first evaluation
    best_factor: float = 1.0  # factor on the logits of the best weights (best_weights.py)
    dropout: float = 0.0
    token_split: float = 0.0  # BPE-dropout
    regularized_progress: float = 0.0  # progress when these two were last chosen
    # changes: [step, epochs, dropout, BPE-dropout]
    regularizations: list[list[float]] = field(default_factory=list)
    conversations_from: int | None = None  # number of steps before the conversations; None: not begun
    stage_start: float = 0.0  # progress of the run at the start of the current stage (loop/run.py) ...
    stage_end: float = 1.0  # ... and at its end
    student_from: int | None = None  # number of steps before the student in distillation; None: not begun
    # (step, bits per byte), (step, text) and (step, likeliest words of the probe); too long for an error
    evaluations: list[tuple[int, float]] = field(default_factory=list, repr=False)
    samples: list[tuple[int, str]] = field(default_factory=list, repr=False)
    predictions: list[tuple[int, Any]] = field(default_factory=list, repr=False)

    @property
    def stage_progress(self) -> float:
        """Progress of the current stage, 0 to 1: the whole run, or the training of one of two models. (The
        progress of the run may decrease: on a machine that becomes faster, the final evaluations need less
        time.)"""
        return max(0.0, self.progress - self.stage_start) / (self.stage_end - self.stage_start)

    @property
    def stage_step(self) -> int:
        return self.step - (self.student_from or 0)

    def restore(self, values: Mapping[str, Any], settings: TrainConfig) -> None:
        """Restore the values of a stopped run. Raises KeyError, TypeError or ValueError if they are not
        valid."""
        for name in (item.name for item in fields(self)):
            value = values[name]
            setattr(self, name, [(step, each) for step, each in value] if name in HISTORY else value)
        convert_fields(self)
        earlier = (
            self.best_step,
            self.evaluated_step,
            self.conversations_from or 0,
            self.student_from or 0,
        )
        if not (
            0 <= min(earlier) <= max(earlier) <= self.step <= settings.steps
            and 0 <= self.progress < math.inf
            and 0 <= self.dropout < 1
            and 0 <= self.token_split <= 1
            and 0 < self.best_factor < math.inf
            and 0 <= self.stage_start < self.stage_end <= 1
        ):
            raise ValueError(str(self))
