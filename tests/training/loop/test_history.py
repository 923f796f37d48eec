"""The loss curve in the record."""

import pytest

from llmcli.training.loop.history import CURVE_POINTS, History


def test_the_curve_is_thinned_to_means() -> None:
    history = History()
    for step in range(1, 2 * CURVE_POINTS + 1):
        history.add_loss(float(step))
    curve = history.curve()
    assert len(curve["step"]) == CURVE_POINTS
    assert curve["step"][:2] == [2, 4]
    assert curve["loss"][:2] == [1.5, 3.5]


def test_the_last_point_of_the_curve_may_cover_fewer_steps() -> None:
    curve = History([1.0] * CURVE_POINTS + [4.0]).curve()
    assert curve["step"][-2:] == [CURVE_POINTS, CURVE_POINTS + 1]
    assert curve["loss"][-2:] == [1.0, 4.0]


def test_a_history_continues_from_what_a_stopped_run_saved() -> None:
    history = History([2.0], [(1, 3.5)], [(1, "a")])
    history.add_loss(1.0)
    history.add_evaluation(2, 3.0)
    history.add_sample(2, "b")
    assert history.losses().tolist() == [2.0, 1.0]
    assert history.evaluations() == [(1, 3.5), (2, 3.0)] and history.samples() == [(1, "a"), (2, "b")]
    with pytest.raises((TypeError, ValueError)):
        History([2.0], [(1, 3.5, 7)])  # type: ignore[list-item]
