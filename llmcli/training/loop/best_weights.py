"""The weights that a run ends with: those that predict the validation slice best, or the last if there is no slice."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmcli.config import TrainConfig
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.position import Position
from llmcli.training.data.run_data import RunData
from llmcli.training.interruption import CutShortError
from llmcli.training.loop.calibration import Calibration
from llmcli.training.loop.run_timer import FINAL_PATIENCE, STEP_PATIENCE, RunTimer
from llmcli.training.loop.validation import Validator
from llmcli.training.planning import recipe
from llmcli.training.step.compute import Compute

FIRST_EVALUATION_SHARE = 0.1  # of the time left, at most, for the evaluation of the model that the run starts from
CALIBRATION_COST = 5.0  # of fitting the temperature, per token, relative to evaluating the token

Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Candidate:
    """Weights at a step of the run, calibrated."""

    weights: Weights
    factor: float  # on the logits, merged into the weights (calibration.py)
    bits_per_byte: float = math.nan  # of the validation slice


class CandidateEvaluator:
    """Calibrates the current weights of a model and evaluates them on the validation slice."""

    def __init__(
        self,
        model: LanguageModel,
        data: RunData,
        settings: TrainConfig,
        timer: RunTimer,
        compute: Compute,
        *,
        is_compiled: bool,
    ) -> None:
        """`is_compiled` is whether torch compiles the layers of the model when they are first used."""
        self._model, self._settings, self._timer, self._is_compiled = model, settings, timer, is_compiled
        windows = data.validation_text.windows
        self._calibration = Calibration(model, windows[: None if settings.calibrates else 0])
        self._validator = Validator(model, data.tokenizer, data.validation, compute)

    @property
    def tokens(self) -> int:
        """That an evaluation covers; 0 without a validation slice."""
        return self._validator.tokens

    @property
    def units(self) -> int:
        """The number of windows or conversations that an evaluation covers."""
        return self._validator.units

    def keep_units(self, count: int) -> None:
        """Cover so many, as the run did before it was stopped."""
        self._validator.keep_units(count)

    @property
    def cost(self) -> float:
        """Of an evaluation with its calibration, as a number of tokens that are only evaluated."""
        return self._validator.tokens + CALIBRATION_COST * self._calibration.tokens

    def evaluate(self, *, is_first: bool, hurried: bool) -> Candidate | None:
        """None if it was interrupted, or took too long. The evaluation before the first step has a time limit; later
        ones cover no more tokens than it did. A `hurried` one follows a stop request."""
        compiles, limit = self._is_compiled and not self._validator.evaluated_tokens, math.inf
        deadline = self._timer.final_deadline()
        if is_first and self._settings.seconds is not None:
            limit = FIRST_EVALUATION_SHARE * self._timer.left
            deadline = self._timer.elapsed + 2 * limit
        patience = FINAL_PATIENCE if hurried else STEP_PATIENCE
        try:
            with self._timer.interruptible(self._model, patience, deadline), self._calibration.applied() as factor:
                began = self._timer.now()
                score = self._validator.evaluate(began + limit, self._timer.now)
                self._count_seconds(self._timer.now() - began, compiles=compiles)
                weights = self._model.to_arrays()
        except CutShortError:
            if is_first and not self._timer.stop():
                self._validator.keep_units(1)  # which is how long it took
            return None
        # as in the record, so that every display of it rounds the same number
        return Candidate(weights, factor, round(score.bits_per_byte, 6))

    def _count_seconds(self, seconds: float, *, compiles: bool) -> None:
        if self._timer.clock and compiles:
            self._timer.clock.exclude(seconds)
        elif self._timer.clock:
            self._timer.clock.add_evaluation(seconds, self._validator.evaluated_tokens)

    def calibrate(self) -> Candidate:
        """The current weights without an evaluation; calibrated, if there is a slice for it and no stop request."""
        try:
            deadline = self._timer.final_deadline()
            with (
                self._timer.interruptible(self._model, FINAL_PATIENCE, deadline),
                self._calibration.applied() as factor,
            ):
                return Candidate(self._model.to_arrays(), factor)
        except CutShortError:
            return Candidate(self._model.to_arrays(), factor=1.0)


class BestWeights:
    """The best weights so far; none before the first evaluation: those of a large model take seconds to copy. Their
    step, factor and bits per byte are in its Position."""

    def __init__(self, model: LanguageModel, position: Position, settings: TrainConfig) -> None:
        self._model, self._position, self._has_adapters = model, position, settings.lora_rank > 0
        self.weights: Weights = {}
        self.adapters: Weights | None = None  # LoRA matrices by name, if any are trained

    def _current_adapters(self) -> Weights | None:
        return self._model.trainable_arrays() if self._has_adapters else None

    def keep_if_best(self, candidate: Candidate) -> bool:
        """Keep the current weights if they are the best so far; returns whether they are. Of two equal evaluations the
        later wins: its learning rate was lower."""
        bits, best = candidate.bits_per_byte, self._position.best_bits
        is_best = math.isfinite(bits) and (best is None or bits <= best * (1 + recipe.TIE_MARGIN))
        if is_best:
            self.keep(candidate)
            self._position.best_bits = bits if best is None else min(bits, best)
        return is_best

    def keep(self, candidate: Candidate) -> None:
        """Keep the current weights, which are those of the candidate."""
        self.weights, self.adapters = candidate.weights, self._current_adapters()
        self._position.best_step, self._position.best_factor = self._position.step, candidate.factor

    @property
    def are_finite(self) -> bool:
        return all(np.isfinite(array).all() for array in self.weights.values())

    def load(self, weights: Weights, adapters: Weights) -> None:
        """Take those of a stopped run, whose position is restored elsewhere."""
        self.weights, self.adapters = weights, adapters if self._has_adapters else None
