"""The choice of a run's final weights: the best on the validation slice, or the last if there is no slice.

The weights are calibrated (arXiv:1706.04599, section 4.2), because after several epochs a model is
overconfident on new text. One factor for all logits, an inverse temperature, is fitted on the validation
slice and multiplied into the gain of the final norm, so that it takes effect in every program that opens the
file. The fit also gives the loss of the calibrated weights, so no separate evaluation is needed.
"""

import contextlib
import math

from llmcli.models.runtime import Array
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.position import Position
from llmcli.training.data.run_data import RunData
from llmcli.training.interruption import CutShortError
from llmcli.training.loop.clock import FINAL_PATIENCE, STEP_PATIENCE, Clock
from llmcli.training.loop.events import Evaluation
from llmcli.training.loop.validation import Validator
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
        self._is_compiled = is_compiled
        self._has_adapters = data.plan.train.lora_rank > 0
        self.validator = Validator(model, data.tokenizer, data.validation)
        self._calibrates = data.plan.train.calibrates and self.validator.tokens > 0
        self.weights: Weights = {}
        self.adapters: Weights | None = None  # trained LoRA matrices by name

    @property
    def cost(self) -> float:
        """Cost of an evaluation, as a number of tokens that are evaluated without calibration."""
        return self._token_cost * self.validator.tokens

    @property
    def _token_cost(self) -> float:
        return CALIBRATION_COST if self._calibrates else 1.0

    def evaluate(self, *, hurried: bool) -> tuple[Evaluation, Weights] | None:
        """Calibrate and evaluate the current weights; keep them if they are the best so far or tie with them.
        Returns None if interrupted (`hurried`: after a stop request) or out of time. The evaluation before
        the first step has a time limit, and later ones cover no more tokens than it did, unless they
        calibrate."""
        clock = self._clock
        validator = self.validator
        position = self._position
        compiles = self._is_compiled and not validator.evaluated_tokens
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
                if compiles:
                    clock.exclude(seconds)
                else:
                    clock.add_evaluation(seconds, self._token_cost * validator.evaluated_tokens)
                weights = self._scaled_weights(factor)
        except CutShortError:
            if is_first and not (self._calibrates or clock.stop_requested()):
                validator.keep_units(1)  # there was time for at most one unit
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
        if not self._calibrates:
            return 1.0, self.validator.evaluate(limit, self._clock.now).bits_per_byte
        self._model.eval()
        return self.validator.calibrate(self._position.best_factor)

    def _scaled_weights(self, factor: float) -> Weights:
        """Copy the weights, with this factor on the logits."""
        self._model.logit_factor = factor
        weights = self._model.to_arrays()
        self._model.logit_factor = 1.0
        return weights
