"""The number of epochs for a short text, found by a first run with a validation slice and used by a second
run on all of the text (Goodfellow, Bengio and Courville, "Deep Learning", algorithm 7.2).

The number is measured because it differs between texts: 20 epochs for prose, 80 for sentences from templates.
The second run has no slice: holding out a twelfth of such a short text would raise the loss by up to 3%.
"""

import math
from collections.abc import Iterable

from llmcli.training.loop.events import Evaluation, Event, Step
from llmcli.training.planning import recipe
from llmcli.training.planning.plan import EpochSearch, Plan


class FirstRun:
    """Finds the number of epochs with the lowest validation loss, before the learning rate falls."""

    def __init__(self, plan: Plan, evaluations: Iterable[tuple[int, float]] = ()) -> None:
        """`evaluations` of a stopped run: pairs (step, bits per byte)."""
        self._tie_margin = recipe.SEARCH_TIE_MARGIN / math.sqrt(plan.train.calibration_tokens)
        self._lowest = math.inf
        self._best_step = 0
        for step, bits in evaluations:
            self._add(step, bits)
        self._last: Step | None = None

    def _add(self, step: int, bits: float) -> None:
        if bits <= self._lowest * (1 + self._tie_margin):
            self._best_step = step
        self._lowest = min(self._lowest, bits)

    def update(self, event: Event) -> tuple[EpochSearch, Step] | None:
        """Return (the number of epochs for the second run, the last step of the first one) once it is known,
        or once the first run's time is up."""
        is_confirmed = False
        if isinstance(event, Step):
            self._last = event
        elif isinstance(event, Evaluation):
            self._add(event.step, event.bits_per_byte)
            is_confirmed = event.step >= recipe.SEARCH_PATIENCE * self._best_step
        last = self._last
        if not (last and self._best_step and (is_confirmed or last.progress >= 1 - recipe.DECAY)):
            return None
        factor = recipe.SEARCH_EPOCHS_FACTOR if is_confirmed else recipe.SEARCH_PATIENCE
        return EpochSearch(round(factor * self._best_step * last.epoch / last.step, 2), is_confirmed), last
