"""The clock of a run: its start, its time limit, and the deadlines of passes through the model.

Other programs may change the speed of the machine by a factor of three during a run. Therefore the cost of an
evaluation is stored relative to training on as many tokens at that time, and the rest of the run is estimated
from the latest steps.
"""

import contextlib
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llmcli.config import TrainConfig
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.interruption import stop_between_layers
from llmcli.training.planning.cost_model import ASSUMED_COST
from llmcli.training.step.initialization import eager_without_compiler

FIRST_STEP_SECONDS = 10.0  # the first step may take this long ...
FIRST_STEP_SHARE = 0.25  # ... or this share of the run, if that is more
# after Ctrl-C, a step or an evaluation that has taken more seconds than this is interrupted ...
STEP_PATIENCE = 1.0
FINAL_PATIENCE = 3.0  # ... or, for an evaluation after the last step, more than this
LOADING_SECONDS_PER_MILLION = 0.015  # per million parameters, for loading another model before an evaluation
GRACE = 1.5  # seconds after the deadline in which a late run may still evaluate its weights
# the current speed is the mean over at least this many steps and seconds: processes that share a core
# alternate in turns of up to half a second
RECENT_STEPS = 12
RECENT_SECONDS = 2.0
STEADY_SHARE = 0.1  # share of the run: time constant of the mean speed from which the whole run is estimated
# maximum share of the time after planning for final evaluations; if they need more, they use fewer tokens
LARGEST_RESERVE = 0.2
# the same share for the caller's work afterwards, if it would take less on an idle machine
LARGEST_EXTENSION = 0.25


class Clock:
    """Measures the seconds since a run began, estimates the rest of its time from the steps and evaluations
    so far, and knows whether the user asked it to stop. All times are in seconds since the run began; without
    a time limit, the run has infinitely many."""

    def __init__(
        self,
        settings: TrainConfig,
        began: float | None = None,
        reserve: float = 0.0,
        now: Callable[[], float] = time.monotonic,
        stop_requested: Callable[[], bool] = lambda: False,
        processor_time: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """The run began at `began` (on the clock `now`) or begins now. `reserve` seconds of the time limit
        are kept for the caller's work after the run, more if the processor is busy. `stop_requested` returns
        whether the user asked the run to stop; `processor_time` returns this thread's processor time (0:
        unknown), from which the load of the processor is estimated."""
        self._settings = settings
        self.seconds = math.inf if settings.seconds is None else settings.seconds
        self.reserve = reserve
        self.now = now
        self.stop_requested = stop_requested
        # with a GPU, the thread waits, so that its processor time says nothing about the load
        self.processor_time = processor_time if settings.device == "cpu" else lambda: 0.0
        self.began = now() if began is None else began
        self._training_began = 0.0
        self.progress_began = 0.0  # start of the training, moved forward by excluded time
        self._grace_end: float | None = None  # None: the run is not late
        # recent steps: (seconds, tokens, seconds of processor time)
        self._steps: deque[tuple[float, int, float]] = deque()
        self._steady_pace = 0.0
        self._trained_seconds = 0.0  # time in steps since this object was created
        self._earlier_step_seconds = 0.0  # time in steps before a resumed run was stopped
        self._evaluation_costs: list[float] = []  # per token, as multiples of the pace at that time

    def start(self, stopped: Mapping[str, Any] | None = None) -> None:
        """Start training. A stopped run continues from the seconds that `values` returned."""
        trained = 0.0
        if stopped:
            self.began -= stopped["seconds"]
            trained = stopped["trained_seconds"]
            self._earlier_step_seconds = stopped["step_seconds"]
        self._training_began = self.progress_began = self.elapsed - trained

    def begin_steps(self) -> None:
        """Start the first step. The evaluation of the initial model does not count as progress."""
        self._training_began = self.progress_began = self.elapsed

    def values(self) -> dict[str, float]:
        """Return the values that `start` needs to resume."""
        elapsed, trained = self.elapsed_times()
        in_steps = trained if math.isinf(self.seconds) else self.step_seconds
        return {"seconds": elapsed, "trained_seconds": trained, "step_seconds": in_steps}

    def elapsed_times(self) -> tuple[float, float]:
        """Return (seconds since the run began, seconds since training began)."""
        elapsed = self.elapsed
        return elapsed, elapsed - self._training_began

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self.now() - self.began

    @property
    def step_seconds(self) -> float:
        """Time in steps, including those before a resumed run was stopped."""
        return self._earlier_step_seconds + self._trained_seconds

    # ---- steps and evaluations

    def add_step(self, seconds: float, tokens: int, processor_seconds: float = 0.0) -> None:
        """Add a step. `processor_seconds` is the processor time of the thread that calls torch (0:
        unknown)."""
        self._steps.append((seconds, tokens, processor_seconds))
        while len(self._steps) > RECENT_STEPS and self._recent_seconds - self._steps[0][0] >= RECENT_SECONDS:
            self._steps.popleft()
        self._trained_seconds += seconds
        weight = 1 - math.exp(
            -seconds / (STEADY_SHARE * min(self.seconds, max(1e-9, 10 * self._trained_seconds)))
        )
        self._steady_pace += (
            weight * (seconds / tokens - self._steady_pace) if self._steady_pace else seconds / tokens
        )

    def exclude(self, seconds: float) -> None:
        """Exclude time that says nothing about the speed, such as compilation, by moving the start
        forward."""
        self.progress_began += seconds

    def add_evaluation(self, seconds: float, tokens: float) -> None:
        if self.pace and tokens:  # no pace: no step yet, or steps below the resolution of the clock
            self._evaluation_costs.append(seconds / tokens / self.pace)

    @property
    def pace(self) -> float:
        """Current seconds of training per token; 0 before the first step."""
        tokens = sum(tokens for _, tokens, _ in self._steps)
        return self._recent_seconds / tokens if tokens else 0.0

    @property
    def _recent_seconds(self) -> float:
        return sum(seconds for seconds, _, _ in self._steps)

    @property
    def slowdown(self) -> float:
        """Elapsed time per processor time in the latest steps (before the first step: since the run began);
        more than 1 if other programs use the processor too."""
        seconds = self._recent_seconds
        processor_seconds = sum(used for _, _, used in self._steps)
        if not self._steps:
            seconds = self.elapsed
            processor_seconds = self.processor_time()
        return max(1.0, seconds / processor_seconds) if processor_seconds else 1.0

    # ---- the rest of the run

    @property
    def deadline(self) -> float:
        """Deadline of the final evaluations, which leaves time for the caller's remaining work."""
        if math.isinf(self.seconds):
            return math.inf
        longest = max(self.reserve, LARGEST_EXTENSION * (self.seconds - self.progress_began))
        return self.seconds - min(self.reserve * (self.slowdown if self._steps else 1.0), longest)

    def evaluation_seconds(self, tokens: float) -> float:
        """Return the time for evaluating `tokens` tokens at the current speed; 0 before the first step."""
        # the median, because a single slow evaluation must not end a run early
        return statistics.median(self._evaluation_costs or [ASSUMED_COST]) * self.pace * tokens

    def seconds_left(self, elapsed: float, final_tokens: float) -> float:
        """Return the seconds left for training if the final evaluations cover `final_tokens` tokens."""
        longest = LARGEST_RESERVE * (self.seconds - self.progress_began)
        reserve = min(self.evaluation_seconds(final_tokens), longest)
        return max(0.0, self.deadline - reserve - elapsed)

    def progress(self, elapsed: float, final_tokens: float) -> float:
        """Return the progress of the run, 0 to 1, linear in time; 1 if there is no time for half of another
        step, 0 without a time limit."""
        if math.isinf(self.seconds):
            return 0.0
        left = self.seconds_left(elapsed, final_tokens)
        last_step = self._steps[-1][0] if self._steps else 0.0
        return 1.0 if left <= last_step / 2 else 1 - left / (left + elapsed - self.progress_began)

    def expected_tokens(self, elapsed: float, seen: int, final_tokens: float) -> float:
        """Estimate the tokens seen by the end of the run, from its recent speed and share of evaluation
        time."""
        if not self._trained_seconds:
            return float(seen)
        overhead = max(1.0, (elapsed - self.progress_began) / self.step_seconds)
        return seen + self.seconds_left(elapsed, final_tokens) / (self._steady_pace * overhead)

    def step_deadline(self, *, first: bool) -> float:
        """Return the deadline of a step; a late first step is better than no model."""
        longest = max(FIRST_STEP_SECONDS, FIRST_STEP_SHARE * self.seconds)
        return max(self.deadline, self.elapsed + longest) if first else self.deadline

    def final_deadline(self) -> float:
        """Return the time at which the last evaluations are interrupted: the deadline or, in a late run,
        GRACE seconds later."""
        if self._grace_end is None and self.elapsed + GRACE > self.deadline:
            self._grace_end = self.elapsed + GRACE
        return max(self.deadline, self._grace_end or 0.0)

    @contextlib.contextmanager
    def interruptible(
        self, model: LanguageModel, patience: float, deadline: float = math.inf
    ) -> Iterator[None]:
        """In this context, forward passes of `model` raise CutShortError once `stop_requested` returns True
        and `patience` seconds have passed, or at `deadline`."""
        entered = self.now()

        def should_stop() -> bool:
            now = self.now()
            return now - self.began > deadline or (now - entered > patience and self.stop_requested())

        with eager_without_compiler(self._settings), stop_between_layers(model, should_stop):
            yield
