"""The history of a training run: its losses, evaluations and samples, and their form in the training record."""

import math
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CURVE_POINTS = 300  # of the loss curve in the record, at most


class History:
    """Grows by one loss per step, and by one evaluation and one sample now and then."""

    def __init__(
        self,
        losses: Sequence[float] = (),
        evaluations: Sequence[tuple[int, float]] = (),
        samples: Sequence[tuple[int, str]] = (),
    ) -> None:
        """Empty, or that of a stopped run. Raises TypeError or ValueError for values of another structure."""
        self._losses = array("d", losses)
        self._evaluations = [(step, bits) for step, bits in evaluations]
        self._samples = [(step, text) for step, text in samples]

    def add_loss(self, loss: float) -> None:
        self._losses.append(loss)

    def add_evaluation(self, step: int, bits_per_byte: float) -> None:
        self._evaluations.append((step, bits_per_byte))

    def add_sample(self, step: int, text: str) -> None:
        self._samples.append((step, text))

    def losses(self) -> NDArray[np.float64]:
        """Nats per token of each step, [steps]."""
        return np.array(self._losses, np.float64)

    def evaluations(self) -> list[tuple[int, float]]:
        """(step, bits per byte) in order."""
        return list(self._evaluations)

    def best_evaluation(self, step: int) -> float:
        """The fewest bits per byte of an evaluation up to a step."""
        return min(bits for evaluated, bits in self._evaluations if evaluated <= step)

    def samples(self) -> list[tuple[int, str]]:
        """(step, text) in order."""
        return list(self._samples)

    def curve(self) -> dict[str, list[Any]]:
        """The loss curve thinned to at most CURVE_POINTS means over equally many steps, each placed at the last of its
        steps; and all evaluations."""
        width = math.ceil(len(self._losses) / CURVE_POINTS)
        ends = range(width, len(self._losses) + width, width) if width else ()
        return {
            "step": [min(end, len(self._losses)) for end in ends],
            "loss": [round(float(np.mean(self._losses[end - width : end])), 4) for end in ends],
            "eval_step": [step for step, _ in self._evaluations],
            "eval_bits_per_byte": [bits for _, bits in self._evaluations],
        }
