"""The n-gram cache: tokens that followed the last few tokens earlier in the text become more likely.

This is a cache language model (Kuhn and De Mori 1990; with a fitted gate: Grave, Joulin and Usunier,
arXiv:1612.04426). The network's prediction is interpolated with the relative frequencies of tokens that
followed the last 1, 2, ... K tokens earlier in the text; longer contexts are applied last, so they count
most:

    p_0(v) = the network's probability
    p_k(v) = (1 - g_k) p_(k-1)(v) + g_k c_k(v) / T_k   if the last k tokens occurred before,
             p_(k-1)(v)                                otherwise
    g_k    = sigmoid(w_k . (1, log T_k, log(D_k / T_k), log G_k))

T_k is the number of earlier occurrences of these k tokens, D_k the number of different tokens that followed
them, c_k(v) the number of times that v followed, and G_k the number of tokens since the last occurrence. The
weights w_k, four for each k, are fitted to text that the network was not trained on
(training/data/cache_fit.py), and belong to the model.

In an ensemble each model has its own weights w_k, and one cache holds the text. The ensemble's prediction is
mixed with the cache once per set of weights, and the results are averaged with the models' weights in the
ensemble.

`NgramCache` holds a text that grows token by token; `NgramText` computes the same probabilities for a whole
text at once. K, N, V = orders, tokens of a text, vocabulary size.
"""

import bisect
import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmcli.formats.training_record import CacheWeights
from llmcli.models.runtime import ALONE, Array, Bools, Doubles, Ints

if TYPE_CHECKING:
    from llmcli.data.tokens.batches import PrefixedTokens

    TokenIds = NDArray[np.integer] | PrefixedTokens

ORDERS = 5  # K in models trained here; longer contexts add nothing
# the weights of a model, or of the models in an ensemble; None: no cache
Weights = CacheWeights | Sequence[CacheWeights | None]
FEW_TOKENS = 16  # up to this number of tokens, Python's floats are faster than numpy's calls
MAX_GATE = 0.999  # the network always has some weight
MAX_LOGIT = 50.0  # limit of a gate's negated logit, so that its exponential stays finite
BLOCK_TOKENS = 1 << 17  # scoring a whole text empties the cache after this many tokens
BYTES_PER_TOKEN = 250 * ORDERS  # approximate memory per token in a cache


def _models_and_orders(weights: Weights) -> tuple[tuple[CacheWeights | None, ...], int]:
    """Return (weights of each model, largest K)."""
    models = (weights,) if isinstance(weights, CacheWeights) else tuple(weights)
    return models, max((len(model.weights) for model in models if model is not None), default=0)


# ---- a growing text


@dataclass(slots=True)
class _Context:
    """The tokens that have followed a context."""

    counts: dict[int, int]  # token -> number of times
    total: int = 0  # sum of the counts
    last: int = 0  # position of the last follower


class NgramCache:
    """A text that grows and shrinks at its end, with the followers of each of its contexts."""

    def __init__(self, weights: Weights, ids: Iterable[int] = ()) -> None:
        self._models, self.orders = _models_and_orders(weights)
        self._ids: list[int] = []
        self._contexts: dict[tuple[int, ...], _Context] = {}
        # for each token, the `last` of its contexts before it was added; None: the token does not count
        self._before: list[list[int] | None] = []
        self._counted = 0  # number of tokens before the first token that does not count
        self._limit = sys.maxsize  # number of tokens that may count; see `count_first`
        for token in ids:
            self.append(token)

    def __len__(self) -> int:
        return len(self._ids)

    def append(self, token: int, *, counts: bool = True) -> None:
        """Add a token. With `counts=False`, it is only context and does not count as a continuation until
        `rewind` is called; beyond the limit of `count_first`, it never counts."""
        recent = tuple(self._ids[-self.orders :])
        position = len(self._ids)
        self._ids.append(token)
        if not counts or position >= self._limit:
            self._before.append(None)
            return
        before = []
        for n in range(1, len(recent) + 1):
            context = self._contexts.get(recent[-n:])
            if context is None:
                context = self._contexts[recent[-n:]] = _Context({})
            before.append(context.last)
            context.counts[token] = context.counts.get(token, 0) + 1
            context.total += 1
            context.last = position
        self._before.append(before)
        if self._counted == position:
            self._counted += 1

    def rewind(self, length: int = 0) -> None:
        """Keep only the first `length` tokens. From now on all of them count, up to the limit of
        `count_first`, which is removed at length 0."""
        first = min(length, self._counted, self._limit)
        kept = self._ids[first:length]
        self.drop(first)
        if not length:
            self._limit = sys.maxsize
        for token in kept:
            self.append(token)

    def count_first(self, tokens: int | None) -> None:
        """Count only the first `tokens` tokens of this text, because the model generated the others. None:
        count all."""
        self._limit = sys.maxsize if tokens is None else tokens
        if self._ids:
            self.rewind(len(self))

    def drop(self, length: int) -> None:
        """Keep only the first `length` tokens, without changing which of them count."""
        while len(self._ids) > length:
            token = self._ids.pop()
            before = self._before.pop()
            recent = tuple(self._ids[-self.orders :])
            for n, last in enumerate(before or (), 1):
                context = self._contexts[recent[-n:]]
                context.last = last
                context.total -= 1
                context.counts[token] -= 1
                if not context.counts[token]:
                    del context.counts[token]
                if not context.counts:
                    del self._contexts[recent[-n:]]
        self._counted = min(self._counted, length)

    def part(self, start: int, end: int) -> "NgramCache":
        """Return the cache of a part of the text. All tokens of the part are counted."""
        return NgramCache(self._models, self._ids[start:end])

    def matches(self, model: int = 0) -> Iterator[tuple[int, float, int, Mapping[int, int]]]:
        """Yield (k, g_k, T_k, counts of the followers) for each k = 1, 2, ... whose last k tokens occurred
        before, with the weights of one model."""
        weights = self._models[model]
        rows = weights.weights if weights else ()
        recent = tuple(self._ids[-self.orders :])
        for order, (bias, of_total, of_distinct, of_gap) in enumerate(rows[: len(recent)], 1):
            context = self._contexts.get(recent[-order:])
            if context is None:
                return
            total = context.total
            distinct = len(context.counts)
            gap = len(self._ids) - context.last
            z = (
                bias
                + of_total * math.log(total)
                + of_distinct * math.log(distinct / total)
                + of_gap * math.log(gap)
            )
            yield order, min(MAX_GATE, 1 / (1 + math.exp(-max(z, -MAX_LOGIT)))), total, context.counts

    def added(self, shares: Sequence[float] | NDArray[np.floating] = ALONE) -> dict[int, float]:
        """Return, for each follower of a context at the text's end, the probability that the cache adds to
        the network's before renormalization. `shares` are the weights of the models in an ensemble."""
        if len(self._models) == 1:
            return self._added_by(0)[0]
        added: dict[int, float] = {}
        total = 0.0  # share of the network's probability that is left
        for model, share in enumerate(shares):
            if share:
                own, left = self._added_by(model)
                total += float(share) * left
                for token, value in own.items():
                    added[token] = added.get(token, 0.0) + float(share) * left * value
        return {token: value / total for token, value in added.items()}

    def _added_by(self, model: int) -> tuple[dict[int, float], float]:
        """Return (`added` with the weights of one model, remaining share of the network's probability)."""
        added: dict[int, float] = {}
        left = 1.0
        for _, gate, total, counts in self.matches(model):
            left *= 1 - gate
            scale = gate / (left * total)
            for token, count in counts.items():
                added[token] = added.get(token, 0.0) + scale * count
        return added, left

    def mix(self, logits: Array, shares: Sequence[float] | NDArray[np.floating] = ALONE) -> Array:
        """Return the logits [V] of the mixture, given the network's logits after the text; for `shares` see
        `added`."""
        if not (added := self.added(shares)):
            return logits
        highest = logits.max()
        total = float(highest) + math.log(float(np.exp(logits - highest).sum()))
        mixed = logits.copy()
        if len(added) > FEW_TOKENS:
            tokens = np.fromiter(added, np.int64, len(added))
            from_cache = total + np.log(np.fromiter(added.values(), np.float64, len(added)))
            mixed[tokens] = np.logaddexp(logits[tokens], from_cache)
            return mixed
        for token, value in added.items():
            lower, higher = sorted((logits.item(token), total + math.log(value)))
            mixed[token] = higher + math.log1p(math.exp(lower - higher))
        return mixed


# ---- a whole text at once


# For each token of a text, the earlier occurrences of the 1, 2, ... K tokens before it: T, D, G, and c of the
# token itself, [4, N, K]; 0 where there are none.
Matches = Ints


def gate_features(matches: Matches) -> Doubles:
    """Compute the inputs [N, K, FEATURES] of the gates."""
    total, distinct, gap = np.maximum(1, matches[:3]).astype(np.float64)
    return np.stack([np.ones_like(total), np.log(total), np.log(distinct / total), np.log(gap)], axis=-1)


def token_shares(matches: Matches) -> Doubles:
    """Compute c / T, the relative frequency of each token, [N, K]."""
    return matches[3] / np.maximum(1, matches[0])


def gates_of(matches: Matches, weights: CacheWeights) -> Doubles:
    """Compute g [N, K]; 0 where a context is new."""
    K = len(weights.weights)
    z = np.einsum("nkf,kf->nk", gate_features(matches)[:, :K], np.array(weights.weights))
    gates = np.minimum(MAX_GATE, 1 / (1 + np.exp(-np.maximum(z, -MAX_LOGIT))))
    return np.where(matches[0][:, :K] > 0, gates, 0.0)


def find_matches(ids: NDArray[np.integer], orders: int, separator: int | None = None) -> Matches:
    """Find the matches for every token of a text `ids` [N]. `separator` is a token that ends a document;
    nothing matches beyond it."""
    N = len(ids)
    starts = np.zeros(N, np.int64)  # start of the document of each token
    if separator is not None:
        begins = np.concatenate([[False], ids[:-1] == separator])
        starts = np.maximum.accumulate(np.where(begins, np.arange(N), 0))
    followers = np.unique(ids, return_inverse=True)[1].astype(np.int64)
    columns = np.zeros((4, orders, N), np.int64)
    contexts = starts  # numbers the different contexts of k tokens; for 0 tokens, the documents
    for k in range(1, min(orders, N - 1) + 1):
        known = np.flatnonzero(np.arange(N) - starts >= k)
        numbers = np.zeros(N, np.int64)
        pairs = contexts[known - 1] * (N + 1) + followers[known - 1]
        numbers[known] = np.unique(pairs, return_inverse=True)[1]
        columns[:, k - 1, known] = _count_matches(numbers[known], followers[known], known)
        contexts = numbers
    return np.ascontiguousarray(columns.swapaxes(1, 2))


def _count_matches(contexts: Ints, followers: Ints, positions: Ints) -> Ints:
    """Compute T, D, G, c [4, n] for contexts and their followers, at increasing positions; see `Matches`."""
    order = np.argsort(contexts, kind="stable")
    rank, is_first = _ranks(contexts[order])
    gaps = np.where(is_first, 0, np.diff(positions[order], prepend=0))
    pairs = contexts * (followers.max(initial=0) + 1) + followers
    by_pair = np.argsort(pairs, kind="stable")
    results = np.empty((4, len(contexts)), np.int64)
    results[3, by_pair] = _ranks(pairs[by_pair])[0]
    new = (results[3, order] == 0).astype(np.int64)  # followers that are new for this context
    before = np.cumsum(new) - new
    distinct = before - np.maximum.accumulate(np.where(is_first, before, 0))
    results[:3, order] = rank, distinct, gaps
    return results


def _ranks(ordered: Ints) -> tuple[Ints, Bools]:
    """Return, for sorted values, (number of equal values before each, whether there are none)."""
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]
    places = np.arange(len(ordered))
    return places - np.maximum.accumulate(np.where(is_first, places, 0)), is_first


def shares_of_mixture(gates: Doubles, shares: Doubles) -> tuple[Doubles, Doubles]:
    """Return (a, b) [N] such that a token's probability in the mixture is a times the network's, plus b;
    `gates` and `shares` [N, K] are g and c / T."""
    a = np.ones(len(gates))
    b = np.zeros(len(gates))
    for gate, share in zip(gates.T, shares.T, strict=True):
        a = (1 - gate) * a
        b = (1 - gate) * b + gate * share
    return a, b


def document_blocks(first_tokens: Sequence[int]) -> list[int]:
    """Return the starts of blocks of at most BLOCK_TOKENS in consecutive documents; short documents share a
    block. `first_tokens` are the positions of the tokens that precede the documents, and the end of the last
    document."""
    starts: list[int] = []
    for first, end in itertools.pairwise(first_tokens):
        if not starts or end - starts[-1] > BLOCK_TOKENS:
            starts += range(first, end, BLOCK_TOKENS)
    return starts


class NgramText:
    """A whole text with the losses of the mixture. Each block begins with an empty cache, to bound memory."""

    def __init__(
        self, ids: "TokenIds", weights: Weights, separator: int | None = None, starts: Sequence[int] = ()
    ) -> None:
        """`separator` is explained at `find_matches`. `starts` are the positions where blocks begin, starting
        with 0; by default a block has BLOCK_TOKENS."""
        self._ids = ids
        self._separator = separator
        self._models, self._orders = _models_and_orders(weights)
        self._starts = starts or range(0, max(1, len(ids)), BLOCK_TOKENS)
        self._blocks: dict[int, tuple[Array, Array]] = {}

    def nats(
        self, first: int, network: NDArray[np.floating], shares: NDArray[np.floating] | None = None
    ) -> Doubles:
        """Return the losses of the tokens from position `first` on, given the network's losses [N]. `shares`
        [N, n] are the weights of the models in an ensemble."""
        mixed = np.empty(len(network))
        done = 0
        while done < len(network):
            block = bisect.bisect_right(self._starts, first + done) - 1
            offset = first + done - self._starts[block]
            a, b = (part[:, offset : offset + len(network) - done] for part in self._block(block))
            span = slice(done, done + a.shape[1])
            if shares is None:
                a = a[0]
                b = b[0]
            else:
                a, b = ((part * shares[span].T).sum(0) for part in (a, b))
            mixed[span] = -np.log(a * np.exp(-network[span].astype(np.float64)) + b)
            done = span.stop
        return mixed

    def _block(self, number: int) -> tuple[Array, Array]:
        """Return `shares_of_mixture` for the tokens in a block and each model [n, N], computed once."""
        if number not in self._blocks:
            end = self._starts[number + 1] if number + 1 < len(self._starts) else len(self._ids)
            ids = np.asarray(self._ids[self._starts[number] : end])
            matches = find_matches(ids, self._orders, self._separator)
            a, b = np.ones((2, len(self._models), len(ids)), np.float32)
            b[:] = 0
            for model, weights in enumerate(self._models):
                if weights is not None:
                    shares = token_shares(matches)[:, : len(weights.weights)]
                    a[model], b[model] = shares_of_mixture(gates_of(matches, weights), shares)
            self._blocks[number] = a, b
        return self._blocks[number]
