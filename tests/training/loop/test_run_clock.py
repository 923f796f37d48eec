"""Progress by the clock, in literal seconds."""

import pytest

from llmcli.training.loop.run_clock import ASSUMED_COST, LARGEST_RESERVE, RECENT_STEPS, RunClock, progress_by_clock


@pytest.mark.parametrize(
    ("left", "elapsed", "expected"),
    [(100, 10, 0.0), (75, 35, 0.25), (50, 60, 0.5), (1, 109, 0.99), (0.51, 109.49, 0.9949), (0.5, 109.5, 1.0),
     (0, 110, 1.0), (0, 500, 1.0)],
)  # fmt: skip
def test_progress_is_linear_in_the_time_left(left: float, elapsed: float, expected: float) -> None:
    """100 seconds of training from the tenth second on, in steps of one second: half a step may be too much."""
    progress = progress_by_clock(left, elapsed, training_began=10, last_step=1)
    assert progress == pytest.approx(expected)


def clock(pace: float = 0.001, steps: int = RECENT_STEPS, **options: float) -> RunClock:
    """Of 100 seconds, after steps of 100 tokens each; `pace` is in seconds per token."""
    made = RunClock(100.0, **options)
    for _ in range(steps):
        made.add_step(100 * pace, 100)
    return made


def test_progress_ends_before_the_reserve_of_the_caller() -> None:
    made = clock(reserve=10.0, training_began=5.0)
    assert made.deadline == 90.0
    assert made.progress(5.0, 0) == 0.0
    assert made.progress(47.5, 0) == pytest.approx(0.5)
    assert made.progress(89.9, 0) < 1.0
    assert made.progress(89.96, 0) == 1.0  # half a step before the end
    assert made.progress(95.0, 0) == 1.0


def test_time_is_reserved_for_the_final_evaluations_at_the_current_speed() -> None:
    made = clock()
    made.add_evaluation(0.4, 1000)  # 0.0004 s per token: 0.4 of training
    assert made.seconds_left(50.0, 10_000) == pytest.approx(50 - 4.0)
    for _ in range(RECENT_STEPS):
        made.add_step(0.3, 100)  # three times as slow
    assert made.seconds_left(50.0, 10_000) == pytest.approx(50 - 12.0)


def test_turns_of_processes_that_share_a_core_do_not_end_a_run_early() -> None:
    """Half a second at one speed, half a second at a third of it, and so on: the reserve follows the mean."""
    made = RunClock(100.0)
    reserves = []
    for turn in range(20):
        for seconds in [0.045] * 11 if turn % 2 else [0.015] * 33:
            made.add_step(seconds, 100)
            reserves.append(100 - made.seconds_left(0.0, 10_000) if turn >= 4 else 0.0)
    mean = ASSUMED_COST * 10_000 * (11 * 0.045 + 33 * 0.015) / (44 * 100)
    assert max(reserves) < 1.2 * mean


def test_a_single_slow_evaluation_does_not_end_a_run_early() -> None:
    made = clock()
    for seconds in (0.4, 0.4, 20.0):
        made.add_evaluation(seconds, 1000)
    assert made.seconds_left(50.0, 10_000) == pytest.approx(50 - 4.0)


def test_the_reserve_for_final_evaluations_is_bounded() -> None:
    made = clock()
    made.add_evaluation(10.0, 1000)
    assert made.seconds_left(50.0, 1_000_000) == pytest.approx(50 - LARGEST_RESERVE * 100)
    made.begin_training(40.0)  # reading and planning took so long
    assert made.seconds_left(50.0, 1_000_000) == pytest.approx(50 - LARGEST_RESERVE * 60)


def test_the_reserve_of_the_caller_grows_on_a_slower_machine() -> None:
    made = clock(reserve=2.0)
    assert made.deadline == 98.0
    for _ in range(RECENT_STEPS):
        made.add_step(0.2, 100)
    assert made.deadline == pytest.approx(96.0)
    for _ in range(RECENT_STEPS):
        made.add_step(100.0, 100)
    assert made.deadline == pytest.approx(100 - 2 * 2)  # bounded


def test_expected_tokens_take_time_for_evaluations_into_account() -> None:
    made = clock()  # 12 steps of 0.1 s
    assert made.expected_tokens(1.2, 1200, 0) == pytest.approx(1200 + (100 - 1.2) * 1000)
    assert made.expected_tokens(2.4, 1200, 0) == pytest.approx(
        1200 + (100 - 2.4) * 500
    )  # half of the time in evaluations


def test_a_resumed_run_counts_the_steps_before_it_was_stopped() -> None:
    """Of 40 s it spent 30 in steps; then 12 steps of 0.1 s."""
    made = RunClock(100.0, earlier_step_seconds=30.0)
    for _ in range(RECENT_STEPS):
        made.add_step(0.1, 100)
    assert made.step_seconds == pytest.approx(31.2)
    expected = 5000 + (100 - 41.2) * 1000 * (31.2 / 41.2)
    assert made.expected_tokens(41.2, 5000, 0) == pytest.approx(expected)


def test_before_the_first_step_there_is_no_pace() -> None:
    made = RunClock(100.0)
    made.add_evaluation(1.0, 1000)
    assert made.pace == 0.0
    assert made.progress(0.0, 1000) == 0.0
    assert made.expected_tokens(0.0, 0, 1000) == 0.0


def test_time_for_compiling_counts_neither_as_progress_nor_in_the_speed() -> None:
    made = RunClock(100.0, training_began=5.0)
    made.exclude(20.0)
    assert made.pace == 0.0
    assert made.progress(25.0, 0) == 0.0
    for _ in range(RECENT_STEPS):
        made.add_step(0.1, 100)
    assert made.pace == pytest.approx(0.001)
    assert made.expected_tokens(26.2, 1200, 0) == pytest.approx(1200 + (100 - 26.2) * 1000)
    before = made.progress(60.0, 0)
    made.exclude(10.0)
    assert before == pytest.approx(1 - 40 / 75) and made.progress(70.0, 0) == pytest.approx(1 - 30 / 65)  # it rises
