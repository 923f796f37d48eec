"""The choice of a run's final weights: the best on the validation slice, or the last if there is no slice.

The weights are calibrated (arXiv:1706.04599, section 4.2): after several epochs a model is overconfident
about new text. One factor for all logits, an inverse temperature, is fitted on the validation slice and
multiplied into the gain of the final norm, so that every program that opens the file benefits.
"""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llmcli.models.torch.runtime import fit_inverse_temperature
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.position import Position
from llmcli.training.interruption import CutShortError
from llmcli.training.loop.clock import FINAL_PATIENCE, STEP_PATIENCE
from llmcli.training.loop.events import Evaluation
from llmcli.training.loop.job import Job
from llmcli.training.loop.validation import Validator
from llmcli.training.planning import recipe

FIRST_EVALUATION_SHARE = 0.1  # maximum share of the remaining time for evaluating the initial model
CALIBRATION_COST = 5.0  # cost per token of fitting the temperature, relative to an evaluation

Weights = dict[str, NDArray[np.float32]]


class BestWeights:
    """Calibrates and evaluates the current weights of a model, and keeps the best so far; none before the
    first evaluation. Their step, factor and loss are in the Position."""

    def __init__(self, model: LanguageModel, job: Job, position: Position, *, is_compiled: bool) -> None:
        """`is_compiled` says whether torch compiles the layers of the model on first use."""
        self._model = model
        self._clock = job.clock
        self._position = position
        self._is_compiled = is_compiled
        self._has_adapters = job.plan.train.lora_rank > 0
        windows = job.data.validation_text.windows
        self._windows = windows[: None if job.plan.train.calibrates else 0]  # [B, T + 1]
        self.validator = Validator(model, job.data.tokenizer, job.data.validation)
        self.weights: Weights = {}
        self.adapters: Weights | None = None  # trained LoRA matrices by name

    @property
    def cost(self) -> float:
        """Cost of an evaluation with calibration, as a number of tokens that are only evaluated."""
        return self.validator.tokens + CALIBRATION_COST * self._windows.size

    def evaluate(self, *, hurried: bool) -> tuple[Evaluation, Weights] | None:
        """Calibrate and evaluate the current weights; keep them if they are the best so far, or nearly. None
        if that was interrupted (`hurried`: after a stop request) or took too long. The evaluation before the
        first step has a time limit; later ones do not cover more tokens."""
        clock, validator, position = self._clock, self.validator, self._position
        compiles, limit = self._is_compiled and not validator.evaluated_tokens, math.inf
        deadline, is_first = clock.final_deadline(), not position.step
        if is_first:
            limit = FIRST_EVALUATION_SHARE * max(0.0, clock.deadline - clock.elapsed)
            deadline = clock.elapsed + 2 * limit
        patience = FINAL_PATIENCE if hurried else STEP_PATIENCE
        try:
            with clock.interruptible(self._model, patience, deadline), self._calibrated() as factor:
                began = clock.now()
                score = validator.evaluate(began + limit, clock.now)
                seconds = clock.now() - began
                if compiles:
                    clock.exclude(seconds)
                else:
                    clock.add_evaluation(seconds, validator.evaluated_tokens)
                weights = self._model.to_arrays()
        except CutShortError:
            if is_first and not clock.stop():
                validator.keep_units(1)  # the time was enough for one unit at most
            return None
        # rounded as in the record, so that all displays round the same number
        bits, best = round(score.bits_per_byte, 6), position.best_bits
        is_best = math.isfinite(bits) and (best is None or bits <= best * (1 + recipe.TIE_MARGIN))
        if is_best:
            self._keep(weights, factor)
            position.best_bits = bits if best is None else min(bits, best)
        return Evaluation(position.step, bits, is_best), weights

    def keep_last(self) -> None:
        """Keep the current weights without an evaluation, calibrated if there is a slice and no stop
        request."""
        deadline = self._clock.final_deadline()
        try:
            with (
                self._clock.interruptible(self._model, FINAL_PATIENCE, deadline),
                self._calibrated() as factor,
            ):
                self._keep(self._model.to_arrays(), factor)
        except CutShortError:
            self._keep(self._model.to_arrays(), 1.0)

    def _keep(self, weights: Weights, factor: float) -> None:
        self.weights = weights
        self.adapters = self._model.trainable_arrays() if self._has_adapters else None
        self._position.best_step, self._position.best_factor = self._position.step, factor

    @contextlib.contextmanager
    def _calibrated(self) -> Iterator[float]:
        """Calibrate the model within this context. Yields the factor on the logits: 1.0 without windows."""
        if not len(self._windows):
            yield 1.0
            return
        self._model.eval()
        factor = round(fit_inverse_temperature(self._model, self._windows), 4)
        self._model.logit_factor = factor
        try:
            yield factor
        finally:
            self._model.logit_factor = 1.0
