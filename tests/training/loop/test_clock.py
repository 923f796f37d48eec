"""The clock of a run and the estimates of its time budget, in literal seconds."""

import math
from dataclasses import replace

import pytest
import torch

from llmcli.config import ModelConfig
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.interruption import CutShortError
from llmcli.training.loop.clock import ASSUMED_COST, GRACE, LARGEST_RESERVE, RECENT_STEPS, Clock
from tests.training.plans import plan

SETTINGS = replace(plan().train, seconds=None)


def limited(reserve: float = 0.0, training_began: float = 0.0, stopped: dict[str, float] | None = None) -> Clock:
    """The clock of a run of 100 seconds."""
    made = Clock(replace(SETTINGS, seconds=100.0), 0.0, reserve, now=lambda: training_began)
    made.start(stopped)
    return made


def budget(pace: float = 0.001, steps: int = RECENT_STEPS, **options: float) -> Clock:
    """The same after steps of 100 tokens each; `pace` is in seconds per token."""
    made = limited(**options)  # type: ignore[arg-type]
    for _ in range(steps):
        made.add_step(100 * pace, 100)
    return made


def test_progress_ends_before_the_reserve_of_the_caller() -> None:
    made = budget(reserve=10.0, training_began=5.0)
    assert made.deadline == 90.0
    assert made.progress(5.0, 0) == 0.0
    assert made.progress(47.5, 0) == pytest.approx(0.5)
    assert made.progress(89.9, 0) < 1.0
    assert made.progress(89.96, 0) == 1.0  # half a step before the end
    assert made.progress(95.0, 0) == 1.0


def test_time_is_reserved_for_the_final_evaluations_at_the_current_speed() -> None:
    made = budget()
    made.add_evaluation(0.4, 1000)  # 0.0004 s per token: 0.4 of training
    assert made.seconds_left(50.0, 10_000) == pytest.approx(50 - 4.0)
    for _ in range(RECENT_STEPS):
        made.add_step(0.3, 100)  # three times as slow
    assert made.seconds_left(50.0, 10_000) == pytest.approx(50 - 12.0)


def test_steps_shorter_than_the_clock_can_tell_are_no_error() -> None:
    made = budget(pace=0.0)
    made.add_evaluation(0.1, 1000)
    assert made.pace == 0.0 and made.seconds_left(50.0, 10_000) == 50.0


def test_turns_of_processes_that_share_a_core_do_not_end_a_run_early() -> None:
    """Half a second at one speed, half a second at a third of it, and so on: the reserve follows the mean."""
    made = limited()
    reserves = []
    for turn in range(20):
        for seconds in [0.045] * 11 if turn % 2 else [0.015] * 33:
            made.add_step(seconds, 100)
            reserves.append(100 - made.seconds_left(0.0, 10_000) if turn >= 4 else 0.0)
    mean = ASSUMED_COST * 10_000 * (11 * 0.045 + 33 * 0.015) / (44 * 100)
    assert max(reserves) < 1.2 * mean


def test_a_single_slow_evaluation_does_not_end_a_run_early() -> None:
    made = budget()
    for seconds in (0.4, 0.4, 20.0):
        made.add_evaluation(seconds, 1000)
    assert made.seconds_left(50.0, 10_000) == pytest.approx(50 - 4.0)


def test_the_reserve_for_final_evaluations_is_bounded() -> None:
    made = budget()
    made.add_evaluation(10.0, 1000)
    assert made.seconds_left(50.0, 1_000_000) == pytest.approx(50 - LARGEST_RESERVE * 100)
    made.progress_began = 40.0  # reading and planning took so long
    assert made.seconds_left(50.0, 1_000_000) == pytest.approx(50 - LARGEST_RESERVE * 60)


def test_the_reserve_of_the_caller_grows_while_the_processor_is_busy() -> None:
    """Two seconds of its work take eight if a step of 0.2 s got 0.05 s of processor time; two threads may use more than
    the time that passes, and 0 is unknown. At most a quarter of the time after planning is reserved."""
    for processor_seconds, slowdown in [(0.2, 1.0), (0.05, 4.0), (0.4, 1.0), (0.0, 1.0), (0.002, 100.0)]:
        made = limited(reserve=2.0, training_began=40.0)
        assert made.deadline == 98.0
        for _ in range(RECENT_STEPS):
            made.add_step(0.2, 100, processor_seconds)
        assert made.slowdown == pytest.approx(slowdown)
        assert made.deadline == pytest.approx(100 - min(2 * slowdown, 0.25 * 60))
        for _ in range(RECENT_STEPS):
            made.add_step(0.2, 100, 0.1)  # only recent steps count
        assert made.deadline == pytest.approx(96.0)


def test_before_the_first_step_the_whole_run_says_how_busy_the_processor_is() -> None:
    """4 s since the run began, 1 s of processor time; on a GPU, the thread waits."""
    for device, slowdown in (("cpu", 4.0), ("cuda", 1.0)):
        settings = replace(SETTINGS, seconds=60.0, device=device)
        clock = Clock(settings, 100.0, now=lambda: 104.0, processor_time=lambda: 1.0)
        clock.start()
        assert clock.slowdown == slowdown
        clock.add_step(1.0, 100, 0.5)
        assert clock.slowdown == 2.0


def test_expected_tokens_take_time_for_evaluations_into_account() -> None:
    made = budget()  # 12 steps of 0.1 s
    assert made.expected_tokens(1.2, 1200, 0) == pytest.approx(1200 + (100 - 1.2) * 1000)
    assert made.expected_tokens(2.4, 1200, 0) == pytest.approx(
        1200 + (100 - 2.4) * 500
    )  # half of the time in evaluations


def test_a_resumed_run_counts_the_steps_before_it_was_stopped() -> None:
    """Of 40 s it spent 30 in steps; then 12 steps of 0.1 s."""
    made = limited(stopped={"seconds": 40.0, "trained_seconds": 40.0, "step_seconds": 30.0})
    assert made.elapsed == 40.0 and made.elapsed_times() == (40.0, 40.0)
    for _ in range(RECENT_STEPS):
        made.add_step(0.1, 100)
    assert made.step_seconds == made.values()["step_seconds"] == pytest.approx(31.2)
    expected = 5000 + (100 - 41.2) * 1000 * (31.2 / 41.2)
    assert made.expected_tokens(41.2, 5000, 0) == pytest.approx(expected)


def test_time_for_compiling_counts_neither_as_progress_nor_in_the_speed() -> None:
    made = limited(training_began=5.0)
    made.exclude(20.0)
    assert made.pace == 0.0
    assert made.progress(25.0, 0) == 0.0 and made.expected_tokens(25.0, 700, 0) == 700
    for _ in range(RECENT_STEPS):
        made.add_step(0.1, 100)
    assert made.pace == pytest.approx(0.001)
    assert made.expected_tokens(26.2, 1200, 0) == pytest.approx(1200 + (100 - 26.2) * 1000)
    before = made.progress(60.0, 0)
    made.exclude(10.0)
    assert before == pytest.approx(1 - 40 / 75) and made.progress(70.0, 0) == pytest.approx(1 - 30 / 65)  # it rises


class Time:
    def __init__(self) -> None:
        self.now = 104.0
        self.stopped = False

    def clock(self, seconds: float | None = None) -> Clock:
        """Of a run that began at 100 s and trains from 104 s on, whose caller reserves 5 s."""
        clock = Clock(replace(SETTINGS, seconds=seconds), 100.0, 5.0, lambda: self.now, lambda: self.stopped)
        clock.start()
        return clock


def test_without_a_time_limit_no_step_has_a_deadline_and_all_time_counts_as_steps() -> None:
    time = Time()
    clock = time.clock()
    assert clock.step_deadline(first=True) == clock.step_deadline(first=False) == math.inf
    time.now = 110.0
    assert clock.values() == {"seconds": 10, "trained_seconds": 6, "step_seconds": 6}


def test_the_first_step_may_take_longer_than_the_run_has_left() -> None:
    """At least 10 s; all others end 5 s before the time limit."""
    for seconds, first, later in [(8.0, 4 + 10, 3), (80.0, 75, 75), (20.0, 15, 15)]:
        clock = Time().clock(seconds)
        assert (clock.step_deadline(first=True), clock.step_deadline(first=False)) == (first, later)


def test_a_run_that_is_late_gets_a_little_more_time_once() -> None:
    """Of 20 s, 5 are the caller's: the deadline is at 15 s."""
    time = Time()
    clock = time.clock(20.0)
    deadlines = []
    for time.now in (105.0, 114.0, 116.0, 140.0):
        deadlines.append(clock.final_deadline())
    assert deadlines == [15.0, 14 + GRACE, 14 + GRACE, 14 + GRACE]
    assert Time().clock().final_deadline() == math.inf


def test_a_pass_is_given_up_at_its_deadline_or_when_patience_is_over_after_a_stop_request() -> None:
    time = Time()
    clock, model = time.clock(), LanguageModel(ModelConfig(50, 16, 32, 2, 2, 2, 8, 12))
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with clock.interruptible(model, patience=3.0, deadline=9.0):
        model(ids)
        # 3 s after the beginning, 7 s since the run began
        time.stopped = True
        time.now = 107.0
        model(ids)
        time.now = 107.5
        with pytest.raises(CutShortError):
            model(ids)
        time.stopped = False
        model(ids)
        time.now = 109.5
        with pytest.raises(CutShortError):
            model(ids)
    model(ids)


def test_an_evaluation_before_the_first_step_is_no_progress() -> None:
    """16 s of 100 s, of which 5 s are the caller's; then half of the rest."""
    time = Time()
    clock = time.clock(100.0)
    time.now = 120.0
    clock.begin_steps()
    assert clock.elapsed_times() == (20, 0)
    assert clock.progress(clock.elapsed, 0) == 0.0
    assert clock.progress(20 + 75 / 2, 0) == pytest.approx(0.5)
