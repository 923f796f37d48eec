"""The number of epochs for a short text, found by a first run with a validation slice and used by a second
run on all of the text (Goodfellow, Bengio and Courville, "Deep Learning", algorithm 7.2).

The slice decides, because the best number differs between texts: 20 for prose, 80 for sentences from
templates. The second run has no slice: without a twelfth of so short a text, the loss is up to 3% higher.
"""

import math
from collections.abc import Iterable

from llmcli.training.data.prepare import Prepared
from llmcli.training.loop.events import Evaluation, Event, Restarted, Step
from llmcli.training.planning import recipe
from llmcli.training.planning.cost_model import Machine
from llmcli.training.planning.plan import EpochSearch


class FirstRun:
    """Finds the number of epochs with the lowest validation loss, before the learning rate falls."""

    def __init__(
        self, prepared: Prepared, machine: Machine, evaluations: Iterable[tuple[int, float]] = ()
    ) -> None:
        """`evaluations` of a stopped run are pairs of a step and bits per byte."""
        self._prepared = prepared
        self._machine = machine
        self._tie_margin = recipe.SEARCH_TIE_MARGIN / math.sqrt(prepared.plan.train.calibration_tokens)
        self._lowest = math.inf
        self._best_step = 0
        for step, bits in evaluations:
            self._add(step, bits)
        self._last: Step | None = None

    def _add(self, step: int, bits: float) -> None:
        if bits <= self._lowest * (1 + self._tie_margin):
            self._best_step = step
        self._lowest = min(self._lowest, bits)

    def restart(self, event: Event) -> Restarted | None:
        """Return the plan of the second run, once the number of epochs is found or the time of the first run
        is up."""
        is_confirmed = False
        if isinstance(event, Step):
            self._last = event
        elif isinstance(event, Evaluation):
            self._add(event.step, event.bits_per_byte)
            is_confirmed = event.step >= recipe.SEARCH_PATIENCE * self._best_step
        last, plan_again = self._last, self._prepared.plan_again
        if not (last and self._best_step and (is_confirmed or last.progress >= 1 - recipe.DECAY)):
            return None
        assert plan_again
        factor = recipe.SEARCH_EPOCHS_FACTOR if is_confirmed else recipe.SEARCH_PATIENCE
        search = EpochSearch(round(factor * self._best_step * last.epoch / last.step, 2), is_confirmed)
        plan = plan_again(self._machine, last.seconds + recipe.RESTART_SECONDS, search)
        return Restarted(last.step, last.seconds, 1.0, self._prepared.plan, plan)
