"""The choice of a run's final weights: the best on the validation slice, or the last if there is no slice.

The weights are calibrated (arXiv:1706.04599, section 4.2), because after several epochs a model is
overconfident on new text. One factor for all logits, an inverse temperature, is fitted on the validation
slice and multiplied into the gain of the final norm, so that it takes effect in every program that opens the
file. The fit also gives the loss of the calibrated weights, so no separate evaluation is needed.
"""

import contextlib
import math
from functools import partial

import numpy as np

from llmcli.data.conversations.batches import ConversationTokens
from llmcli.evaluation.answers import conversation_windows
from llmcli.evaluation.evaluator import Score, evaluate_windows, spread_indices
from llmcli.models.runtime import Array, Ints
from llmcli.models.torch.runtime import fit_inverse_temperature
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.position import Position
from llmcli.training.data.run_data import RunData
from llmcli.training.interruption import CutShortError
from llmcli.training.loop.clock import FINAL_PATIENCE, STEP_PATIENCE, Clock
from llmcli.training.loop.events import Evaluation
from llmcli.training.loop.validation import ScoreData, evaluate, evaluated_tokens
from llmcli.training.planning import recipe

FIRST_EVALUATION_SHARE = 0.03  # maximum share of the remaining time for evaluating the initial model
CALIBRATION_COST = 1.5  # cost per token of an evaluation that fits the temperature, relative to others

Weights = dict[str, Array]


class BestWeights:
    """Calibrates and evaluates the current weights of a model, and keeps the best so far (no weights before
    the first evaluation). The step, factor and loss of the best weights are in the Position."""

    def __init__(
        self, model: LanguageModel, data: RunData, clock: Clock, position: Position, *, is_compiled: bool
    ) -> None:
        """`is_compiled` says whether torch compiles the layers of the model on first use."""
        self._model = model
        self._clock = clock
        self._position = position
        self._compiles = is_compiled  # whether the next evaluation takes longer than later ones
        self._has_adapters = data.plan.train.lora_rank > 0
        self._byte_lengths = data.tokenizer.byte_lengths
        self._slice = data.validation
        self._score_slice: ScoreData
        if isinstance(self._slice, ConversationTokens):
            windows = conversation_windows(self._slice)
            self._score_slice = partial(
                evaluate_windows, self._slice.ids, self._byte_lengths, loss_mask=self._slice.loss_mask
            )
        else:
            width = self._slice.shape[1]
            windows = np.arange(0, self._slice.size, width)[:, None] + [0, 1, width]
            self._score_slice = partial(evaluate_windows, self._slice.ravel(), self._byte_lengths)
        self.windows: Ints = windows[spread_indices(len(windows))]  # evaluated; empty without a slice
        self._calibrates = data.plan.train.calibrates and len(windows) > 0
        self.weights: Weights = {}
        self.adapters: Weights | None = None  # trained LoRA matrices by name

    @property
    def cost(self) -> float:
        """Cost of an evaluation, as a number of tokens that are evaluated without calibration."""
        return (CALIBRATION_COST if self._calibrates else 1.0) * evaluated_tokens(self.windows)

    def evaluate(self, *, hurried: bool) -> tuple[Evaluation, Weights] | None:
        """Calibrate and evaluate the current weights; keep them if they are the best so far or tie with them.
        Returns None if interrupted (`hurried`: after a stop request) or out of time. The evaluation before
        the first step has a time limit, and later ones cover no more tokens than it did, unless they
        calibrate."""
        clock = self._clock
        position = self._position
        limit = math.inf
        deadline = clock.final_deadline()
        is_first = not position.step
        if is_first:
            limit = FIRST_EVALUATION_SHARE * max(0.0, clock.deadline - clock.elapsed)
            deadline = clock.elapsed + 2 * limit
        patience = FINAL_PATIENCE if hurried else STEP_PATIENCE
        try:
            with clock.interruptible(self._model, patience, deadline):
                began = clock.now()
                factor, bits = self._measure(began + limit)
                seconds = clock.now() - began
                if self._compiles:
                    clock.exclude(seconds)
                else:
                    clock.add_evaluation(seconds, self.cost)
                self._compiles = False
                weights = self._scaled_weights(factor)
        except CutShortError:
            if is_first and not (self._calibrates or clock.stop_requested()):
                self.windows = self.windows[:1]  # there was time for at most one
            return None
        # round as the record does, so that every display rounds the same number
        bits = round(bits, 6)
        best = position.best_bits
        is_best = math.isfinite(bits) and (best is None or bits <= best * (1 + recipe.TIE_MARGIN))
        if is_best:
            self._keep(weights, factor)
            position.best_bits = bits if best is None else min(bits, best)
        return Evaluation(position.step, bits, is_best), weights

    def keep_last(self) -> None:
        """Keep the current weights without an evaluation, calibrated if there is a slice and no stop
        request."""
        deadline = self._clock.final_deadline()
        factor = 1.0
        if self._calibrates:
            with (
                contextlib.suppress(CutShortError),
                self._clock.interruptible(self._model, FINAL_PATIENCE, deadline),
            ):
                factor, _ = self._measure()
        self._keep(self._scaled_weights(factor), factor)

    def _keep(self, weights: Weights, factor: float) -> None:
        self.weights = weights
        self.adapters = self._model.trainable_arrays() if self._has_adapters else None
        self._position.best_step = self._position.step
        self._position.best_factor = factor

    def _measure(self, limit: float = math.inf) -> tuple[float, float]:
        """Return (factor on the logits, bits per byte with this factor) on the validation slice. Without
        calibration, the factor is 1.0, and only the part that can be evaluated until `limit` counts."""
        ids = self._slice
        if not self._calibrates or isinstance(ids, ConversationTokens):
            score, count = evaluate(self._model, self._score_slice, self.windows, limit, self._clock.now)
            self.windows = self.windows[:count]
            return 1.0, score.bits_per_byte
        self._model.eval()
        factor, nats = fit_inverse_temperature(self._model, ids, self._position.best_factor)
        size = int(self._byte_lengths[ids[:, 1:]].sum())
        return round(factor, 4), Score(nats, ids[:, 1:].size, size).bits_per_byte

    def _scaled_weights(self, factor: float) -> Weights:
        """Copy the weights, with this factor on the logits."""
        self._model.logit_factor = factor
        weights = self._model.to_arrays()
        self._model.logit_factor = 1.0
        return weights
