"""The clock of a run with a time limit: its progress, the time its final evaluations need, the tokens it will reach.

The speed of the machine may change threefold during a run, when another program starts or ends. So nothing here is an
absolute speed: the cost of an evaluation is kept as a multiple of the cost of training on as many tokens at that time,
and the rest of the run is estimated from the speed of the last steps. Pure arithmetic: the caller reads the clock.
"""

import math
import statistics
from collections import deque

# steps, and the seconds in them, at least, whose mean counts as the current speed: several processes that share a core
# take turns of up to half a second
RECENT_STEPS, RECENT_SECONDS = 12, 2.0
STEADY_SHARE = 0.1  # of the run: the time constant of the mean speed from which the whole run is estimated
# of the time after reading and planning, for the final evaluations; if they need more, they evaluate fewer tokens
LARGEST_RESERVE = 0.4
ASSUMED_COST = 0.4  # of evaluating a token, relative to training on it, before the first evaluation (FLOPs: a third)
LARGEST_SLOWDOWN = 2.0  # that is expected of the work after training: much of it uses one thread


def progress_by_clock(left: float, elapsed: float, training_began: float, last_step: float) -> float:
    """Progress of a run, 0 to 1, linear in the seconds `left` for training; 1 if another step would end too late.

    `elapsed` and `training_began` are in seconds since the run began. `last_step` is how long the last step took, in
    seconds: half of it may exceed the time left.

    >>> progress_by_clock(left=75, elapsed=35, training_began=10, last_step=1)
    0.25
    """
    return 1.0 if left <= last_step / 2 else 1 - left / (left + elapsed - training_began)


class RunClock:
    """Estimates from the steps and evaluations so far. All times are in seconds since the run began."""

    def __init__(
        self, seconds: float, reserve: float = 0.0, training_began: float = 0.0, earlier_step_seconds: float = 0.0
    ) -> None:
        """`seconds` is the time limit of the run, `reserve` what the caller needs of it after training, on an idle
        machine. Before it was stopped, a resumed run spent `earlier_step_seconds` in steps."""
        self.seconds, self._reserve, self._training_began = seconds, reserve, training_began
        self._steps: deque[tuple[float, int]] = deque()  # recent ones: (seconds, tokens)
        self._best_pace = float("inf")
        self._steady_pace = 0.0
        self._trained_seconds = 0.0  # in steps alone, since this clock was started
        self._earlier_step_seconds = earlier_step_seconds
        self._evaluation_costs: list[float] = []  # per token, as multiples of the pace at that time

    def begin_training(self, elapsed: float) -> None:
        """Progress is counted from `elapsed` seconds since the run began."""
        self._training_began = elapsed

    def add_step(self, seconds: float, tokens: int) -> None:
        self._steps.append((seconds, tokens))
        while len(self._steps) > RECENT_STEPS and self._recent_seconds - self._steps[0][0] >= RECENT_SECONDS:
            self._steps.popleft()
        self._trained_seconds += seconds
        weight = 1 - math.exp(-seconds / (STEADY_SHARE * min(self.seconds, 10 * self._trained_seconds)))
        self._steady_pace += weight * (seconds / tokens - self._steady_pace) if self._steady_pace else seconds / tokens
        if len(self._steps) >= RECENT_STEPS:
            self._best_pace = min(self._best_pace, self.pace)

    def exclude(self, seconds: float) -> None:
        """Time that says nothing about the speed, such as that of a step in which layers are compiled: the run counts
        as begun so much later."""
        self._training_began += seconds

    def add_evaluation(self, seconds: float, tokens: int) -> None:
        if self._steps and tokens:
            self._evaluation_costs.append(seconds / tokens / self.pace)

    @property
    def step_seconds(self) -> float:
        """The time spent in steps since the run began."""
        return self._earlier_step_seconds + self._trained_seconds

    @property
    def pace(self) -> float:
        """Current seconds of training per token; 0 before the first step."""
        tokens = sum(tokens for _, tokens in self._steps)
        return self._recent_seconds / tokens if tokens else 0.0

    @property
    def _recent_seconds(self) -> float:
        return sum(seconds for seconds, _ in self._steps)

    @property
    def deadline(self) -> float:
        """When the final evaluations must have ended, so that the caller's work after them ends in time."""
        slowdown = max(1.0, self.pace / self._best_pace)
        return self.seconds - self._reserve * min(slowdown, LARGEST_SLOWDOWN)

    def seconds_left(self, elapsed: float, final_tokens: float) -> float:
        """Seconds left for training, if the final evaluations cover `final_tokens` tokens.

        Based on the median cost of all evaluations so far: a single slow one must not end a run early.
        """
        cost = statistics.median(self._evaluation_costs or [ASSUMED_COST])
        reserve = min(cost * self.pace * final_tokens, LARGEST_RESERVE * (self.seconds - self._training_began))
        return max(0.0, self.deadline - reserve - elapsed)

    def progress(self, elapsed: float, final_tokens: float) -> float:
        """Progress of the run, 0 to 1."""
        last_step = self._steps[-1][0] if self._steps else 0.0
        return progress_by_clock(self.seconds_left(elapsed, final_tokens), elapsed, self._training_began, last_step)

    def expected_tokens(self, elapsed: float, seen: int, final_tokens: float) -> float:
        """Tokens that the run will have trained on at its end, after `seen` so far, at its recent speed and its share
        of time in evaluations."""
        if not self._trained_seconds:
            return float(seen)
        overhead = max(1.0, (elapsed - self._training_began) / self.step_seconds)
        return seen + self.seconds_left(elapsed, final_tokens) / (self._steady_pace * overhead)
