"""How many threads a training step should use, by measurement while the run goes on.

The threads of an operation wait for each other at its end. A thread whose core is taken by another program holds up
all others: on two cores, beside one busy process, two threads train at 0.28 of their usual speed and one thread at 0.70
of it (tests/benchmarks/LOG.md). So a few steps with another number of threads are tried now and then, and the faster
number stays. Pure logic: the caller runs and times the steps.
"""

import statistics
from collections import deque
from collections.abc import Callable

RECENT_STEPS = 6  # whose median is the present pace
FIRST_TRIAL = 4  # steps before the first trial: as many are needed to know the present pace
TRIAL_STEPS = 2  # measured in a trial, after one step to warm up
GAIN = 0.95  # of the present pace, that a trial must be below
HOPELESS = 1.8  # times the present pace: a trial ends after its first step
SLOWER = 1.25  # times the best pace with this number of threads: something else is running, try fewer at once
SHORTEST_PAUSE, LONGEST_PAUSE = 4.0, 32.0  # seconds between rounds of trials; doubled after each that brought nothing
LEAST_SHARE = 25  # times as long as a round took, a pause lasts at least
ALL_IN_USE = 4.0  # times as long while all threads are in use: a slower pace begins a round at once


class ThreadTuner:
    """Chooses `threads` for the next step, at most `most`, from `first` on; `use` is called with it."""

    def __init__(self, most: int, use: Callable[[int], None] = lambda threads: None, first: int | None = None) -> None:
        self._counts = thread_counts(most)
        self._use = use
        self._at = self._counts.index(first or most)  # in _counts: the present number of threads
        self._trial: int | None = None  # in _counts: the number that is being tried
        self._trial_paces: list[float] = []
        self._begin_with_this()
        use(self.threads)

    @property
    def threads(self) -> int:
        return self._counts[self._at if self._trial is None else self._trial]

    @property
    def trying(self) -> bool:
        return self._trial is not None

    def add_step(self, seconds: float, tokens: int) -> None:
        """A step with `threads` took so long; afterwards `threads` is the number for the next."""
        pace = seconds / tokens
        if self._trial is None:
            self._add_usual_step(pace, seconds)
        else:
            self._round_seconds += seconds
            self._add_trial_step(pace)
        self._use(self.threads)

    def new_shape(self) -> None:
        """Steps are of another shape from here on: paces so far compare with nothing."""
        self._trial = None
        self._recent.clear()
        self._best = float("inf")
        self._use(self.threads)

    def _begin_with_this(self) -> None:
        """A round of trials follows as soon as the pace with the present number of threads is known."""
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._best = float("inf")  # pace with the present number of threads
        self._to_try, self._round_seconds = self._others(), 0.0
        self._resting, self._pause = 0.0, SHORTEST_PAUSE / 2  # seconds since the last trial, and until the next round

    def _others(self) -> list[int]:
        """The other numbers of threads, the next ones first."""
        return sorted((i for i in range(len(self._counts)) if i != self._at), key=lambda i: abs(i - self._at))

    def _add_usual_step(self, pace: float, seconds: float) -> None:
        self._recent.append(pace)
        self._resting += seconds
        if len(self._counts) == 1 or len(self._recent) < FIRST_TRIAL:
            return
        present = statistics.median(self._recent)
        self._best = min(self._best, present)
        if present > SLOWER * self._best and not self._to_try:
            self._to_try = [i for i in self._others() if i > self._at]
            self._best, self._pause = present, SHORTEST_PAUSE / 2
        elif self._resting >= self._pause * (1.0 if self._at else ALL_IN_USE):
            self._to_try = self._to_try or self._others()
        if self._to_try:
            self._trial, self._trial_paces, self._resting = self._to_try.pop(0), [], 0.0

    def _add_trial_step(self, pace: float) -> None:
        present = statistics.median(self._recent)
        self._trial_paces.append(pace)
        measured = self._trial_paces[1:]
        if pace < HOPELESS * present and len(measured) < TRIAL_STEPS:
            return
        if self._trial is not None and measured and statistics.median(measured) < GAIN * present:
            self._at = self._trial
            self._begin_with_this()
        elif not self._to_try:  # the round brought nothing
            self._pause = max(min(2 * self._pause, LONGEST_PAUSE), LEAST_SHARE * self._round_seconds)
            self._round_seconds = 0.0
        self._trial = None


def thread_counts(most: int) -> list[int]:
    """The numbers of threads that are worth a trial, from all to one.

    >>> thread_counts(2), thread_counts(16)
    ([2, 1], [16, 15, 14, 12, 8, 1])
    """
    return sorted({most, 1, *(most - 2**i for i in range(10) if 2**i < most)}, reverse=True)
