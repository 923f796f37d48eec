"""Evaluation in a run: on the validation slice during training (best_weights.py), and on the held-out data at
the end (final_evaluation.py).

The validation slice selects the weights to keep; the held-out data select nothing. Both are texts, with all
tokens counted, or conversations, with only the answers counted.
"""

from collections.abc import Callable, Iterator
from functools import partial

from llmcli.evaluation.evaluator import Score
from llmcli.models.runtime import Ints
from llmcli.models.torch.runtime import score as score_with_torch
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.interruption import CutShortError

BATCH_TOKENS = 4096  # maximum evaluated between two readings of the clock ...
BATCH_OPERATIONS = 1e11  # ... and maximum parameters x tokens

# `evaluate_windows` for certain tokens: takes windows and a function that scores them
ScoreData = Callable[..., Iterator[tuple[int, Score]]]


def evaluated_tokens(windows: Ints) -> int:
    """Return the number of tokens that the model processes to score windows, as in `evaluate_windows`."""
    return int((windows[:, 2] - windows[:, 1]).sum())


def evaluate(
    model: LanguageModel,
    score_data: ScoreData,
    windows: Ints,
    limit: float,
    now: Callable[[], float],
    *,
    partial_ok: bool = False,
) -> tuple[Score, int]:
    """Return (score, number of evaluated windows): all, or those until `limit` (in the time of `now`), but at
    least a batch. An interruption raises CutShortError unless a part is enough (`partial_ok`)."""
    model.eval()
    total = Score(0.0, 0, 0)
    done = 0
    batch_tokens = int(min(BATCH_TOKENS, BATCH_OPERATIONS / model.config.parameters))
    try:
        for count, score in score_data(windows, partial(score_with_torch, model), batch_tokens=batch_tokens):
            total += score
            done += count
            if now() > limit:
                break
    except CutShortError:
        if not partial_ok:
            raise
    return total, done
