"""Progress by the clock, with literal seconds."""

import pytest

from llmcli.training.run_clock import LARGEST_RESERVE, RECENT_STEPS, RunClock


def clock(pace: float = 0.001, steps: int = RECENT_STEPS, **options: float) -> RunClock:
    """After steps of 100 tokens each."""
    made = RunClock(100.0, **options)
    for _ in range(steps):
        made.add_step(100 * pace, 100)
    return made


def test_progress_is_linear_in_time_and_ends_before_what_comes_after() -> None:
    made = clock(reserve=10.0, training_began=5.0)
    assert made.deadline == 90.0
    assert made.progress(5.0, 0) == 0.0
    assert made.progress(47.5, 0) == pytest.approx(0.5)
    assert made.progress(89.9, 0) < 1.0
    assert made.progress(89.96, 0) == 1.0  # half a step before the end: another would end too late
    assert made.progress(95.0, 0) == 1.0


def test_evaluations_at_the_end_are_kept_free_at_the_present_speed() -> None:
    made = clock()
    made.add_evaluation(0.4, 1000)  # 0.0004 s a token: 0.4 of training
    assert made.seconds_left(50.0, 10_000) == pytest.approx(50 - 4.0)
    for _ in range(RECENT_STEPS):
        made.add_step(0.3, 100)  # three times as slow
    assert made.seconds_left(50.0, 10_000) == pytest.approx(50 - 12.0)


def test_a_single_slow_evaluation_does_not_end_a_run_early() -> None:
    made = clock()
    for seconds in (0.4, 0.4, 20.0):
        made.add_evaluation(seconds, 1000)
    assert made.seconds_left(50.0, 10_000) == pytest.approx(50 - 4.0)


def test_the_reserve_is_bounded() -> None:
    made = clock()
    made.add_evaluation(10.0, 1000)
    assert made.seconds_left(50.0, 1_000_000) == pytest.approx(50 - LARGEST_RESERVE * 100)


def test_what_comes_after_takes_longer_on_a_slower_machine() -> None:
    made = clock(reserve=2.0)
    assert made.deadline == 98.0
    for _ in range(RECENT_STEPS):
        made.add_step(0.2, 100)
    assert made.deadline == pytest.approx(96.0)
    for _ in range(RECENT_STEPS):
        made.add_step(100.0, 100)
    assert made.deadline == pytest.approx(100 - 2 * 2)  # bounded


def test_the_tokens_to_expect_count_the_time_for_evaluations() -> None:
    made = clock()  # 12 steps of 0.1 s
    assert made.expected_tokens(1.2, 1200, 0) == pytest.approx(1200 + (100 - 1.2) * 1000)
    assert made.expected_tokens(2.4, 1200, 0) == pytest.approx(1200 + (100 - 2.4) * 500)  # half of it in evaluations


def test_before_the_first_step_nothing_is_known() -> None:
    made = RunClock(100.0)
    made.add_evaluation(1.0, 1000)
    assert made.pace == 0.0
    assert made.progress(0.0, 1000) == 0.0
    assert made.expected_tokens(0.0, 0, 1000) == 0.0
