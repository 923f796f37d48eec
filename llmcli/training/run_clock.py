"""The clock of a run with a time limit: how far the run has come, what its end will cost, how much text it will see.

The machine's speed may change threefold while a run goes on, when another program starts or ends. So nothing here is an
absolute speed: the cost of an evaluation is kept as a multiple of the cost of training on as many tokens at that time,
and what is left is estimated at the speed of the last steps. Pure arithmetic: the caller reads the clock.
"""

import math
import statistics
from collections import deque

RECENT_STEPS = 12  # whose speed counts as the present speed
STEADY_SHARE = 0.1  # of the run: the time constant of the mean speed by which the whole run is estimated
LARGEST_RESERVE = 0.4  # of the run, for the evaluations at its end; beyond that they measure fewer tokens
ASSUMED_COST = 0.4  # of evaluating a token against training on it, before the first evaluation: a third by operations
LARGEST_SLOWDOWN = 2.0  # that the work after training is expected to suffer: much of it uses one thread


class RunClock:
    """All times are in seconds since the run began.

    `seconds` is the time limit, `after` the time that the caller needs after training on a free machine, `started` when
    training itself began.
    """

    def __init__(self, seconds: float, after: float = 0.0, started: float = 0.0) -> None:
        self.seconds, self.started = seconds, started
        self._after = after
        self._steps: deque[tuple[float, int]] = deque(maxlen=RECENT_STEPS)  # (seconds, tokens)
        self._best_pace = float("inf")
        self._steady_pace = 0.0
        self._trained_seconds = 0.0  # in the steps alone
        self._evaluation_costs: list[float] = []  # per token, as multiples of the pace at that time

    def add_step(self, seconds: float, tokens: int) -> None:
        self._steps.append((seconds, tokens))
        self._trained_seconds += seconds
        weight = 1 - math.exp(-seconds / (STEADY_SHARE * min(self.seconds, 10 * self._trained_seconds)))
        self._steady_pace += weight * (seconds / tokens - self._steady_pace) if self._steady_pace else seconds / tokens
        if len(self._steps) == RECENT_STEPS:
            self._best_pace = min(self._best_pace, self.pace)

    def add_evaluation(self, seconds: float, tokens: int) -> None:
        if self._steps and tokens:
            self._evaluation_costs.append(seconds / tokens / self.pace)

    @property
    def pace(self) -> float:
        """Seconds of training per token, at present; 0 before the first step."""
        tokens = sum(tokens for _, tokens in self._steps)
        return sum(seconds for seconds, _ in self._steps) / tokens if tokens else 0.0

    @property
    def deadline(self) -> float:
        """When the evaluations at the end must be over, so that what comes after them still fits."""
        slowdown = max(1.0, self.pace / self._best_pace)
        return self.seconds - self._after * min(slowdown, LARGEST_SLOWDOWN)

    def seconds_left(self, elapsed: float, evaluated_at_end: float) -> float:
        """Left for training, before the equivalent of so many evaluated tokens at the end.

        The median of all evaluations so far counts: a single slow one must not end a run early.
        """
        cost = statistics.median(self._evaluation_costs or [ASSUMED_COST])
        reserve = min(cost * self.pace * evaluated_at_end, LARGEST_RESERVE * self.seconds)
        return max(0.0, self.deadline - reserve - elapsed)

    def progress(self, elapsed: float, evaluated_at_end: float) -> float:
        """From 0 to 1, linear in the time that is left for training; 1 if another step would end too late."""
        left = self.seconds_left(elapsed, evaluated_at_end)
        last = self._steps[-1][0] if self._steps else 0.0
        if left <= last / 2:
            return 1.0
        return 1 - left / (left + elapsed - self.started)

    def expected_tokens(self, elapsed: float, seen: int, evaluated_at_end: float) -> float:
        """Tokens that the run will have trained on at its end, at its speed of late and share of evaluations."""
        if not self._trained_seconds:
            return float(seen)
        overhead = max(1.0, (elapsed - self.started) / self._trained_seconds)
        return seen + self.seconds_left(elapsed, evaluated_at_end) / (self._steady_pace * overhead)
