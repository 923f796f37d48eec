"""Several models, one answer: at every step their next-token distributions are averaged.

The weight of each is the posterior of its domain given the text so far: a prior, the same for all, times how likely
the text was to it, where what lies further back counts less (DEMix, arXiv:2108.05036, section 4.1; Branch-Train-Merge,
arXiv:2208.03306, section 3). A model that counts next to nothing is not asked; every REFRESH tokens it reads what it
missed, all at once, and may come back.

Whatever runs the graph comes in as a Runtime. n, T, V = models, tokens, vocabulary.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmcli.errors import LLMError
from llmcli.models.logits import probabilities
from llmcli.models.runtime import Array, Runtime

FORGETTING = 0.9  # a token's evidence counts so much less with each that follows: measured, tests/benchmarks/LOG.md
REFRESH = 8  # tokens after which all models have read the text, and who is asked is settled anew
LIGHTEST = 0.001  # who weighs less then is not asked
IMPOSSIBLE = 1e-37  # the least probability that is told from none
PREFILL = 128  # tokens whose distributions are held at once


class _Expert:
    """A model and what speaks for it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.evidence = [0.0]  # after 0, 1, ... tokens: their log-likelihood, with forgetting
        self._last: tuple[int, Array] | None = None  # (tokens, probabilities [V] after them)

    def read(self, ids: list[int], start: int) -> Array:
        """Take in what it has not read of a text; the probabilities [T, V] after each of ids[start:]."""
        have = self._runtime.length
        known = self._last[1] if self._last and self._last[0] == have else None
        if have and known is None:  # it went back: what came after the last token it keeps is not known any more
            have -= 1
            self._runtime.rewind(have)
        rows = probabilities(self._runtime.logits(ids[have:]))
        before = rows if known is None else np.concatenate([known[None], rows])
        first = have + (known is None)  # before[i] is what was expected after first + i tokens
        for at in range(len(self.evidence) - 1, len(ids)):  # the first token of a text says nothing
            told = math.log(max(before[at - first, ids[at]], IMPOSSIBLE)) if at else 0.0
            self.evidence.append(FORGETTING * self.evidence[-1] + told)
        self._last = len(ids), rows[-1].copy()
        return rows[start - len(ids) :]

    @property
    def parameters(self) -> int:
        return self._runtime.parameters

    def rewind(self, length: int) -> None:
        self._runtime.rewind(min(length, self._runtime.length))
        del self.evidence[length + 1 :]
        if self._last and self._last[0] > length:
            self._last = None


class EnsembleRuntime:
    """A mixture ready to run, behind the interface of runtime.py's Runtime; what it gives as logits are logarithms of
    probabilities."""

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self.context = runtimes[0].context
        self._experts = [_Expert(runtime) for runtime in runtimes]
        self._ids: list[int] = []

    @property
    def parameters(self) -> int:
        """Of all its models."""
        return sum(expert.parameters for expert in self._experts)

    @property
    def length(self) -> int:
        """The number of tokens taken in so far, at most `context`."""
        return len(self._ids)

    def prefill(self, ids: Sequence[int]) -> Array:
        """Take in tokens, at least one; the log-probabilities [V] of what follows the last."""
        if not len(ids):
            raise ValueError("at least one token is needed")
        if self.length + len(ids) > self.context:
            raise LLMError(f"{self.length + len(ids)} tokens do not fit the context of {self.context}")
        for first in range(0, len(ids), PREFILL):
            found = self._take(ids[first : first + PREFILL])
        return found[-1]

    def step(self, token: int) -> Array:
        """Take in one token; the log-probabilities [V] of the next."""
        return self.prefill((token,))

    def logits(self, ids: Sequence[int]) -> Array:
        """Take in tokens; the log-probabilities [T, V] after each of them."""
        if self.length + len(ids) > self.context:
            raise LLMError(f"{self.length + len(ids)} tokens do not fit the context of {self.context}")
        return np.concatenate([self._take(ids[first : first + PREFILL]) for first in range(0, len(ids), PREFILL)])

    def rewind(self, length: int = 0) -> None:
        """Forget all but the first `length` tokens."""
        if length < len(self._ids):
            del self._ids[length:]
            for expert in self._experts:
                expert.rewind(length)

    def expert_weights(self) -> Array:
        """The weights [1, n] that the models have for what comes next; they sum to 1."""
        return self._weights(self.length, self.length)

    def score(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """How well windows ids [B, T + 1] are predicted, each from its own beginning: see runtime.py. What was taken
        in is forgotten."""
        B, T = ids.shape[0], ids.shape[1] - 1
        nats, right = np.empty((B, T)), np.empty((B, T), np.bool_)
        for b in range(B):
            self.rewind()
            if self.context < T:
                raise LLMError(f"{T} tokens do not fit the context of {self.context}")
            for first in range(0, T, PREFILL):
                now = slice(first, min(T, first + PREFILL))
                rows = self._take(ids[b, now].tolist())
                targets = ids[b, first + 1 : first + 1 + len(rows)]
                nats[b, now] = -np.take_along_axis(rows, targets[:, None], axis=-1)[:, 0]
                right[b, now] = rows.argmax(axis=-1) == targets
        self.rewind()
        return nats, right

    def _take(self, ids: Sequence[int]) -> Array:
        """Take in tokens; the logarithms [T, V] of the mixture's probabilities after each."""
        start = self.length
        self._ids += ids
        everyone = len(ids) > 1 or self.length % REFRESH == 0
        asked = [everyone or weight > 0 for weight in self._weights(start, start)[0]]
        told = {i: e.read(self._ids, start) for i, e in enumerate(self._experts) if asked[i]}
        weights = self._weights(start + 1, self.length)
        total = sum(weights[:, i, None] * found for i, found in told.items() if weights[:, i].any())
        return np.log(np.maximum(total, IMPOSSIBLE))

    def _weights(self, first: int, last: int) -> Array:
        """Those after `first` to `last` tokens, [T, n]; 0 for who is not asked."""
        lengths = range(first, last + 1)
        settled = np.array([[e.evidence[n // REFRESH * REFRESH] for e in self._experts] for n in lengths])
        now = np.array([[e.evidence[n] if n < len(e.evidence) else -np.inf for e in self._experts] for n in lengths])
        return probabilities(np.where(probabilities(settled) >= LIGHTEST, now, -np.inf)).astype(np.float32)
