"""Tuning the number of threads for training steps, by measurement during the run.

A thread whose core is taken by another process delays all others: on two cores with one busy process, two
threads train at 0.28 of their usual speed, one thread at 0.70 (tests/benchmarks/LOG.md). Therefore, from time
to time, a few steps are tried with a different number of threads. A step with too many threads may take
thirty times as long, so a larger number is tried only if it makes small operations faster.
"""

import statistics
from collections import deque
from collections.abc import Callable, Sequence

# the current pace is the mean of this many steps without the slowest. A median would miss the few slow steps
# that take most of the time while other processes run; the first step is always slow
RECENT_STEPS = 6
FIRST_TRIAL = 4  # steps before the first trial, from which the current pace is measured
TRIAL_STEPS = 2  # measured in a trial, after one step to warm up
GAIN = 0.95  # a trial succeeds below this fraction of the current pace
ABORT = 1.8  # multiple of the current pace: a slower trial ends after its first step
# multiple of the best pace with the same number of threads: if steps are slower, another process must be
# busy, and fewer threads are tried immediately
SLOWER = 1.25
# seconds between rounds of trials; doubled after each unsuccessful round
SHORTEST_PAUSE = 4.0
LONGEST_PAUSE = 32.0
PAUSE_PER_ROUND = 25  # a pause lasts at least this many times as long as the previous round
# factor on pauses while all threads are in use, because a slower pace starts a round immediately
ALL_THREADS_PAUSE = 4.0


class ThreadTuner:
    """Chooses `threads` for the next step. A pace is in seconds per token."""

    def __init__(
        self,
        max_threads: int,
        set_threads: Callable[[int], None] = lambda threads: None,
        fastest: Callable[[Sequence[int]], int] = max,
    ) -> None:
        """`set_threads` is called with every choice. `fastest` returns the number of threads that makes small
        operations fastest."""
        self._counts = thread_counts(max_threads)
        self._set_threads = set_threads
        self._fastest = fastest
        self._chosen = self._counts.index(fastest(self._counts))  # an index
        self.trial: int | None = None  # index in _counts of the number being tried
        self._trial_paces: list[float] = []
        self._reset()
        set_threads(self.threads)

    @property
    def threads(self) -> int:
        return self._counts[self._chosen if self.trial is None else self.trial]

    def add_step(self, seconds: float, tokens: int) -> None:
        """Record a step taken with `threads`; afterwards `threads` is the number for the next step."""
        pace = seconds / tokens
        if self.trial is None:
            self._add_usual_step(pace, seconds)
        else:
            self._round_seconds += seconds
            self._add_trial_step(pace)
        self._set_threads(self.threads)

    def new_shape(self) -> None:
        """Forget earlier paces, because the following steps have another shape."""
        self.trial = None
        self._recent.clear()
        self._best = float("inf")
        self._set_threads(self.threads)

    def _reset(self) -> None:
        """Forget all paces. A round of trials begins once the pace with the chosen number of threads is
        known."""
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._best = float("inf")  # pace with the chosen number of threads
        self._to_try = self._fewer()
        self._round_seconds = 0.0
        self._since_trial = 0.0
        self._pause = SHORTEST_PAUSE / 2  # seconds, and seconds until the next round

    def _fewer(self) -> list[int]:
        """Return the indices of smaller numbers of threads, nearest first."""
        return list(range(self._chosen + 1, len(self._counts)))

    def _current_pace(self) -> float:
        return statistics.fmean(sorted(self._recent)[:-1])

    def _add_usual_step(self, pace: float, seconds: float) -> None:
        self._recent.append(pace)
        self._since_trial += seconds
        if len(self._counts) == 1 or len(self._recent) < FIRST_TRIAL:
            return
        current = self._current_pace()
        self._best = min(self._best, current)
        if current > SLOWER * self._best and not self._to_try:
            self._to_try = self._fewer()
            self._best = current
            self._pause = SHORTEST_PAUSE / 2
        elif self._since_trial >= self._pause * (1.0 if self._chosen else ALL_THREADS_PAUSE):
            if not self._to_try:  # the numbers that may be faster, nearest first
                fastest = self._counts.index(self._fastest(self._counts[: self._chosen + 1]))
                others = [*range(fastest, self._chosen), *self._fewer()]
                self._to_try = sorted(others, key=lambda i: abs(i - self._chosen))
            if not self._to_try:
                self._end_round()
        if self._to_try:
            self.trial = self._to_try.pop(0)
            self._trial_paces = []
            self._since_trial = 0.0

    def _add_trial_step(self, pace: float) -> None:
        current = self._current_pace()
        self._trial_paces.append(pace)
        measured = self._trial_paces[1:]
        if pace < ABORT * current and len(measured) < TRIAL_STEPS:
            return
        if self.trial is not None and measured and statistics.fmean(measured) < GAIN * current:
            self._chosen = self.trial
            self._reset()
        elif not self._to_try:
            self._end_round()
        self.trial = None

    def _end_round(self) -> None:
        """End an unsuccessful round; the next one follows after a longer pause."""
        self._pause = max(min(2 * self._pause, LONGEST_PAUSE), PAUSE_PER_ROUND * self._round_seconds)
        self._since_trial = 0.0
        self._round_seconds = 0.0


def thread_counts(max_threads: int) -> list[int]:
    """Return the numbers of threads worth trying, for instance 16, 15, 14, 12, 8, 1."""
    fewer = (max_threads - 2**i for i in range(10) if 2**i < max_threads)
    return sorted({max_threads, 1, *fewer}, reverse=True)
