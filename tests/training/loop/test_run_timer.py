"""When a step is given up, and what a resumed run counts, with seconds by hand."""

import math
from dataclasses import replace

import pytest
import torch

from llmcli.config import ModelConfig
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.interruption import CutShortError
from llmcli.training.loop.run_timer import GRACE, RunTimer
from tests.training.plans import plan

SETTINGS = replace(plan().train, seconds=None)


class Clock:
    def __init__(self) -> None:
        self.time = 0.0
        self.stopped = False

    def timer(self, seconds: float | None = None) -> RunTimer:
        """Of a run that began at 100 s and trains from 104 s on, whose caller reserves 5 s."""
        timer = RunTimer(replace(SETTINGS, seconds=seconds), lambda: self.time, lambda: self.stopped)
        self.time = 104.0
        timer.begin(100.0)
        timer.start_clock(5.0)
        return timer


def test_without_a_time_limit_no_step_has_a_deadline() -> None:
    timer = Clock().timer()
    assert timer.clock is None
    assert timer.step_deadline(first=True) == timer.step_deadline(first=False) == math.inf


@pytest.mark.parametrize(("seconds", "first", "later"), [(8.0, 4 + 10, 3), (80.0, 75, 75), (20.0, 15, 15)])
def test_the_first_step_may_take_longer_than_the_run_has_left(seconds: float, first: float, later: float) -> None:
    """At least 10 s; all others end 5 s before the time limit."""
    timer = Clock().timer(seconds)
    assert (timer.step_deadline(first=True), timer.step_deadline(first=False)) == (first, later)


def test_the_time_that_is_left_ends_with_the_reserve() -> None:
    clock = Clock()
    assert clock.timer(20.0).left == 20 - 5 - 4
    assert clock.timer(8.0).left == 0
    assert clock.timer().left == math.inf


def test_a_run_that_is_late_gets_a_little_more_time_once() -> None:
    """Of 20 s, 5 are the caller's: the deadline is at 15 s."""
    clock = Clock()
    timer = clock.timer(20.0)
    deadlines = []
    for clock.time in (105.0, 114.0, 116.0, 140.0):
        deadlines.append(timer.final_deadline())
    assert deadlines == [15.0, 14 + GRACE, 14 + GRACE, 14 + GRACE]
    assert Clock().timer().final_deadline() == math.inf


def test_a_resumed_run_counts_the_seconds_of_the_stopped_one() -> None:
    clock = Clock()
    timer = clock.timer()
    clock.time = 110.0
    assert timer.read() == (10, 6)
    assert timer.values() == {"seconds": 10, "trained_seconds": 6, "step_seconds": 6}
    timer.resume({"seconds": 30.0, "trained_seconds": 20.0})  # as an older version saved them
    assert timer.read() == (40, 26) and timer.elapsed == 40


@pytest.mark.parametrize(("saved", "expected"), [({}, 20.0), ({"step_seconds": 15.0}, 15.0)])
def test_a_resumed_run_with_a_time_limit_knows_the_seconds_in_steps(saved: dict[str, float], expected: float) -> None:
    clock = Clock()
    timer = clock.timer(100.0)
    timer.resume({"seconds": 30.0, "trained_seconds": 20.0} | saved)
    timer.start_clock(5.0)
    assert timer.clock is not None
    timer.clock.add_step(2.0, 100)
    assert timer.values()["step_seconds"] == expected + 2.0


def test_a_pass_is_given_up_at_its_deadline_or_when_patience_is_over_after_a_stop_request() -> None:
    clock = Clock()
    timer, model = clock.timer(), LanguageModel(ModelConfig(50, 16, 32, 2, 2, 2, 8, 12))
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with timer.interruptible(model, patience=3.0, deadline=9.0):
        model(ids)
        clock.stopped, clock.time = True, 107.0  # 3 s after the beginning, 7 s since the run began
        model(ids)
        clock.time = 107.5
        with pytest.raises(CutShortError):
            model(ids)
        clock.stopped = False
        model(ids)
        clock.time = 109.5
        with pytest.raises(CutShortError):
            model(ids)
    model(ids)


def test_an_evaluation_before_the_first_step_is_no_progress() -> None:
    """16 s of 100 s, of which 5 s are the caller's; then half of the rest."""
    clock = Clock()
    timer = clock.timer(100.0)
    clock.time = 120.0
    timer.begin_training()
    assert timer.clock is not None and timer.read() == (20, 0)
    assert timer.clock.progress(timer.elapsed, 0) == 0.0
    assert timer.clock.progress(20 + 75 / 2, 0) == pytest.approx(0.5)
