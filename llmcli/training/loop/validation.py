"""Evaluation in a run: of the validation slice while the model is trained, and of the held-out data once, at the end.

The validation slice is a part of the training data that is not trained on; the weights that are kept are chosen by it.
The held-out data are evaluated with these weights, and choose nothing. Both are texts, of which all tokens count, or
conversations, of which the answers count.
"""

import bisect
import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llmcli.config import TrainConfig
from llmcli.data.conversations.batches import ConversationTokens
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.batches import PrefixedTokens
from llmcli.evaluation.answers import evaluate_answers, spread
from llmcli.evaluation.evaluator import (
    Score,
    ScoreWindows,
    Window,
    evaluate_windows,
    evaluation_context,
    select_windows,
    spread_order,
    stride,
)
from llmcli.formats.cache_weights import CacheWeights
from llmcli.models.ngram_cache import NgramText, document_blocks
from llmcli.models.torch.transformer import LanguageModel
from llmcli.training.interruption import CutShortError
from llmcli.training.loop.evaluation_schedule import final_evaluation_tokens
from llmcli.training.step.compute import Compute

EXTRA_FINAL_TOKENS = 3  # times as many tokens at the end, at most, where the clock leaves time for them
# seconds of an evaluation in float32, for each second of one in bfloat16: 1.3 to 2.2, by processor and model. Where it
# is more than this, fewer tokens are evaluated in the time that is left
FLOAT32_COST = 1.4
SEARCHED_TOKENS = 1 << 16  # of a text, at once
BATCH_TOKENS = 4096  # evaluated between two readings of the clock, at most ...
BATCH_OPERATIONS = 1e11  # ... and parameters x tokens, at most
# tokens of held-out text, of a sample of which the n-gram cache would take too long to read all; it then holds so many
MAX_CACHED_TOKENS, SAMPLE_CACHE_TOKENS = 1 << 20, 1 << 13

Weights = Mapping[str, NDArray[np.float32]]
Clock = Callable[[], float]
# a pass through the model inside this context may raise CutShortError
Interruptible = Callable[[LanguageModel], contextlib.AbstractContextManager[None]]


class _Data(Protocol):
    """Data as units that are scored by themselves: windows of a text, or conversations."""

    def tokens(self, units: Sequence[Any]) -> int:
        """The number of tokens that the model processes to score these units."""

    def evaluate(
        self, units: Sequence[Any], score: ScoreWindows, batch_tokens: int
    ) -> Iterator[tuple[Sequence[Any], Score]]:
        """Score units in batches; a caller can stop in between."""


class _Text:
    """Its units are (start, first position counted, end)."""

    def __init__(
        self,
        ids: NDArray[np.integer] | PrefixedTokens,
        byte_lengths: NDArray[np.int64],
        cached: NgramText | None = None,
        *,
        first_bytes: int = 0,
    ) -> None:
        """`cached` are the same ids with an n-gram cache. `first_bytes` is how many bytes the tokenizer adds before a
        document."""
        self._ids, self._byte_lengths, self._cached, self._first_bytes = ids, byte_lengths, cached, first_bytes

    def tokens(self, units: Sequence[Window]) -> int:
        return sum(end - counted_from for _, counted_from, end in units)

    def evaluate(
        self, units: Sequence[Window], score: ScoreWindows, batch_tokens: int
    ) -> Iterator[tuple[Sequence[Window], Score]]:
        batches = evaluate_windows(
            self._ids, self._byte_lengths, units, score, batch_tokens=batch_tokens, cached=self._cached
        )
        for batch, batch_score in batches:
            added = self._first_bytes * sum(1 for start, counted_from, _ in batch if counted_from == start + 1)
            yield batch, replace(batch_score, bytes=batch_score.bytes - added)

    def with_cache(self, weights: CacheWeights | None, separator: int, starts: Sequence[int]) -> "_Text":
        """The same text with an n-gram cache, if there are weights for one; see `NgramText`."""
        if weights is None:
            return self
        cached = NgramText(self._ids, weights, separator, starts)
        return _Text(self._ids, self._byte_lengths, cached, first_bytes=self._first_bytes)


class _Documents(PrefixedTokens):
    """Documents, each after `bos`, the token that precedes a text, from tokens with `eos` between documents."""

    def __init__(self, tokens: NDArray[np.integer], bos: int, eos: int) -> None:
        super().__init__(bos, tokens)
        self._bos, self._eos = bos, eos

    def __getitem__(self, span: slice) -> NDArray[np.integer]:
        ids = super().__getitem__(span)
        return ids if self._bos == self._eos else np.where(ids == self._eos, ids.dtype.type(self._bos), ids)


class _Answers:
    """Its units are indices of conversations."""

    def __init__(self, conversations: ConversationTokens, byte_lengths: NDArray[np.int64]) -> None:
        self._conversations, self._byte_lengths = conversations, byte_lengths

    def tokens(self, units: Sequence[int]) -> int:
        return int(self._conversations.lengths[list(units)].sum())

    def evaluate(
        self, units: Sequence[int], score: ScoreWindows, batch_tokens: int
    ) -> Iterator[tuple[Sequence[int], Score]]:
        return evaluate_answers(self._conversations, units, self._byte_lengths, score, batch_tokens=batch_tokens)


class Validator:
    """Evaluates the validation slice: windows [B, T + 1], or conversations. It may be empty."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        data: NDArray[np.int64] | ConversationTokens,
        compute: Compute | None = None,
    ) -> None:
        self._model, self._score = model, (compute or Compute()).score
        byte_lengths = tokenizer.byte_lengths
        self._data: _Data
        self._units: Sequence[Any]
        if isinstance(data, ConversationTokens):
            self._data, self._units = _Answers(data, byte_lengths), spread(data) if len(data) else ()
        else:
            width = data.shape[1]
            windows = [(start, start + 1, start + width) for start in range(0, data.size, width)]
            self._data, self._units = _Text(data.ravel(), byte_lengths), spread_order(windows)
        self._count_tokens()
        self.evaluated_tokens = 0  # that the last evaluation processed

    def evaluate(self, limit: float = math.inf, clock: Clock = time.monotonic) -> Score:
        """Evaluate the current weights. If `limit`, a time of `clock`, ends this early, later ones cover no more."""
        score, units = _evaluate(self._model, self._data, self._units, self._score, limit, clock)
        self.evaluated_tokens = self._data.tokens(units)
        self.keep_units(len(units))
        return score

    @property
    def units(self) -> int:
        """How many windows or conversations an evaluation covers."""
        return len(self._units)

    def keep_units(self, count: int) -> None:
        """Let later evaluations cover the first `count` units."""
        if count < len(self._units):
            self._units = self._units[:count]
            self._count_tokens()

    def _count_tokens(self) -> None:
        self.tokens = self._data.tokens(self._units)  # that an evaluation covers


class HeldOutEvaluation:
    """The evaluation of the held-out data, a text [N] or conversations, at the end of a run."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        data: NDArray[np.unsignedinteger] | ConversationTokens,
        settings: TrainConfig,
        *,
        models: int = 1,
        compute: Compute | None = None,
    ) -> None:
        """`model` is that of the run. `models` is the number of models evaluated: 2 if the run starts from another."""
        self._model, self._models, self._settings = model, models, settings
        self._score, self._separator = (compute or Compute()).score, tokenizer.bos_id
        self._conversations = data if isinstance(data, ConversationTokens) else None
        byte_lengths = tokenizer.byte_lengths
        longest = model.config.max_position_embeddings
        self._data: _Data
        if isinstance(data, ConversationTokens):
            self._data, self.tokens = _Answers(data, byte_lengths), len(data.ids)
            self.context = self._hurried_context = longest  # each conversation is scored whole
        else:
            documents = _Documents(data, tokenizer.bos_id, tokenizer.eos_id)
            self._data = _Text(documents, byte_lengths, first_bytes=int(tokenizer.adds_prefix_space))
            self.tokens = len(data)
            self.context = evaluation_context(longest, trained=settings.context)
            self._hurried_context = settings.context
            ends = _positions_of(tokenizer.eos_id, data)
            self._first_tokens = [0, *(1 + end for end in ends), 1 + len(data)]
        self._units: Sequence[Any] = ()
        self.cached_tokens = 0  # that the n-gram cache held at most, if that were fewer than `llm eval` lets it hold
        self.expert_shares: list[list[float]] = []  # of the tokens evaluated, [layers][experts]

    def evaluate(
        self,
        weights: Weights,
        trained: int,
        limit: float,
        clock: Clock,
        interruptible: Interruptible,
        *,
        hurried: bool,
        cache: CacheWeights | None = None,
    ) -> Score | None:
        """Evaluate the weights that will be saved, as those who use the file will run them: in float32, with the
        model's own context length (`evaluation_context`; that of training if `hurried`).

        With a `cache` of n-grams, if there are weights for one. Until `limit`, a time of `clock`. None if it was
        interrupted before the first windows were done.
        """
        tokens = min(self._settings.eval_tokens, self.tokens) if hurried else self._affordable_tokens(trained)
        if hurried:
            self.context = min(self.context, self._hurried_context)
        elif self._is_timed:  # the limit decides, so that the run ends on time
            tokens = min(EXTRA_FINAL_TOKENS * tokens, self.tokens)
        self._units = self._select(tokens)
        self.cached_tokens = SAMPLE_CACHE_TOKENS if cache and tokens < self.tokens > MAX_CACHED_TOKENS else 0
        model = self._model.scoring_model(weights)
        with interruptible(model):
            score, self._units = _evaluate(
                model, self._with_cache(cache), self._units, self._score, limit, clock, partial_ok=True
            )
        self.expert_shares = model.expert_shares()
        return score if self._units else None

    def evaluate_base(
        self, weights: Weights, interruptible: Interruptible, cache: CacheWeights | None = None
    ) -> Score | None:
        """Evaluate other weights on the units of `evaluate`. None if it was interrupted."""
        model = self._model.scoring_model(weights)
        with interruptible(model):
            score, units = _evaluate(model, self._with_cache(cache), self._units, self._score, partial_ok=True)
        return score if len(units) == len(self._units) else None

    def _with_cache(self, cache: CacheWeights | None) -> _Data:
        if not isinstance(self._data, _Text):
            return self._data
        end = self._first_tokens[-1]
        starts = range(0, end, self.cached_tokens) if self.cached_tokens else document_blocks(self._first_tokens)
        return self._data.with_cache(cache, self._separator, starts)

    def cost(self, trained: int) -> float:
        """After training on `trained` tokens, as a number of tokens of the validation slice."""
        slower = 1.0 if self._model.dtype is torch.float32 else FLOAT32_COST
        if self._conversations is None and self.tokens > self.context:  # windows overlap
            slower *= self.context / stride(self.context)
        return self._models * slower * self._affordable_tokens(trained)

    @property
    def _is_timed(self) -> bool:
        return self._settings.seconds is not None

    def _affordable_tokens(self, trained: int) -> int:
        return final_evaluation_tokens(trained, self._settings.eval_tokens, self.tokens)

    def _select(self, most: int) -> Sequence[Any]:
        """Units of about `most` tokens, spread evenly over the data. If a clock may end the evaluation early, so are
        the first of them."""
        if self._conversations is not None:
            return spread(self._conversations, most)
        windows = _even_part(_DocumentWindows(self._first_tokens, self.context), most / max(1, self.tokens))
        return spread_order(windows) if self._is_timed else windows


class _DocumentWindows(Sequence[Window]):
    """The windows of documents that follow one another, computed on access. None spans two documents, so that the
    figure is that of `llm eval`, which measures each document by itself."""

    def __init__(self, first_tokens: Sequence[int], context: int) -> None:
        """`first_tokens` are the positions of the tokens that precede the documents, and the end of the last."""
        self._first_tokens, self._context = first_tokens, context
        counts = (len(self._of(index)) for index in range(len(first_tokens) - 1))
        self._ends = list(itertools.accumulate(counts))  # of each document, as a number of windows

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]
        document = bisect.bisect_right(self._ends, index)
        windows, first = self._of(document), self._first_tokens[document]
        start, counted_from, end = windows[index - self._ends[document] + len(windows)]
        return first + start, first + counted_from, first + end

    def _of(self, document: int) -> Sequence[Window]:
        """Those of a document, counted from the token that precedes it."""
        return select_windows(self._first_tokens[document + 1] - self._first_tokens[document], self._context)


def _even_part(windows: Sequence[Window], share: float) -> Sequence[Window]:
    """A share of the windows, spread evenly over all; at least one, if there is one."""
    if share >= 1 or not windows:
        return windows
    keep = max(1, round(share * len(windows)))
    return [windows[round(i)] for i in np.linspace(0, len(windows) - 1, keep)]


def _positions_of(token: int, ids: NDArray[np.integer]) -> list[int]:
    """Where a token is. The ids may be a memory-mapped file."""
    blocks = range(0, len(ids), SEARCHED_TOKENS)
    return [start + int(i) for start in blocks for i in np.flatnonzero(ids[start : start + SEARCHED_TOKENS] == token)]


def _evaluate(
    model: LanguageModel,
    data: _Data,
    units: Sequence[Any],
    score: Callable[[LanguageModel, NDArray[np.int64]], tuple[NDArray[np.floating], NDArray[np.bool_]]],
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
    batches = data.evaluate(units, partial(score, model), batch_tokens)
    try:
        for batch, batch_score in batches:
            total, done = total + batch_score, done + len(batch)
            if clock() > limit:
                break
    except CutShortError:
        if not partial_ok:
            raise
    return total, units if done == len(units) else [units[i] for i in range(done)]
