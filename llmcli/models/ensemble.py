"""An ensemble of models. Their next-token distributions are averaged at every step.

A model's weight is the posterior of its domain given the text so far: a uniform prior times the model's
likelihood of the text, with older tokens counting less (DEMix, arXiv:2108.05036, section 4.1;
Branch-Train-Merge, arXiv:2208.03306, section 3). A model with a negligible weight is not run. Every REFRESH
tokens, all models catch up with the text, and their weights are recomputed.

n = models; T = tokens; V = vocabulary size.
"""

import math
from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np

from llmcli.models.logits import softmax
from llmcli.models.runtime import (
    PREFILL_CHUNK,
    Array,
    Ints,
    Runtime,
    Scores,
    WeightedScores,
    check_context,
)

DECAY = 0.9  # weight of a token's log-likelihood per later token: measured, tests/benchmarks/LOG.md
REFRESH = 8  # number of tokens after which all models catch up with the text
MIN_WEIGHT = 0.001  # a model with less weight at a refresh does not run until the next one
MIN_PROBABILITY = 1e-37  # lower bound of probabilities, so that their logarithms stay finite


class _Member:
    """A model in the ensemble, and the evidence for it."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.evidence = [0.0]  # decayed log-likelihood in nats after 0, 1, ... tokens
        self._last: tuple[int, Array] | None = None  # (number of tokens, probabilities [V] after them)

    def fork(self, length: int) -> "_Member":
        forked = copy(self)
        forked.runtime = self.runtime.fork(min(length, self.runtime.length))
        forked.evidence = self.evidence[: length + 1]
        return forked

    def process(self, ids: list[int], start: int) -> Array:
        """Process the new tokens of the text `ids`; return the probabilities [T, V] after each of
        ids[start:]."""
        done = self.runtime.length
        known = self._last[1] if self._last and self._last[0] == done else None
        if done and known is None:  # unknown after a rewind, so the last cached token is processed again
            done -= 1
            self.runtime.rewind(done)
        rows = softmax(self.runtime.logits(ids[done:]))
        for position in range(len(self.evidence) - 1, len(ids)):
            predicted = known if position == done and known is not None else rows[position - done - 1]
            # the first token of a text is not predicted
            likelihood = predicted[ids[position]] if position else 1.0
            self.evidence.append(DECAY * self.evidence[-1] + math.log(max(likelihood, MIN_PROBABILITY)))
        self._last = len(ids), rows[-1].copy()
        return rows[start - len(ids) :]

    def remove(self, positions: range, ids: list[int]) -> None:
        """Remove tokens of the text `ids`, which is processed to its end before."""
        if self.runtime.length < len(ids):
            self.process(ids, len(ids))
        self.runtime.remove(positions)
        del self.evidence[positions.start + 1 : positions.stop + 1]
        if self._last:
            length, probabilities = self._last
            self._last = length - len(positions), probabilities

    def rewind(self, length: int) -> None:
        self.runtime.rewind(min(length, self.runtime.length))
        del self.evidence[length + 1 :]


class EnsembleRuntime(Runtime):
    """An ensemble ready to run. Its logits are log probabilities."""

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        parameters = sum(runtime.parameters for runtime in runtimes)
        super().__init__(
            runtimes[0].context, parameters, sum(runtime.cache_bytes_per_token for runtime in runtimes)
        )
        self.can_shift = all(runtime.can_shift for runtime in runtimes)
        self._members = [_Member(runtime) for runtime in runtimes]
        self._ids: list[int] = []

    def fork(self, length: int = 0) -> "EnsembleRuntime":
        forked = copy(self)
        forked._members = [member.fork(length) for member in self._members]
        forked._ids = self._ids[:length]
        return forked

    @property
    def cache_bytes(self) -> int:
        return sum(member.runtime.cache_bytes for member in self._members)

    @property
    def length(self) -> int:
        return len(self._ids)

    def prefill(self, ids: Sequence[int]) -> Array:
        for rows in self._process_all(ids):
            last = rows[-1]
        return last

    def logits(self, ids: Sequence[int]) -> Array:
        return np.concatenate(list(self._process_all(ids)))

    def rewind(self, length: int = 0) -> None:
        if length < len(self._ids):
            del self._ids[length:]
            for member in self._members:
                member.rewind(length)

    def remove(self, positions: range) -> None:
        for member in self._members:
            member.remove(positions, self._ids)
        del self._ids[positions.start : positions.stop]

    def expert_weights(self) -> Array:
        return self.recent_weights(1)

    def recent_weights(self, tokens: int) -> Array:
        return self._weights(self.length - tokens + 1, self.length)

    def score(self, ids: Ints) -> Scores:
        """See `Runtime`; the cache is empty afterwards."""
        return self.score_with_weights(ids)[:2]

    def score_with_weights(self, ids: Ints) -> WeightedScores:
        B = ids.shape[0]
        T = ids.shape[1] - 1
        check_context(T, self.context)
        losses = np.empty((B, T))
        correct = np.empty((B, T), np.bool_)
        weights = np.empty((B, T, len(self._members)), np.float32)
        for b in range(B):
            self.rewind()
            for first in range(0, T, PREFILL_CHUNK):
                chunk = slice(first, min(T, first + PREFILL_CHUNK))
                rows = self._process(ids[b, chunk].tolist())
                targets = ids[b, first + 1 : first + 1 + len(rows)]
                losses[b, chunk] = -np.take_along_axis(rows, targets[:, None], axis=-1)[:, 0]
                correct[b, chunk] = rows.argmax(axis=-1) == targets
                weights[b, chunk] = self.recent_weights(len(rows))
        self.rewind()
        return losses, correct, weights

    def _process_all(self, ids: Sequence[int]) -> Iterator[Array]:
        self.check_input(ids)
        for first in range(0, len(ids), PREFILL_CHUNK):
            self.check()
            yield self._process(ids[first : first + PREFILL_CHUNK])

    def _process(self, ids: Sequence[int]) -> Array:
        """Process tokens; return the ensemble's log probabilities [T, V] after each."""
        start = self.length
        self._ids += ids
        all_run = len(ids) > 1 or self.length % REFRESH == 0
        runs = [all_run or weight > 0 for weight in self._weights(start, start)[0]]
        rows = {i: member.process(self._ids, start) for i, member in enumerate(self._members) if runs[i]}
        weights = self._weights(start + 1, self.length)
        average = sum(weights[:, i, None] * row for i, row in rows.items() if weights[:, i].any())
        return np.log(np.maximum(average, MIN_PROBABILITY))

    def _weights(self, first: int, last: int) -> Array:
        """Return the weights [T, n] after `first` to `last` tokens; 0 for a model that does not run."""
        lengths = range(first, last + 1)
        at_refresh = np.array([[m.evidence[n // REFRESH * REFRESH] for m in self._members] for n in lengths])
        now = np.array(
            [[m.evidence[n] if n < len(m.evidence) else -np.inf for m in self._members] for n in lengths]
        )
        return softmax(np.where(softmax(at_refresh) >= MIN_WEIGHT, now, -np.inf)).astype(np.float32)
