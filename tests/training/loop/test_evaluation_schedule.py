"""When to evaluate, in literal numbers."""

import pytest

from llmcli.training.loop.evaluation_schedule import EvaluationSchedule, final_evaluation_tokens


@pytest.mark.parametrize(
    ("trained", "evaluated", "progress", "due"),
    [(24_000, 1000, 0.05, True), (23_999, 1000, 0.05, False), (24_000, 1000, 0.049, False), (10**9, 1000, 0.0, False)],
)
def test_an_evaluation_is_due_after_enough_training_and_progress(
    trained: int, evaluated: int, progress: float, due: bool
) -> None:
    assert EvaluationSchedule().is_due(trained, evaluated, progress) == due


@pytest.mark.parametrize(
    ("trained", "held_out", "tokens"),
    [(0, 10**9, 4096), (60_000, 10**9, 10_000), (600_000, 10**9, 65_536), (1_600_000, 10**9, 100_000),
     (1_600_000, 5000, 5000), (0, 300, 300), (10**10, 10**9, 4_194_304)],
)  # fmt: skip
def test_the_final_evaluation_grows_with_the_run(trained: int, held_out: int, tokens: int) -> None:
    assert final_evaluation_tokens(trained, 4096, held_out) == tokens
