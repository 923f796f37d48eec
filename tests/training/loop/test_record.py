"""The history of a run, and its curve in the record."""

import pytest

from llmcli.training.loop.record import CURVE_POINTS, History


def test_the_curve_is_thinned_to_means() -> None:
    history = History()
    for step in range(1, 2 * CURVE_POINTS + 1):
        history.losses.append(float(step))
    curve = history.curve()
    assert len(curve["step"]) == CURVE_POINTS
    assert curve["step"][:2] == [2, 4]
    assert curve["loss"][:2] == [1.5, 3.5]


def test_a_history_of_another_structure_is_refused() -> None:
    history = History([2.0], [(1, 3.5)], [(1, "a")])
    assert (history.losses.tolist(), history.evaluations, history.samples) == ([2.0], [(1, 3.5)], [(1, "a")])
    with pytest.raises((TypeError, ValueError)):
        History([2.0], [(1, 3.5, 7)])  # type: ignore[list-item]
