"""What a run computes after its last step, for the weights that it ends with: the weights of the n-gram cache, and the
scores on the held-out data, beside those of the model that it started from.

That takes another model in memory beside the one that was trained, and it may be interrupted or run out of time: the
weights are saved all the same.
"""

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from llmcli.evaluation.evaluator import Score
from llmcli.formats.cache_weights import CacheWeights
from llmcli.formats.checkpoint import Checkpoint
from llmcli.models.torch.devices import is_out_of_memory
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.cache_fit import ValidationText
from llmcli.training.data.plain_text import PlainTextComparison, PlainTextScores
from llmcli.training.data.run_data import RunData
from llmcli.training.interruption import CutShortError
from llmcli.training.loop.record import FinalEvaluation
from llmcli.training.loop.run_timer import FINAL_PATIENCE, GRACE, LOADING_SECONDS_PER_MILLION, RunTimer
from llmcli.training.loop.validation import HeldOutEvaluation, Weights
from llmcli.training.planning.plan import Plan
from llmcli.training.step.compute import Compute

CACHE_FIT_COST = 8.0  # of fitting the n-gram cache, per token, relative to evaluating the token
NO_MEMORY = "for which memory was too short"

T = TypeVar("T")


class FinalEvaluator:
    """Evaluates the weights that a run of `model` ends with as those who use the file will run them."""

    def __init__(
        self,
        model: LanguageModel,
        plan: Plan,
        start: Checkpoint | None,
        data: RunData,
        timer: RunTimer,
        compute: Compute,
        *,
        sharded: bool,
    ) -> None:
        """`start` is the model that the run started from, if any."""
        self._model, self._start, self._timer, self._parameters = model, start, timer, plan.model.parameters
        self._held_out = HeldOutEvaluation(
            model, data.tokenizer, data.held_out, plan.train, models=2 if start else 1, compute=compute
        )
        self._plain_text: PlainTextComparison | None = None
        if data.conversations and (data.plain_text or not sharded):  # with sharded weights no text can be generated
            self._plain_text = PlainTextComparison(plan.model, data.tokenizer, data.plain_text, start, plan.train)
        # for the n-gram cache: no model of conversations gets one, nor one that saw too little text
        has_cache = not data.conversations and not sharded and data.validation_text.is_sufficient
        self._cache_text = data.validation_text if has_cache else None

    def cost(self, trained: int) -> float:
        """After training on `trained` tokens, as a number of tokens of the validation slice."""
        cache = CACHE_FIT_COST * self._cache_text.windows.size if self._cache_text else 0.0
        plain_text = self._plain_text.cost if self._plain_text else 0.0
        return self._held_out.cost(trained) + cache + plain_text

    def evaluate(self, best: Weights, trained: int, *, hurried: bool) -> FinalEvaluation:
        """After training on `trained` tokens. Without memory for it, or time, there are no scores."""
        end = self._timer.final_deadline()
        if LOADING_SECONDS_PER_MILLION * self._parameters / 1e6 > end - self._timer.elapsed:
            return FinalEvaluation()
        cache = self._fit_cache(best, end)
        scores = _unless_out_of_memory(lambda: self._score(best, trained, cache, end, hurried=hurried))
        return scores or FinalEvaluation(cache=cache, problem=NO_MEMORY)

    def _fit_cache(self, best: Weights, end: float) -> CacheWeights | None:
        """None also where the fit was interrupted, or memory is short."""
        text = self._cache_text
        return _unless_out_of_memory(lambda: self._fit_cache_on(text, best, end)) if text else None

    def _fit_cache_on(self, text: ValidationText, best: Weights, end: float) -> CacheWeights | None:
        model = self._model.scoring_model(best)
        with contextlib.suppress(CutShortError), self._timer.interruptible(model, FINAL_PATIENCE, end):
            return text.fit_cache(model)
        return None

    def _score(
        self, best: Weights, trained: int, cache: CacheWeights | None, end: float, *, hurried: bool
    ) -> FinalEvaluation:
        """The best weights and the base model on the same part of the held-out data; then plain text. All until `end`,
        in seconds since the run began."""
        held_out, compared = self._held_out, None if hurried else self._plain_text
        if not held_out.tokens:
            return FinalEvaluation(cache=cache, plain_text=self._score_plain_text(compared, best, end))
        cost, plain_cost = held_out.cost(trained), compared.cost if compared else 0.0
        score, base_score = self._score_held_out(
            best, trained, cache, self._part(end, cost / (cost + plain_cost)), hurried=hurried
        )
        return FinalEvaluation(
            score, base_score, held_out.context, held_out.cached_tokens, held_out.expert_shares, cache,
            self._score_plain_text(compared, best, end),
        )  # fmt: skip

    def _score_held_out(
        self, best: Weights, trained: int, cache: CacheWeights | None, end: float, *, hurried: bool
    ) -> tuple[Score | None, Score | None]:
        """(of the best weights, of the base model). The first batch may take a little longer than until `end`."""
        timer, held_out = self._timer, self._held_out
        limit = self._part(end, 0.5) if self._start else end
        if hurried:
            limit = min(limit, timer.elapsed + FINAL_PATIENCE)
        interruptible = partial(timer.interruptible, patience=FINAL_PATIENCE, deadline=limit + GRACE)
        score = held_out.evaluate(
            best, trained, timer.began + limit, timer.now, interruptible, hurried=hurried, cache=cache
        )
        if not (self._start and score):
            return score, None
        base_cache = CacheWeights.of_record(self._start.record)
        interruptible = partial(timer.interruptible, patience=FINAL_PATIENCE, deadline=end + GRACE)
        return score, held_out.evaluate_base(self._start.tensors, interruptible, base_cache)

    def _score_plain_text(
        self, compared: PlainTextComparison | None, best: Weights, end: float
    ) -> PlainTextScores | None:
        if compared is None or self._timer.elapsed >= end:
            return None

        def interruptible(model: LanguageModel, share: float) -> contextlib.AbstractContextManager[None]:
            return self._timer.interruptible(model, FINAL_PATIENCE, self._part(end, share))

        return compared.scores(best, self._model, interruptible)

    def _part(self, end: float, share: float) -> float:
        """When a share of the time until `end` is over; both in seconds since the run began."""
        now = self._timer.elapsed
        return end if math.isinf(end) else now + share * max(0.0, end - now)


def _unless_out_of_memory(compute: Callable[[], T]) -> T | None:
    """What `compute` returns; None where memory was too short for it."""
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
