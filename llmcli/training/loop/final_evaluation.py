"""The evaluations after the last step: fitting the n-gram cache, and scoring the final and the initial model.

They need a second model in memory, and may be interrupted or run out of time; the weights are saved in any
case.
"""

import contextlib
import math

from llmcli.formats.training_record import CacheWeights
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.plain_text import Weights, compare, comparison_cost
from llmcli.training.data.run_data import RunData
from llmcli.training.interruption import CutShortError
from llmcli.training.loop.clock import FINAL_PATIENCE, GRACE, LOADING_SECONDS_PER_MILLION, Clock
from llmcli.training.loop.record import FinalEvaluation
from llmcli.training.loop.validation import HeldOutEvaluation
from llmcli.training.step.hardware import OutOfMemoryError, explain_out_of_memory

CACHE_FIT_COST = 8.0  # cost per token of fitting the n-gram cache, relative to an evaluation
OWN_SHARE = 0.4  # share of the time for evaluating the final model; the rest is for the base model
NO_MEMORY = "out of memory"


class FinalEvaluator:
    """Evaluates the final weights of a run in the same way as users of the file will run them."""

    def __init__(self, model: LanguageModel, data: RunData, clock: Clock) -> None:
        self._model = model
        self._data = data
        self._clock = clock
        sharded = data.plan.sharded
        self._held_out = HeldOutEvaluation(model, data, clock)
        # sharded weights cannot generate text
        self._compares = bool(data.conversations and (data.plain_text or not sharded))
        # the n-gram cache needs enough text, and is not for conversations
        has_cache = not data.conversations and not sharded and data.validation_text.is_sufficient
        self._cache_text = data.validation_text if has_cache else None

    def cost(self, trained: int) -> float:
        """Return the cost after training on `trained` tokens, as a number of tokens of the validation
        slice."""
        cache = CACHE_FIT_COST * self._cache_text.windows.size if self._cache_text else 0.0
        return self._held_out.cost(trained) + cache + self._plain_cost

    @property
    def _plain_cost(self) -> float:
        data = self._data
        return (
            comparison_cost(data.plain_text, data.base, data.plan.model.parameters) if self._compares else 0.0
        )

    def evaluate(self, best: Weights, trained: int, *, hurried: bool) -> FinalEvaluation:
        """Evaluate after training on `trained` tokens; without scores if memory or time is short."""
        interrupted_at = self._clock.final_deadline()
        loading = LOADING_SECONDS_PER_MILLION * self._model.config.parameters / 1e6 * self._clock.slowdown
        if loading > interrupted_at - self._clock.elapsed:
            return FinalEvaluation()
        cache = None
        if self._cache_text:
            with contextlib.suppress(OutOfMemoryError, CutShortError), explain_out_of_memory():
                model = self._model.scoring_model(best)
                with self._clock.interruptible(model, FINAL_PATIENCE, interrupted_at):
                    cache = self._cache_text.fit_cache(model)
        with contextlib.suppress(OutOfMemoryError), explain_out_of_memory():
            return self._score(best, trained, cache, self._clock.deadline, hurried=hurried)
        return FinalEvaluation(cache=cache, problem=NO_MEMORY)

    def _score(
        self, best: Weights, trained: int, cache: CacheWeights | None, end: float, *, hurried: bool
    ) -> FinalEvaluation:
        """Score the final and the base model on the same part of the held-out data, then on plain text, until
        `end`."""
        held_out = self._held_out
        data = self._data
        clock = self._clock
        base = data.base
        compares = self._compares and not hurried
        score = base_score = None
        if held_out.tokens:
            cost = held_out.cost(trained)
            scored_by = self._part(end, cost / (cost + (self._plain_cost if compares else 0.0)))
            # leave time to read the base model from its file and to score it on the same part
            limit = self._part(scored_by, OWN_SHARE) if base else scored_by
            if hurried:
                limit = min(limit, clock.elapsed + FINAL_PATIENCE)
            score = held_out.evaluate(best, trained, limit, hurried=hurried, cache=cache)
            if base and score:
                base_score = held_out.evaluate_base(base.tensors, scored_by + GRACE, base.record.ngram_cache)
        plain_text = None
        if compares and clock.elapsed < end:
            plain_text = compare(
                data.plain_text,
                base,
                self._model,
                best,
                data.tokenizer,
                data.plan.train.seed,
                lambda model, share: clock.interruptible(model, FINAL_PATIENCE, self._part(end, share)),
            )
        return FinalEvaluation(
            score,
            base_score,
            held_out.context,
            held_out.cached_tokens,
            held_out.expert_shares,
            cache,
            plain_text,
        )

    def _part(self, end: float, share: float) -> float:
        """Return the time at which this share of the time until `end` is over, in seconds since the run
        began."""
        now = self._clock.elapsed
        return end if math.isinf(end) else now + share * max(0.0, end - now)
