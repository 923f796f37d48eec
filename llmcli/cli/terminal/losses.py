"""The training losses of a run so far, in bits per byte."""

import math
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcli.training.loop.events import Step

LOSS_SMOOTHING = 0.05  # weight of the newest loss in the moving average
MAX_POINTS = 240  # maximum length of a curve


class TrainingLosses:
    """The losses of the current model. `bytes_per_token` converts them to bits per byte. `answers` is None,
    or (the progress, 0 to 1, when training on conversations begins; bytes per token of their answers)."""

    def __init__(self, bytes_per_token: float, answers: tuple[float, float] | None = None) -> None:
        self._bytes_per_token = bytes_per_token
        self.answers = answers
        self.begin_model()

    def begin_model(self) -> None:
        """Start with another model."""
        self._losses = array("d")  # one per step
        self._last_step = 0
        self.mean = math.nan  # moving average
        self.evaluations: list[tuple[int, float]] = []  # (step, validation loss in bits per byte)

    def add(self, event: "Step") -> None:
        from_progress, of_answers = self.answers or (1.0, 0.0)
        bytes_per_token = of_answers if event.progress > from_progress else self._bytes_per_token
        loss = event.loss / (math.log(2) * bytes_per_token)
        # average over few steps at first, since the loss falls steeply
        weight = max(LOSS_SMOOTHING, 2 / (event.step + 1))
        self.mean = loss if math.isnan(self.mean) else (1 - weight) * self.mean + weight * loss
        self._last_step = event.step
        self._losses.append(loss)

    def curve(self) -> tuple[list[int], list[float]]:
        """Reduce the losses to at most MAX_POINTS means over equal numbers of steps, each at its last
        step."""
        import numpy as np

        count = len(self._losses)
        if not count:
            return [], []
        starts = np.arange(0, count, math.ceil(count / MAX_POINTS))
        ends = np.append(starts[1:], count)
        means = np.add.reduceat(np.frombuffer(self._losses), starts) / (ends - starts)
        return (self._last_step - count + ends).tolist(), means.tolist()
