"""The number of threads for a step, on simulated machines."""

import random
from collections.abc import Callable, Sequence

from llmcli.training.step.thread_tuner import FIRST_TRIAL, LONGEST_PAUSE, ThreadTuner, thread_counts

STEP = 2048  # tokens
# tokens per second of two cores, measured (tests/benchmarks/LOG.md): by threads, alone and beside one busy process
ALONE, BUSY = {2: 28_800.0, 1: 17_800.0}, {2: 7_800.0, 1: 16_700.0}


def simulate(
    speed: Callable[[float, int], float], seconds: float, max_threads: int = 2, noise: float = 0.0
) -> tuple[float, list[tuple[float, int]]]:
    """(tokens per second, (when, threads) of each step) on a machine whose `speed` depends on time and threads. It
    starts with all threads, however slow that is."""
    rng = random.Random(0)
    now, tokens, history = 0.0, 0, []

    def fastest(counts: Sequence[int]) -> int:
        return max(counts, key=lambda count: speed(now, count)) if history else max_threads

    tuner = ThreadTuner(max_threads, fastest=fastest)
    while now < seconds:
        history.append((now, tuner.threads))
        took = STEP / speed(now, tuner.threads) * (1 + noise * rng.uniform(-1, 1))
        tuner.add_step(took, STEP)
        now, tokens = now + took, tokens + STEP
    return tokens / now, history


def test_alone_hardly_any_speed_is_lost() -> None:
    for noise in [0.0, 0.15]:
        speed, _ = simulate(lambda now, threads: ALONE[threads], 140, noise=noise)
        assert speed > 0.985 * ALONE[2]


def test_beside_a_busy_process_fewer_threads_are_chosen() -> None:
    for noise in [0.0, 0.15]:
        speed, _ = simulate(lambda now, threads: BUSY[threads], 60, noise=noise)
        assert speed > 0.95 * BUSY[1]
        assert speed > 0.55 * ALONE[2]  # all threads would have 0.27


def test_the_number_follows_when_another_process_starts_and_ends() -> None:
    def speed(now: float, threads: int) -> float:
        return (BUSY if 60 <= now < 120 else ALONE)[threads]

    _, history = simulate(speed, 180)
    assert {threads for now, threads in history if 62 < now < 64} == {1}  # at once
    after = [threads for now, threads in history if now > 120 + LONGEST_PAUSE + 1]
    assert after.count(2) > 0.97 * len(after)


def test_as_many_of_many_cores_are_used_as_are_free() -> None:
    for free in [1, 8, 13, 14, 15, 16]:
        speeds = {threads: 10_000 * (threads if threads <= free else 0.3**1.25 * free) ** 0.8 for threads in range(17)}
        average, _ = simulate(lambda now, threads, speeds=speeds: speeds[threads], 120, max_threads=16)
        assert average > 0.85 * max(speeds[threads] for threads in thread_counts(16))


def test_more_threads_are_not_tried_where_small_operations_are_slower_with_them() -> None:
    """As where three runs share two cores: a step with two threads would take as long as thirty with one."""
    _, history = simulate(lambda now, threads: {2: 700.0, 1: 21_000.0}[threads], 60)
    assert [threads for _, threads in history].count(2) <= FIRST_TRIAL


def test_a_few_slow_steps_count_where_others_share_the_cores() -> None:
    """With two threads one step in three is very slow: faster in most steps, and slower in all."""
    tuner = ThreadTuner(2)
    for step in range(20):
        pace = 1 / 17_800 if tuner.threads == 1 else (30 if step % 3 == 2 else 1) / 28_800
        tuner.add_step(STEP * pace, STEP)
    assert tuner.threads == 1


def test_steps_of_another_shape_are_not_taken_for_a_slower_machine() -> None:
    tuner = ThreadTuner(2)
    for _ in range(40):
        tuner.add_step(STEP / ALONE[tuner.threads], STEP)
    assert tuner.threads == 2
    tuner.new_shape()
    for _ in range(20):
        tuner.add_step(2 * STEP / ALONE[tuner.threads], STEP)
        assert tuner.threads == 2


def test_the_first_step_is_not_taken_for_the_pace() -> None:
    """It takes three times as long as others, but with one thread they would all take longer than with two."""
    tuner = ThreadTuner(2)
    for step in range(40):
        slower = 4.0 if step == 0 else 1.0
        tuner.add_step(slower * STEP / ALONE[tuner.threads], STEP)
        assert tuner.threads == 2 or tuner.trial is not None
