"""Evaluation on held-out text while a model is trained, and once more at the end with the weights that are saved."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.config import EVALUATION_CONTEXT, TrainConfig
from llmcli.data.batches import PrefixedTokens
from llmcli.data.tokenizer import Tokenizer
from llmcli.evaluation.evaluator import Score, Window, evaluate_windows, select_windows, spread_order
from llmcli.models.transformer import LanguageModel
from llmcli.training.compute import Compute
from llmcli.training.evaluation_schedule import final_evaluation_tokens
from llmcli.training.interruption import CutShortError

EXTRA_FINAL_TOKENS = 3  # times as many tokens at the end, at most, where the clock leaves time for them
FLOAT32_COST = 2.2  # seconds of an evaluation in float32, for each second of one in bfloat16
BATCH_TOKENS = 4096  # evaluated between two readings of the clock, at most ...
BATCH_OPERATIONS = 1e11  # ... and parameters x tokens, at most

Weights = Mapping[str, NDArray[np.float32]]
Clock = Callable[[], float]
# a pass through the model inside this context may raise CutShortError
Interruptible = Callable[[LanguageModel], contextlib.AbstractContextManager[None]]


class Validator:
    """Evaluates held-out text: `tokens` of it during the run, more at the end."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        held_out: NDArray[np.unsignedinteger],
        settings: TrainConfig,
        *,
        final_models: int = 1,
        compute: Compute | None = None,
    ) -> None:
        """`final_models` is the number of models evaluated at the end: 2 if the run starts from another model."""
        self._model, self._final_models = model, final_models
        self._score = (compute or Compute()).score
        self._ids = PrefixedTokens(tokenizer.bos_id, held_out)
        self._byte_lengths = np.array([len(data) for data in tokenizer.token_bytes])
        self._timed, self._context = settings.seconds is not None, settings.context
        self.tokens = min(settings.eval_tokens, len(held_out))
        self._windows = self._select(settings.context, self.tokens)
        self.final_context = min(model.config.max_position_embeddings, max(EVALUATION_CONTEXT, settings.context))
        self._final_windows: Sequence[Window] = ()
        self.expert_shares: list[list[float]] = []  # of the final evaluation's tokens, [layers][experts]

    def evaluate(self, limit: float = math.inf, clock: Clock = time.monotonic) -> Score:
        """Evaluate the current weights. If `limit`, a time of `clock`, ends this early, later ones cover no more."""
        score, windows = self._evaluate(self._model, self._windows, limit, clock)
        if len(windows) < len(self._windows):
            self._windows, self.tokens = windows, score.tokens
        return score

    def evaluate_final(
        self, weights: Weights, trained: int, limit: float, clock: Clock, interruptible: Interruptible, *, hurried: bool
    ) -> Score | None:
        """Evaluate the weights that will be saved, as those who use the file will run them: in float32, with the
        model's own context length (EVALUATION_CONTEXT at most; that of training if `hurried`).

        Until `limit`, a time of `clock`. None if it was interrupted before the first windows were done.
        """
        tokens = self.tokens if hurried else self._final_tokens(trained)
        if hurried:
            self.final_context = self._context
        elif self._timed:  # the limit decides, so that the run ends on time
            tokens = min(EXTRA_FINAL_TOKENS * tokens, len(self._ids))
        self._final_windows = self._select(self.final_context, tokens)
        model = self._float32_model(weights)
        with interruptible(model):
            score, self._final_windows = self._evaluate(model, self._final_windows, limit, clock, partial_ok=True)
        self.expert_shares = model.expert_shares()
        return score if self._final_windows else None

    def evaluate_base(self, weights: Weights, interruptible: Interruptible) -> Score | None:
        """Evaluate other weights on the windows of `evaluate_final`. None if it was interrupted."""
        model = self._float32_model(weights)
        with interruptible(model):
            score, windows = self._evaluate(model, self._final_windows, partial_ok=True)
        return score if len(windows) == len(self._final_windows) else None

    def remaining_cost(self, trained: int) -> float:
        """The cost of the evaluations after the last step, as a number of tokens of an evaluation during the run."""
        slower = 1 if self._model.dtype is torch.float32 else FLOAT32_COST
        return self._final_models * slower * self._final_tokens(trained) + self.tokens

    def _final_tokens(self, trained: int) -> int:
        return final_evaluation_tokens(trained, self.tokens, len(self._ids))

    def _select(self, context: int, max_tokens: int) -> Sequence[Window]:
        """Windows spread evenly over the text. Where a clock may end an evaluation early, so are the first of them."""
        windows = select_windows(len(self._ids), context, max_tokens)
        return spread_order(windows) if self._timed else windows

    def _float32_model(self, weights: Weights) -> LanguageModel:
        model = LanguageModel(self._model.config).to(self._model.cos.device)
        model.load_arrays(weights)
        return model

    def _evaluate(
        self,
        model: LanguageModel,
        windows: Sequence[Window],
        limit: float = math.inf,
        clock: Clock = time.monotonic,
        *,
        partial_ok: bool = False,
    ) -> tuple[Score, Sequence[Window]]:
        """(score, windows evaluated): all windows, or those until `limit`, but at least one batch of them.

        Raises CutShortError if it was interrupted, unless a part is enough (`partial_ok`).
        """
        model.eval()
        total, done = Score(0.0, 0, 0), 0
        score = partial(self._score, model)
        batch_tokens = int(min(BATCH_TOKENS, BATCH_OPERATIONS / model.config.parameters))
        batches = evaluate_windows(self._ids, self._byte_lengths, windows, score, batch_tokens=batch_tokens)
        try:
            for batch, batch_score in batches:
                total, done = total + batch_score, done + len(batch)
                if clock() > limit:
                    break
        except CutShortError:
            if not partial_ok:
                raise
        return total, windows if done == len(windows) else [windows[i] for i in range(done)]
