"""Which batch each training step sees: sequence-length warm-up and BPE-dropout, as functions of the progress.

A new model starts with short windows, many to a batch, and ends with the full context length: it learns more from the
same number of tokens, and short windows are faster per token. The lengths are in recipe.py.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llmcli.config import TrainConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.batches import Batches, Tokens
from llmcli.training.planning import recipe


def window_length(progress: float, settings: TrainConfig) -> int:
    """Tokens per window at `progress` (0 to 1 of the run): a divisor of the context length.

    Fine-tuning uses the full context length throughout: that model attends over long distances already.

    >>> settings = TrainConfig(steps=1, context=256)
    >>> [window_length(progress, settings) for progress in (0.0, 0.3, 0.5)]
    [64, 128, 256]
    """
    context = settings.context
    if settings.is_fine_tuning:
        return context
    warmup = recipe.LENGTH_WARMUP_WITH_INDUCTION if settings.induction else recipe.LENGTH_WARMUP
    divisor = next((divisor for until, divisor in warmup if progress < until), 1)
    shortest = max(min(context, recipe.SHORTEST_WINDOW), context // divisor)
    return next(length for length in range(shortest, context + 1) if context % length == 0)


class BatchSchedule:
    """Batches of a constant number of tokens. Each is a function of (seed, step, progress, BPE-dropout)."""

    def __init__(self, tokens: Tokens, settings: TrainConfig, tokenizer: Tokenizer) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        self._batches = Batches(tokens, settings.context, settings.batch_size, settings.seed)

    def batch(self, step: int, progress: float, bpe_dropout: float | None = None) -> NDArray[np.int64]:
        """Token ids [rows, window + 1] of a step. `bpe_dropout` replaces the rate of the settings, if given."""
        rate = self._settings.token_split if bpe_dropout is None else bpe_dropout
        rate = rate if progress < recipe.BPE_DROPOUT_UNTIL else 0.0
        if rate and self._batches.merge_pairs is None:
            self._batches = replace(self._batches, merge_pairs=np.array(self._tokenizer.merge_pairs))
        return self._batches.batch(step, window_length(progress, self._settings), rate)
