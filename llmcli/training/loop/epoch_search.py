"""The number of epochs for a short text, found by a first run with a validation slice and used by a second
run on all of the text (Goodfellow, Bengio and Courville, "Deep Learning", algorithm 7.2).

The number is measured because it differs between texts: 20 epochs for prose, 80 for sentences from templates.
The second run has no slice: holding out a twelfth of such a short text would raise the loss by up to 3%.
"""

import math
from collections.abc import Sequence

from llmcli.training.loop.events import Step
from llmcli.training.planning import recipe
from llmcli.training.planning.plan import EpochSearch, Plan


def find_epochs(plan: Plan, evaluations: Sequence[tuple[int, float]], last: Step) -> EpochSearch | None:
    """Return the number of epochs for the second run once the validation loss of the first run, whose last
    step was `last`, has risen for long enough, or once its learning rate would fall; otherwise None.
    `evaluations` are pairs (step, bits per byte)."""
    margin = 1 + recipe.SEARCH_TIE_MARGIN / math.sqrt(plan.train.calibration_tokens)
    lowest = math.inf
    best_step = 0
    for step, bits in evaluations:
        if bits <= lowest * margin:
            best_step = step
        lowest = min(lowest, bits)
    is_confirmed = bool(evaluations) and evaluations[-1][0] >= recipe.SEARCH_PATIENCE * best_step
    if not (best_step and (is_confirmed or last.progress >= 1 - recipe.DECAY)):
        return None
    factor = recipe.SEARCH_EPOCHS_FACTOR if is_confirmed else recipe.SEARCH_PATIENCE
    return EpochSearch(round(factor * best_step * last.epoch / last.step, 2), is_confirmed)
