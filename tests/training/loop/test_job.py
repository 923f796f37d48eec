"""When to evaluate, in literal numbers."""

import pytest

from llmcli.training.loop.job import is_evaluation_due


@pytest.mark.parametrize(
    ("trained", "evaluated", "progress", "due"),
    [(24_000, 1000, 0.05, True), (23_999, 1000, 0.05, False), (24_000, 1000, 0.049, False), (10**9, 1000, 0.0, False)],
)
def test_an_evaluation_is_due_after_enough_progress(trained: int, evaluated: int, progress: float, due: bool) -> None:
    assert is_evaluation_due(trained, evaluated, progress, 0.05) == due
