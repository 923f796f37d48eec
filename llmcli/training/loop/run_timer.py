"""Reads the clock of a run: how long it has taken, and when a pass through the model is given up, at the time limit or
soon after Ctrl-C. The estimates are made by RunClock, which reads no clock.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llmcli.config import TrainConfig
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.interruption import stop_between_layers
from llmcli.training.loop.run_clock import RunClock
from llmcli.training.step.initialization import eager_without_compiler

FIRST_STEP_SECONDS = 10.0  # the first step may take this long ...
FIRST_STEP_SHARE = 0.25  # ... or this share of the run, if that is more
STEP_PATIENCE = 1.0  # a step or an evaluation that has taken more seconds than this is cut short at Ctrl-C ...
FINAL_PATIENCE = 3.0  # ... and so is an evaluation that follows the last step
LOADING_SECONDS_PER_MILLION = 0.015  # parameters, into another model, before anything is evaluated
GRACE = 1.5  # seconds in which a run that is late still evaluates what it has trained


class RunTimer:
    """`now` is in seconds; `stop` returns whether the user asked the run to stop."""

    def __init__(self, settings: TrainConfig, now: Callable[[], float], stop: Callable[[], bool]) -> None:
        self._settings, self.now, self.stop = settings, now, stop
        self.clock: RunClock | None = None  # only with a time limit
        self._grace_end: float | None = None  # in seconds since the run began; None: the run is not late

    def begin(self, started_at: float) -> None:
        """The run began at `started_at`, its training begins now."""
        self.began, self._training_began, self._earlier_step_seconds = started_at, self.now(), 0.0

    def resume(self, values: Mapping[str, Any]) -> None:
        """Count the seconds of a stopped run, which `values` returned."""
        self.began -= values["seconds"]
        self._training_began -= values["trained_seconds"]
        self._earlier_step_seconds = values.get("step_seconds", values["trained_seconds"])  # older versions lack it

    def start_clock(self, reserve_seconds: float) -> None:
        """The caller needs `reserve_seconds` of the time limit, if there is one, after the run."""
        if self._settings.seconds is not None:
            began = self._training_began - self.began
            self.clock = RunClock(self._settings.seconds, reserve_seconds, began, self._earlier_step_seconds)

    def begin_training(self) -> None:
        """The first step begins now. What came before, an evaluation of the model that the run starts from, is no
        progress."""
        self._training_began = self.now()
        if self.clock:
            self.clock.begin_training(self.elapsed)

    def values(self) -> dict[str, float]:
        """What `resume` needs."""
        elapsed, trained = self.read()
        return {
            "seconds": elapsed,
            "trained_seconds": trained,
            "step_seconds": self.clock.step_seconds if self.clock else trained,
        }

    def read(self) -> tuple[float, float]:
        """Seconds since the run began, and since its training began."""
        now = self.now()
        return now - self.began, now - self._training_began

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self.now() - self.began

    @property
    def left(self) -> float:
        """Seconds until the evaluations after the last step must have ended."""
        return max(0.0, self.clock.deadline - self.elapsed) if self.clock else math.inf

    def step_deadline(self, *, first: bool) -> float:
        """When to give up a step, in seconds since the run began. The first may take longer than the run has left:
        a late model is better than none."""
        if not self.clock:
            return math.inf
        if not first:
            return self.clock.deadline
        longest = max(FIRST_STEP_SECONDS, FIRST_STEP_SHARE * self.clock.seconds)
        return max(self.clock.deadline, self.elapsed + longest)

    def final_deadline(self) -> float:
        """When the evaluations that follow the last step must have ended, in seconds since the run began. A run that is
        late gets GRACE more, once."""
        if not self.clock:
            return math.inf
        if self._grace_end is None and self.elapsed + GRACE > self.clock.deadline:
            self._grace_end = self.elapsed + GRACE
        return max(self.clock.deadline, self._grace_end or 0.0)

    @contextlib.contextmanager
    def interruptible_until(self, model: LanguageModel, deadline: float) -> Iterator[None]:
        """Inside, forward passes of `model` raise CutShortError once `stop` returns True, or at `deadline`, a time of
        `now`. For the time before the run begins."""
        with stop_between_layers(model, lambda: self.now() > deadline or self.stop()):
            yield

    @contextlib.contextmanager
    def interruptible(self, model: LanguageModel, patience: float, deadline: float = math.inf) -> Iterator[None]:
        """Inside, forward passes of `model` raise CutShortError once `stop` returns True and `patience` seconds are
        over, or at `deadline`, in seconds since the run began."""
        entered = self.now()

        def should_stop() -> bool:
            now = self.now()
            return now - self.began > deadline or (now - entered > patience and self.stop())

        with eager_without_compiler(self._settings), stop_between_layers(model, should_stop):
            yield
