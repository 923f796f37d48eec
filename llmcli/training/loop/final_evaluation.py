"""The evaluations after the last step: fitting the n-gram cache, and scoring the final and the initial model.

They need a second model in memory, and may be interrupted or run out of time; the weights are saved in any
case.
"""

import contextlib
import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from llmcli.data.conversations.batches import ConversationTokens
from llmcli.data.tokens.batches import PrefixedTokens
from llmcli.evaluation.answers import conversation_windows, spread
from llmcli.evaluation.evaluator import (
    Score,
    evaluate_windows,
    evaluation_context,
    spread_indices,
    stride,
    text_windows,
)
from llmcli.formats.training_record import CacheWeights
from llmcli.models.ngram_cache import NgramText, document_blocks
from llmcli.models.runtime import Ints
from llmcli.models.torch.devices import memory_errors
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.plain_text import Weights, compare, comparison_cost
from llmcli.training.data.run_data import RunData
from llmcli.training.interruption import CutShortError
from llmcli.training.loop.clock import FINAL_PATIENCE, GRACE, LOADING_SECONDS_PER_MILLION, Clock
from llmcli.training.loop.record import FinalEvaluation
from llmcli.training.loop.validation import ScoreData, evaluate
from llmcli.training.planning import recipe

CACHE_FIT_COST = 8.0  # cost per token of fitting the n-gram cache, relative to an evaluation
OWN_SHARE = 0.4  # share of the time for evaluating the final model; the rest is for the base model
NO_MEMORY = "out of memory"
EXTRA_TOKENS = 3  # maximum factor on the number of evaluated tokens, if there is time left
# assumed time of an evaluation in float32 relative to bfloat16 (measured: 1.3 to 2.2, depending on processor
# and model). If it takes longer, fewer tokens are evaluated in the remaining time
FLOAT32_COST = 1.4
MIN_WINDOWS = 4  # if there is no time for this many windows with the model's context, they are shorter
SEARCHED_TOKENS = 1 << 16  # searched at a time
# a sample of a held-out text with more tokens than this is scored with few tokens in the n-gram cache
MAX_CACHED_TOKENS = 1 << 20
SAMPLE_CACHE_TOKENS = 1 << 13


def final_evaluation_tokens(trained: int, minimum: int, held_out: int) -> int:
    """Return the number of `held_out` tokens to evaluate after training on `trained` tokens; at least
    `minimum`."""
    short = min(trained // recipe.SHORT_FINAL_DIVISOR, recipe.FINAL_TOKENS)
    long = min(trained // recipe.FINAL_DIVISOR, recipe.MAX_FINAL_TOKENS)
    return min(max(short, long, minimum), held_out)


class FinalEvaluator:
    """Evaluates the final weights of a run in the same way as users of the file will run them."""

    def __init__(self, model: LanguageModel, data: RunData, clock: Clock) -> None:
        """`model` is the run's."""
        self._model = model
        self._data = data
        self._clock = clock
        sharded = data.plan.sharded
        # sharded weights cannot generate text
        self._compares = bool(data.conversations and (data.plain_text or not sharded))
        # the n-gram cache needs enough text, and is not for conversations
        has_cache = not data.conversations and not sharded and data.validation_text.is_sufficient
        self._cache_text = data.validation_text if has_cache else None
        held_out, tokenizer = data.held_out, data.tokenizer
        self._context = model.config.max_position_embeddings  # conversations are scored whole
        self._score_data: ScoreData
        if isinstance(held_out, ConversationTokens):
            self.tokens = len(held_out.ids)
            self._score_data = partial(
                evaluate_windows, held_out.ids, tokenizer.byte_lengths, loss_mask=held_out.loss_mask
            )
            return
        self.tokens = len(held_out)
        # `bos_ids`, if there are any, replace the first of these tokens
        self._ids = PrefixedTokens(tokenizer.eos_id, held_out)
        self._score_data = partial(
            evaluate_windows, self._ids, tokenizer.byte_lengths, bos_ids=tokenizer.bos_ids
        )
        self._context = evaluation_context(self._context, trained=data.plan.train.context)
        # positions of the tokens before the documents, and the end of the last one
        self._first_tokens = [0]
        for start in range(0, len(held_out), SEARCHED_TOKENS):  # it may be a memory-mapped file
            positions = np.flatnonzero(held_out[start : start + SEARCHED_TOKENS] == tokenizer.eos_id)
            self._first_tokens += (1 + start + positions).tolist()
        self._first_tokens.append(len(self._ids))

    def cost(self, trained: int) -> float:
        """Return the cost after training on `trained` tokens, as a number of tokens of the validation
        slice."""
        cache = CACHE_FIT_COST * self._cache_text.windows.size if self._cache_text else 0.0
        return self._held_out_cost(trained) + cache + self._plain_cost

    def _held_out_cost(self, trained: int) -> float:
        slower = 1.0 if self._model.dtype is torch.float32 else FLOAT32_COST
        if not self._data.conversations and self.tokens > self._context:  # windows overlap
            slower *= self._context / stride(self._context)
        models = 2 if self._data.base else 1
        minimum = self._data.plan.train.eval_tokens
        return models * slower * final_evaluation_tokens(trained, minimum, self.tokens)

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
            with contextlib.suppress(MemoryError, CutShortError), memory_errors():
                model = self._model.scoring_model(best)
                with self._clock.interruptible(model, FINAL_PATIENCE, interrupted_at):
                    cache = self._cache_text.fit_cache(model)
        with contextlib.suppress(MemoryError), memory_errors():
            return self._score(best, trained, cache, self._clock.deadline, hurried=hurried)
        return FinalEvaluation(cache=cache, problem=NO_MEMORY)

    def _score(
        self, best: Weights, trained: int, cache: CacheWeights | None, end: float, *, hurried: bool
    ) -> FinalEvaluation:
        """Score the final and the base model on the same part of the held-out data, then on plain text, until
        `end`."""
        data = self._data
        clock = self._clock
        compares = self._compares and not hurried
        result = FinalEvaluation(cache=cache)
        if self.tokens:
            cost = self._held_out_cost(trained)
            scored_by = self._part(end, cost / (cost + (self._plain_cost if compares else 0.0)))
            result = self.score_held_out(best, trained, scored_by, hurried=hurried, cache=cache)
        if compares and clock.elapsed < end:
            plain_text = compare(
                data.plain_text,
                data.base,
                self._model,
                best,
                data.tokenizer,
                data.plan.train.seed,
                lambda model, share: clock.interruptible(model, FINAL_PATIENCE, self._part(end, share)),
            )
            result = replace(result, plain_text=plain_text)
        return result

    def score_held_out(
        self,
        best: Weights,
        trained: int,
        end: float = math.inf,
        *,
        hurried: bool = False,
        cache: CacheWeights | None = None,
    ) -> FinalEvaluation:
        """Score the final and the base model on the held-out data as users of the files will run them, until
        `end` (seconds since the run began): in float32, with the model's own context (`hurried`, or if there
        is little time: the training context) and n-gram `cache`."""
        data, clock = self._data, self._clock
        settings, base = data.plan.train, data.base
        # leave time to read the base model from its file and to score it on the same part
        limit = self._part(end, OWN_SHARE) if base else end
        if hurried:
            limit = min(limit, clock.elapsed + FINAL_PATIENCE)
        context = self._context
        has_little_time = (
            MIN_WINDOWS * clock.evaluation_seconds(FLOAT32_COST * context) > limit - clock.elapsed
        )
        if not data.conversations and (hurried or has_little_time):
            context = min(context, settings.context)
        tokens = final_evaluation_tokens(trained, settings.eval_tokens, self.tokens)
        if hurried:
            tokens = min(settings.eval_tokens, self.tokens)
        elif settings.seconds is not None:  # the limit applies, so that the run ends on time
            tokens = min(EXTRA_TOKENS * tokens, self.tokens)
        windows = self._select(tokens, context)
        block = SAMPLE_CACHE_TOKENS if cache and tokens < self.tokens > MAX_CACHED_TOKENS else 0
        score, count, expert_shares = self._evaluate(best, cache, block, windows, limit, limit + GRACE)
        base_score = None
        if base and count:
            windows = windows[:count]
            base_score, base_count, _ = self._evaluate(
                base.tensors, base.record.ngram_cache, block, windows, math.inf, end + GRACE
            )
            base_score = base_score if base_count == count else None
        return FinalEvaluation(score if count else None, base_score, context, block, expert_shares, cache)

    def _evaluate(
        self,
        weights: Weights,
        cache: CacheWeights | None,
        block: int,
        windows: Ints,
        limit: float,
        deadline: float,
    ) -> tuple[Score, int, list[list[float]]]:
        """Return (score, number of evaluated windows, shares of the tokens by layer and expert). The n-gram
        cache is emptied after each `block` of tokens (0: as usual)."""
        model = self._model.scoring_model(weights)
        clock, tokenizer = self._clock, self._data.tokenizer
        score_data = self._score_data
        if cache and not self._data.conversations:
            starts = range(0, len(self._ids), block) if block else document_blocks(self._first_tokens)
            score_data = partial(score_data, cached=NgramText(self._ids, cache, tokenizer.eos_id, starts))
        with clock.interruptible(model, FINAL_PATIENCE, deadline):
            score, count = evaluate(
                model, score_data, windows, clock.began + limit, clock.now, partial_ok=True
            )
        if tokenizer.adds_prefix_space:  # without the spaces before the documents
            documents = windows[:count, 1] == windows[:count, 0] + 1
            score = replace(score, bytes=score.bytes - int(documents.sum()))
        return score, count, model.expert_shares()

    def _select(self, tokens: int, context: int) -> Ints:
        """Choose windows with about `tokens` tokens in total; every prefix is evenly spread if time may run
        out."""
        if isinstance(held_out := self._data.held_out, ConversationTokens):
            return conversation_windows(held_out)[spread(held_out, tokens)]
        windows = text_windows(self._first_tokens, context, tokens / self.tokens)
        is_timed = self._data.plan.train.seconds is not None
        return windows[spread_indices(len(windows))] if is_timed else windows

    def _part(self, end: float, share: float) -> float:
        """Return the time at which this share of the time until `end` is over, in seconds since the run
        began."""
        now = self._clock.elapsed
        return end if math.isinf(end) else now + share * max(0.0, end - now)
