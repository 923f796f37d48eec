"""The training losses of a run so far, in bits per byte."""

import math
from array import array
from typing import TYPE_CHECKING

from llmcli.training.files.curve import Curve
from llmcli.training.loop.events import Evaluation, Restarted, Step, TeacherTrained

if TYPE_CHECKING:
    from llmcli.training.loop.events import RunEvent, State

LOSS_SMOOTHING = 0.05  # weight of the newest loss in the moving average
MAX_POINTS = 240  # maximum length of a curve


class TrainingLosses:
    """The losses of the current model. `bytes_per_token` converts them to bits per byte. `answers` is None,
    or (the progress, 0 to 1, when training on conversations begins; bytes per token of their answers)."""

    def __init__(self, bytes_per_token: float, answers: tuple[float, float] | None = None) -> None:
        self._bytes_per_token = bytes_per_token
        self.answers = answers
        self._begin_model()

    def _begin_model(self) -> None:
        self._losses = array("d")  # one per step
        self._last_step = 0
        self.mean = math.nan  # moving average
        self.evaluations: list[tuple[int, float]] = []  # (step, validation loss in bits per byte)
        # the run to resume, whose losses come first: read at the next step, when the new run has checked it
        self.stopped: State | None = None

    def add(self, event: "RunEvent") -> None:
        match event:
            case Step():
                if stopped := self.stopped:
                    self.stopped = None
                    self._add_earlier(stopped)
                from_progress, _ = self.answers or (1.0, 0.0)
                self._add(event.step, event.loss, of_answers=event.progress > from_progress)
            case Evaluation() if math.isfinite(event.bits_per_byte):
                self.evaluations.append((event.step, event.bits_per_byte))
            case TeacherTrained() | Restarted():
                self._begin_model()

    def _add_earlier(self, stopped: "State") -> None:
        values = stopped.values
        first = values["student_from"] or 0
        answers_from = values["conversations_from"]
        for step, loss in enumerate(stopped.arrays["losses"], 1):
            if step > first:
                self._add(step, float(loss), of_answers=answers_from is not None and step > answers_from)
        self.evaluations[:0] = [(step, bits) for step, bits in values["evaluations"] if step > first]

    def _add(self, step: int, loss: float, *, of_answers: bool) -> None:
        bytes_per_token = self.answers[1] if self.answers and of_answers else self._bytes_per_token
        loss /= math.log(2) * bytes_per_token
        # average over few steps at first, since the loss falls steeply
        weight = max(LOSS_SMOOTHING, 2 / (step + 1))
        self.mean = loss if math.isnan(self.mean) else (1 - weight) * self.mean + weight * loss
        self._last_step = step
        self._losses.append(loss)

    def curve(self) -> Curve:
        """Reduce the training losses to at most MAX_POINTS means over equal numbers of steps, each at the
        last of its steps."""
        import numpy as np

        count = len(self._losses)
        steps = [step for step, _ in self.evaluations]
        validation = [bits for _, bits in self.evaluations]
        if not count:
            return Curve([], [], steps, validation)
        starts = np.arange(0, count, math.ceil(count / MAX_POINTS))
        ends = np.append(starts[1:], count)
        means = np.add.reduceat(np.frombuffer(self._losses), starts) / (ends - starts)
        return Curve((self._last_step - count + ends).tolist(), means.tolist(), steps, validation)
