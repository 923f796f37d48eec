"""Evaluation on held-out data while a model is trained, and once more at the end with the weights that are saved.

The data are a text, of which all tokens count, or conversations, of which the answers count.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.config import TrainConfig
from llmcli.data.batches import PrefixedTokens
from llmcli.data.conversation_batches import ConversationTokens
from llmcli.data.tokenizer import Tokenizer
from llmcli.evaluation.answers import evaluate_answers, spread
from llmcli.evaluation.evaluator import Score, ScoreWindows, evaluate_windows, select_windows, spread_order
from llmcli.models.transformer import LanguageModel
from llmcli.training.compute import Compute
from llmcli.training.evaluation_schedule import final_context, final_evaluation_tokens
from llmcli.training.interruption import CutShortError

EXTRA_FINAL_TOKENS = 3  # times as many tokens at the end, at most, where the clock leaves time for them
FLOAT32_COST = 2.2  # seconds of an evaluation in float32, for each second of one in bfloat16
BATCH_TOKENS = 4096  # evaluated between two readings of the clock, at most ...
BATCH_OPERATIONS = 1e11  # ... and parameters x tokens, at most

Weights = Mapping[str, NDArray[np.float32]]
Clock = Callable[[], float]
# a pass through the model inside this context may raise CutShortError
Interruptible = Callable[[LanguageModel], contextlib.AbstractContextManager[None]]


class _HeldOut(Protocol):
    """Held-out data as units that are scored by themselves: windows of a text, or conversations."""

    def __len__(self) -> int:
        """The number of tokens."""

    def select(self, context: int, max_tokens: int, *, timed: bool) -> Sequence[Any]:
        """Units of about `max_tokens` tokens, spread evenly over the data. If a clock may end an evaluation early
        (`timed`), so are the first of them."""

    def tokens(self, units: Sequence[Any], score: Score) -> int:
        """The number of tokens that the model processed to score these units."""

    def evaluate(
        self, units: Sequence[Any], score: ScoreWindows, batch_tokens: int
    ) -> Iterator[tuple[Sequence[Any], Score]]:
        """Score units in batches; a caller can stop in between."""


class _HeldOutText:
    def __init__(self, tokenizer: Tokenizer, ids: NDArray[np.unsignedinteger], byte_lengths: NDArray[np.int64]) -> None:
        self._ids, self._byte_lengths = PrefixedTokens(tokenizer.bos_id, ids), byte_lengths

    def __len__(self) -> int:
        return len(self._ids)

    def select(self, context: int, max_tokens: int, *, timed: bool) -> Sequence[Any]:
        windows = select_windows(len(self._ids), context, max_tokens)
        return spread_order(windows) if timed else windows

    def tokens(self, units: Sequence[Any], score: Score) -> int:
        return score.tokens

    def evaluate(
        self, units: Sequence[Any], score: ScoreWindows, batch_tokens: int
    ) -> Iterator[tuple[Sequence[Any], Score]]:
        return evaluate_windows(self._ids, self._byte_lengths, units, score, batch_tokens=batch_tokens)


class _HeldOutAnswers:
    def __init__(self, conversations: ConversationTokens, byte_lengths: NDArray[np.int64]) -> None:
        self._conversations, self._byte_lengths = conversations, byte_lengths

    def __len__(self) -> int:
        return len(self._conversations.ids)

    def select(self, context: int, max_tokens: int, *, timed: bool) -> Sequence[Any]:
        return spread(self._conversations, max_tokens)

    def tokens(self, units: Sequence[Any], score: Score) -> int:
        return int(self._conversations.lengths[list(units)].sum())

    def evaluate(
        self, units: Sequence[Any], score: ScoreWindows, batch_tokens: int
    ) -> Iterator[tuple[Sequence[Any], Score]]:
        return evaluate_answers(self._conversations, units, self._byte_lengths, score, batch_tokens=batch_tokens)


class Validator:
    """Evaluates held-out data: `tokens` of them during the run, more at the end."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        held_out: NDArray[np.unsignedinteger] | ConversationTokens,
        settings: TrainConfig,
        *,
        final_models: int = 1,
        compute: Compute | None = None,
    ) -> None:
        """`final_models` is the number of models evaluated at the end: 2 if the run starts from another model."""
        self._model, self._final_models = model, final_models
        self._score = (compute or Compute()).score
        byte_lengths = np.array([len(data) for data in tokenizer.token_bytes])
        self._timed = settings.seconds is not None
        longest = model.config.max_position_embeddings
        self._data: _HeldOut
        if isinstance(held_out, ConversationTokens):
            self._data, count = _HeldOutAnswers(held_out, byte_lengths), len(held_out.ids)
            self.final_context = self._hurried_context = longest  # each conversation is scored whole
        else:
            self._data, count = _HeldOutText(tokenizer, held_out, byte_lengths), len(held_out)
            self.final_context = final_context(longest, settings.context)
            self._hurried_context = settings.context
        self.tokens = min(settings.eval_tokens, count)
        self.evaluated_tokens = 0  # that the last evaluation processed
        self._units = self._select(settings.context, self.tokens)
        self._final_units: Sequence[Any] = ()
        self.expert_shares: list[list[float]] = []  # of the final evaluation's tokens, [layers][experts]

    def evaluate(self, limit: float = math.inf, clock: Clock = time.monotonic) -> Score:
        """Evaluate the current weights. If `limit`, a time of `clock`, ends this early, later ones cover no more."""
        score, units = self._evaluate(self._model, self._units, limit, clock)
        self.evaluated_tokens = self._data.tokens(units, score)
        if len(units) < len(self._units):
            self._units, self.tokens = units, self.evaluated_tokens
        return score

    def evaluate_final(
        self, weights: Weights, trained: int, limit: float, clock: Clock, interruptible: Interruptible, *, hurried: bool
    ) -> Score | None:
        """Evaluate the weights that will be saved, as those who use the file will run them: in float32, with the
        model's own context length (`evaluation_schedule.final_context` at most; that of training if `hurried`).

        Until `limit`, a time of `clock`. None if it was interrupted before the first windows were done.
        """
        tokens = self.tokens if hurried else self._final_tokens(trained)
        if hurried:
            self.final_context = min(self.final_context, self._hurried_context)
        elif self._timed:  # the limit decides, so that the run ends on time
            tokens = min(EXTRA_FINAL_TOKENS * tokens, len(self._data))
        self._final_units = self._select(self.final_context, tokens)
        model = self._model.scoring_model(weights)
        with interruptible(model):
            score, self._final_units = self._evaluate(model, self._final_units, limit, clock, partial_ok=True)
        self.expert_shares = model.expert_shares()
        return score if self._final_units else None

    def evaluate_base(self, weights: Weights, interruptible: Interruptible) -> Score | None:
        """Evaluate other weights on the units of `evaluate_final`. None if it was interrupted."""
        model = self._model.scoring_model(weights)
        with interruptible(model):
            score, units = self._evaluate(model, self._final_units, partial_ok=True)
        return score if len(units) == len(self._final_units) else None

    def remaining_cost(self, trained: int) -> float:
        """The cost of the evaluations after the last step, as a number of tokens of an evaluation during the run."""
        slower = 1 if self._model.dtype is torch.float32 else FLOAT32_COST
        return self._final_models * slower * self._final_tokens(trained) + self.tokens

    def _final_tokens(self, trained: int) -> int:
        return final_evaluation_tokens(trained, self.tokens, len(self._data))

    def _select(self, context: int, max_tokens: int) -> Sequence[Any]:
        return self._data.select(context, max_tokens, timed=self._timed)

    def _evaluate(
        self,
        model: LanguageModel,
        units: Sequence[Any],
        limit: float = math.inf,
        clock: Clock = time.monotonic,
        *,
        partial_ok: bool = False,
    ) -> tuple[Score, Sequence[Any]]:
        """(score, units evaluated): all units, or those until `limit`, but at least one batch of them.

        Raises CutShortError if it was interrupted, unless a part is enough (`partial_ok`).
        """
        model.eval()
        total, done = Score(0.0, 0, 0), 0
        batch_tokens = int(min(BATCH_TOKENS, BATCH_OPERATIONS / model.config.parameters))
        batches = self._data.evaluate(units, partial(self._score, model), batch_tokens)
        try:
            for batch, batch_score in batches:
                total, done = total + batch_score, done + len(batch)
                if clock() > limit:
                    break
        except CutShortError:
            if not partial_ok:
                raise
        return total, units if done == len(units) else [units[i] for i in range(done)]
