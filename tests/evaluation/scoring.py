"""A whole text scored in windows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.data.tokens.batches import PrefixedTokens
from llmcli.evaluation.evaluator import Score, ScoreWindows, evaluate_windows, text_windows, total_score


def evaluate(
    ids: NDArray[np.integer] | PrefixedTokens,
    byte_lengths: NDArray[np.integer],
    context: int,
    score: ScoreWindows,
    **options: Any,
) -> Score:
    """The score of ids[1:], each given the ids before it; the options are those of `evaluate_windows`."""
    windows = text_windows([0, len(ids)], context)
    batches = evaluate_windows(ids, byte_lengths, windows, score, **options)
    return total_score(batches, len(windows), lambda share: None)
