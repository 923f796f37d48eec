"""Evaluation in a run: on the validation slice during training, and once on the held-out data at the end.

The validation slice selects the weights to keep; the held-out data select nothing. Both are texts, with all
tokens counted, or conversations, with only the answers counted.
"""

import bisect
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.data.conversations.batches import ConversationTokens
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.batches import PrefixedTokens
from llmcli.evaluation.answers import evaluate_answers, spread
from llmcli.evaluation.evaluator import (
    Score,
    ScoreWindows,
    Window,
    Windows,
    evaluate_windows,
    evaluation_context,
    spread_order,
    stride,
)
from llmcli.formats.training_record import CacheWeights
from llmcli.models.ngram_cache import NgramText, document_blocks
from llmcli.models.runtime import Ints
from llmcli.models.torch.runtime import fit_inverse_temperature
from llmcli.models.torch.runtime import score as score_with_torch
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.data.plain_text import Weights
from llmcli.training.data.run_data import RunData
from llmcli.training.interruption import CutShortError
from llmcli.training.loop.clock import FINAL_PATIENCE, GRACE, Clock
from llmcli.training.planning import recipe

EXTRA_FINAL_TOKENS = 3  # maximum factor on the tokens at the end, if there is time left
# assumed time of an evaluation in float32 relative to bfloat16 (measured: 1.3 to 2.2, depending on processor
# and model). If it takes longer, fewer tokens are evaluated in the remaining time
FLOAT32_COST = 1.4
MIN_FINAL_WINDOWS = 4  # if there is no time for this many windows with the model's context, they are shorter
SEARCHED_TOKENS = 1 << 16  # searched at a time
BATCH_TOKENS = 4096  # maximum evaluated between two readings of the clock ...
BATCH_OPERATIONS = 1e11  # ... and maximum parameters x tokens
# a sample of a held-out text with more tokens than this is scored with few tokens in the n-gram cache
MAX_CACHED_TOKENS = 1 << 20
SAMPLE_CACHE_TOKENS = 1 << 13


def final_evaluation_tokens(trained: int, minimum: int, held_out: int) -> int:
    """Return the number of `held_out` tokens to evaluate after training on `trained` tokens; at least
    `minimum`."""
    short = min(trained // recipe.SHORT_FINAL_DIVISOR, recipe.FINAL_TOKENS)
    long = min(trained // recipe.FINAL_DIVISOR, recipe.MAX_FINAL_TOKENS)
    return min(max(short, long, minimum), held_out)


@dataclass(frozen=True)
class _Text:
    """A text, scored in windows (start, first position counted, end) as units."""

    ids: NDArray[np.integer] | PrefixedTokens
    byte_lengths: Ints
    first_bytes: int = 0  # prepended to a document by the tokenizer
    bos_ids: Sequence[int] = ()  # every window begins with them, as in `evaluate_windows`
    cached: NgramText | None = None  # the same ids with an n-gram cache

    def tokens(self, units: Sequence[Window]) -> int:
        """Return the number of tokens that the model processes to score these units."""
        return sum(end - counted_from for _, counted_from, end in units)

    def evaluate(
        self, units: Sequence[Window], score: ScoreWindows, batch_tokens: int
    ) -> Iterator[tuple[Sequence[Window], Score]]:
        """Score units in batches; a caller can stop after any batch."""
        for batch, batch_score in evaluate_windows(
            self.ids,
            self.byte_lengths,
            units,
            score,
            batch_tokens=batch_tokens,
            cached=self.cached,
            bos_ids=self.bos_ids,
        ):
            added = self.first_bytes * sum(1 for start, counted_from, _ in batch if counted_from == start + 1)
            yield batch, replace(batch_score, bytes=batch_score.bytes - added)


class _Documents(PrefixedTokens):
    """Tokens with `eos` between documents, where each document is preceded by `bos`."""

    def __init__(self, tokens: NDArray[np.integer], bos: int, eos: int) -> None:
        super().__init__(bos, tokens)
        self._bos = bos
        self._eos = eos

    def __getitem__(self, span: slice) -> NDArray[np.integer]:
        ids = super().__getitem__(span)
        return ids if self._bos == self._eos else np.where(ids == self._eos, ids.dtype.type(self._bos), ids)


@dataclass(frozen=True)
class _Answers:
    """Answers in conversations, scored with the indices of conversations as units."""

    conversations: ConversationTokens
    byte_lengths: Ints

    def tokens(self, units: Sequence[int]) -> int:
        return int(self.conversations.lengths[list(units)].sum())

    def evaluate(
        self, units: Sequence[int], score: ScoreWindows, batch_tokens: int
    ) -> Iterator[tuple[Sequence[int], Score]]:
        return evaluate_answers(
            self.conversations, units, self.byte_lengths, score, batch_tokens=batch_tokens
        )


_Data = _Text | _Answers


class Validator:
    """Evaluates the validation slice: windows [B, T + 1], or conversations. It may be empty."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, data: Ints | ConversationTokens) -> None:
        self._model = model
        byte_lengths = tokenizer.byte_lengths
        self._data: _Data
        self._units: Sequence[Any]
        self._windows = np.empty((0, 1), np.int64)
        if isinstance(data, ConversationTokens):
            self._data = _Answers(data, byte_lengths)
            self._units = spread(data) if len(data) else ()
        else:
            self._windows = data
            width = data.shape[1]
            windows = [(start, start + 1, start + width) for start in range(0, data.size, width)]
            self._data = _Text(data.ravel(), byte_lengths)
            self._units = spread_order(windows)
        self.evaluated_tokens = 0  # processed by the last evaluation
        self.keep_units(len(self._units))

    def evaluate(self, limit: float = math.inf, now: Callable[[], float] = time.monotonic) -> Score:
        """Evaluate the current weights. If `limit` ends this evaluation early, later evaluations cover no
        more tokens."""
        score, units = _evaluate(self._model, self._data, self._units, limit, now)
        self.evaluated_tokens = self._data.tokens(units)
        self.keep_units(len(units))
        return score

    def calibrate(self, near: float) -> tuple[float, float]:
        """Fit the factor on the logits (best_weights.py), which is about `near`, on all windows. Returns
        (factor, bits per byte with this factor); the factor of the model does not change."""
        factor, nats = fit_inverse_temperature(self._model, self._windows, near)
        targets = self._windows[:, 1:]
        self.evaluated_tokens = targets.size
        size = int(self._data.byte_lengths[targets].sum())
        return round(factor, 4), Score(nats, targets.size, size).bits_per_byte

    def keep_units(self, count: int) -> None:
        """Limit later evaluations to the first `count` units."""
        self._units = self._units[:count]
        self.units = len(self._units)
        self.tokens = self._data.tokens(self._units)  # covered by an evaluation; 0 without a validation slice


class HeldOutEvaluation:
    """The evaluation on the held-out data, a text [N] or conversations, at the end of a run."""

    def __init__(self, model: LanguageModel, run_data: RunData, clock: Clock) -> None:
        """`model` is the run's."""
        self._model = model
        self._models = 2 if run_data.base else 1  # evaluated
        self._settings = settings = run_data.plan.train
        self._clock = clock
        self._is_timed = settings.seconds is not None
        tokenizer, data = run_data.tokenizer, run_data.held_out
        self._separator = tokenizer.bos_id
        byte_lengths = tokenizer.byte_lengths
        self.context = longest = model.config.max_position_embeddings  # conversations are scored whole
        self._data: _Data
        if isinstance(data, ConversationTokens):
            self._data = _Answers(data, byte_lengths)
            self.tokens = len(data.ids)
        else:
            documents = _Documents(data, tokenizer.bos_id, tokenizer.eos_id)
            added = int(tokenizer.adds_prefix_space)
            self._data = _Text(documents, byte_lengths, added, tokenizer.bos_ids)
            self.tokens = len(data)
            self.context = evaluation_context(longest, trained=settings.context)
            ends: list[int] = []
            for start in range(0, len(data), SEARCHED_TOKENS):  # it may be a memory-mapped file
                positions = np.flatnonzero(data[start : start + SEARCHED_TOKENS] == tokenizer.eos_id)
                ends += (start + positions).tolist()
            # positions of the tokens before the documents, and the end of the last one
            self._first_tokens = [0, *(1 + end for end in ends), 1 + len(data)]
        self._units: Sequence[Any] = ()
        self.cached_tokens = 0  # capacity of the n-gram cache, if smaller than in `llm eval`
        self.expert_shares: list[list[float]] = []  # shares of the evaluated tokens, [layers][experts]

    def evaluate(
        self,
        weights: Weights,
        trained: int,
        limit: float = math.inf,
        *,
        hurried: bool = False,
        cache: CacheWeights | None = None,
    ) -> Score | None:
        """Evaluate the weights as users of the file will run them: in float32, with the model's own context
        (`hurried`, or if there is little time: the training context) and n-gram `cache`, until `limit`
        (seconds since the run began). None if the first batch was interrupted."""
        tokens = final_evaluation_tokens(trained, self._settings.eval_tokens, self.tokens)
        window_seconds = self._clock.evaluation_seconds(FLOAT32_COST * self.context)
        has_little_time = MIN_FINAL_WINDOWS * window_seconds > limit - self._clock.elapsed
        if isinstance(self._data, _Text) and (hurried or has_little_time):
            self.context = min(self.context, self._settings.context)
        if hurried:
            tokens = min(self._settings.eval_tokens, self.tokens)
        elif self._is_timed:  # the limit applies, so that the run ends on time
            tokens = min(EXTRA_FINAL_TOKENS * tokens, self.tokens)
        self._units = self._select(tokens)
        self.cached_tokens = SAMPLE_CACHE_TOKENS if cache and tokens < self.tokens > MAX_CACHED_TOKENS else 0
        model, score, self._units = self._evaluate(weights, cache, limit, limit + GRACE)
        self.expert_shares = model.expert_shares()
        return score if self._units else None

    def evaluate_base(
        self, weights: Weights, deadline: float, cache: CacheWeights | None = None
    ) -> Score | None:
        """Evaluate other weights on the units of `evaluate`; None if that was interrupted or took until
        `deadline`."""
        _, score, units = self._evaluate(weights, cache, math.inf, deadline)
        return score if len(units) == len(self._units) else None

    def _evaluate(
        self, weights: Weights, cache: CacheWeights | None, limit: float, deadline: float
    ) -> tuple[LanguageModel, Score, Sequence[Any]]:
        model = self._model.scoring_model(weights)
        data = self._data
        clock = self._clock
        if isinstance(data, _Text):
            end = self._first_tokens[-1]
            starts = (
                range(0, end, self.cached_tokens)
                if self.cached_tokens
                else document_blocks(self._first_tokens)
            )
            data = replace(
                data, cached=NgramText(data.ids, cache, self._separator, starts) if cache else None
            )
        with clock.interruptible(model, FINAL_PATIENCE, deadline):
            evaluated = _evaluate(model, data, self._units, clock.began + limit, clock.now, partial_ok=True)
        return model, *evaluated

    def cost(self, trained: int) -> float:
        """Return the cost after training on `trained` tokens, as a number of tokens of the validation
        slice."""
        slower = 1.0 if self._model.dtype is torch.float32 else FLOAT32_COST
        if isinstance(self._data, _Text) and self.tokens > self.context:  # windows overlap
            slower *= self.context / stride(self.context)
        return (
            self._models * slower * final_evaluation_tokens(trained, self._settings.eval_tokens, self.tokens)
        )

    def _select(self, tokens: int) -> Sequence[Any]:
        """Choose units with about `tokens` tokens in total; every prefix is evenly spread, since time may run
        out."""
        if isinstance(self._data, _Answers):
            return spread(self._data.conversations, tokens)
        firsts = self._first_tokens
        documents = [Windows(end - first, self.context) for first, end in itertools.pairwise(firsts)]
        # number of windows up to the end of each document
        ends = list(itertools.accumulate(map(len, documents)))
        chosen: Sequence[int] = range(ends[-1])
        if chosen and tokens < self.tokens:
            keep = max(1, round(tokens / self.tokens * len(chosen)))
            chosen = [round(i) for i in np.linspace(0, len(chosen) - 1, keep)]
        windows = []
        for i in chosen:  # no window spans two documents, as in `llm eval`
            document = bisect.bisect_right(ends, i)
            first = firsts[document]
            window = documents[document][i - ends[document] + len(documents[document])]
            windows.append((first + window[0], first + window[1], first + window[2]))
        return spread_order(windows) if self._is_timed else windows


def _evaluate(
    model: LanguageModel,
    data: _Data,
    units: Sequence[Any],
    limit: float,
    now: Callable[[], float],
    *,
    partial_ok: bool = False,
) -> tuple[Score, Sequence[Any]]:
    """Return (score, evaluated units): all, or those until `limit` (in the time of `now`), but at least a
    batch. An interruption raises CutShortError unless a part is enough (`partial_ok`)."""
    model.eval()
    total = Score(0.0, 0, 0)
    done = 0
    batch_tokens = int(min(BATCH_TOKENS, BATCH_OPERATIONS / model.config.parameters))
    try:
        for batch, batch_score in data.evaluate(units, partial(score_with_torch, model), batch_tokens):
            total += batch_score
            done += len(batch)
            if now() > limit:
                break
    except CutShortError:
        if not partial_ok:
            raise
    return total, units if done == len(units) else [units[i] for i in range(done)]
