"""The loss curve in the record of a run."""

from llmcli.training.data.position import Position
from llmcli.training.loop.record import CURVE_POINTS, loss_curve


def test_the_curve_is_thinned_to_means() -> None:
    curve = loss_curve(Position(), [float(step) for step in range(1, 2 * CURVE_POINTS + 1)])
    assert len(curve["step"]) == CURVE_POINTS
    assert curve["step"][:2] == [2, 4]
    assert curve["loss"][:2] == [1.5, 3.5]
