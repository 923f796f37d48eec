"""Prompt -> what flows through the graph on the way to the answer.

The prompt is read as `generate` reads it, so the last probabilities are its, to the digit. Then its tokens go through
the same graph once more while a recorder keeps the activations. numpy only, never torch; knows no terminal and no page.

L, H, C, V = layers, heads, width, vocabulary; T = tokens that the model sees; N = the last of them, looked at here;
K = candidates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmcli.data.tokenizer import Tokenizer
from llmcli.generation.prompt import Prompt, read
from llmcli.models.logits import entropy, log_softmax, softmax
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import Array
from llmcli.models.runtime import Runtime as Answering

MOST_TOKENS = 256  # looked at: attention grows with their square
MOST_WORK = 3e10  # parameters x tokens when tokens are left out: a few seconds
MOST_ASKED = 1e11  # products when the model is asked after every layer and token: some seconds


@dataclass(frozen=True)
class Candidates:
    """The likeliest tokens after some positions, the likeliest first."""

    ids: NDArray[np.int64]  # [..., K]
    probabilities: Array  # [..., K]


@dataclass(frozen=True)
class Explanation:
    """What a model made of a prompt."""

    ids: list[int]  # [N]
    tail: str  # the prompt's end that the answer's first token writes too, since it begins before; mostly ""
    cut: int  # tokens of the prompt before those that the model sees
    earlier: int  # tokens that it sees, T - N, before those looked at
    attention: Array  # [L, H, N, N]: how much a token (a row) looks at another; what is missing from 1 goes to earlier
    lens: Candidates  # [L + 1, N or 1, K]: what it would say after no layer, one, ... all, of each token or the last
    effects: NDArray[np.float64]  # [N] bits that leaving a token out takes from the likeliest answer; NaN: not tried
    surprises: NDArray[np.float64]  # [N] bits that each token cost after those before it; NaN: not known
    logprobs: NDArray[np.float64]  # [V] natural logarithms of the next token's probabilities, as `generate` has them;
    # -inf where it never writes the token: bytes that are no UTF-8, or did not stand in the training text

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """[V], of the next token."""
        return np.exp(self.logprobs)

    @property
    def entropy(self) -> float:
        """Of the next token, in bits."""
        return entropy(self.probabilities / self.probabilities.sum())

    def likeliest(self, count: int) -> list[int]:
        """The likeliest next tokens, of those that are possible."""
        ranked = np.argsort(-self.logprobs, kind="stable")[:count].tolist()
        return [token for token in ranked if np.isfinite(self.logprobs[token])]


@dataclass(frozen=True)
class Asked:
    """A prompt that a model has read, to where its answer begins."""

    ids: list[int]
    tail: bytes  # the prompt's end that the answer's first token is still to write
    allowed: NDArray[np.bool_]  # [V]: what the next token may be
    logprobs: NDArray[np.float64]  # [V], -inf where it may not be
    answer: int  # the likeliest token


def ask(whole: Answering, tokenizer: Tokenizer, prompt: str, *, literal: bool) -> Asked:
    """Let a model, or a mixture, read a prompt as `explain` says. Raises LLMError for an empty one and damaged
    weights."""
    vocabulary = tokenizer.vocabulary
    opening = read(whole, tokenizer, Prompt.of(prompt, tokenizer, literal=literal))
    way = opening.ways_of(int(opening.logits.argmax()))[0]
    answer = way.tokens[-1]
    data = vocabulary.token_bytes[answer]
    tail = data[: len(data) - len(way.new)]
    own = log_softmax(opening.logits if opening.own is None else opening.own)
    logprobs = np.where(np.isneginf(opening.logits), -np.inf, own)
    if opening.tokens is not None:
        entries, logprobs = logprobs, np.full(len(vocabulary), -np.inf)
        np.logaddexp.at(logprobs, opening.tokens, entries)
    allowed = np.ones(len(vocabulary), bool)
    if tail:
        allowed[:] = False
        allowed[[*vocabulary.prefixes_of(tail), *vocabulary.extensions_of(tail).tolist()]] = True
    return Asked(opening.take(way), tail, allowed, logprobs, answer)


def explain(
    runtime: NumpyRuntime,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    literal: bool,
    candidates: int = 5,
    everywhere: bool = False,
    answering: Answering | None = None,
) -> Explanation:
    """Look on while a model reads a prompt; `everywhere` asks what it would say after each token, not only the last.
    Of a mixture `answering` is the whole, which the last probabilities are of, and `runtime` one of its models.

    The last probabilities are those that `generate` chooses from, summed over the ways to split the prompt's end into
    tokens; the graph is followed on the likeliest of these ways. Where its last token goes beyond the prompt, that is
    the answer. Of more than the context the model sees the end that `generate` keeps, of which the last MOST_TOKENS are
    looked at (of a large model `everywhere`, fewer: MOST_ASKED).

    Attention: the softmaxed scores of each head. The lens: the last norm and the head applied to the residual stream
    after each layer (nostalgebraist 2020). Effects: log2 p(likeliest | all tokens) - log2 p(it | all but one), where
    the tokens after the gap move up by a position; of a large model only for the last tokens (MOST_WORK).
    Surprises: -log2 p(token | those before). Raises LLMError for an empty prompt and damaged weights.
    """
    whole = answering or runtime
    asked = ask(whole, tokenizer, prompt, literal=literal)
    ids, tail, allowed, used = asked.ids, asked.tail, asked.allowed, len(tokenizer.token_bytes)
    logprobs, best = asked.logprobs, asked.answer
    seen = ids[len(ids) - whole.length :]  # T
    record = _Record(runtime, len(seen), _looked_at(runtime, len(seen), everywhere))
    runtime.rewind()
    logits = np.where(allowed, runtime.prefill(seen, record)[:used], np.float32(-np.inf))
    looked_at = seen[record.first :]
    lens, surprises = _lens(runtime, record, looked_at, allowed, candidates, everywhere)
    if whole is runtime:
        top = np.argsort(-logprobs, kind="stable")[: lens.ids.shape[-1]]
        lens.ids[-1, -1], lens.probabilities[-1, -1] = top, np.exp(logprobs[top])  # as `generate` has them
    effects = _effects(runtime, seen, _logprob(logits, best), best, allowed)
    return Explanation(
        ids=looked_at,
        tail=tail.decode("utf-8", "ignore"),
        cut=len(ids) - len(seen),
        earlier=record.first,
        attention=record.weights,
        lens=lens,
        effects=effects[record.first :],
        surprises=surprises,
        logprobs=logprobs,
    )


def _looked_at(runtime: NumpyRuntime, tokens: int, everywhere: bool) -> int:
    """N: of so many tokens."""
    config = runtime.config
    products = (config.num_hidden_layers + 1) * config.vocab_size * config.hidden_size  # to ask after every layer
    return min(tokens, MOST_TOKENS, max(1, int(MOST_ASKED / products)) if everywhere else MOST_TOKENS)


class _Record:
    """Keeps what flows through the graph for the last `kept` of T tokens that are taken in at once."""

    def __init__(self, runtime: NumpyRuntime, tokens: int, kept: int) -> None:
        config = runtime.config
        L, H = config.num_hidden_layers, config.num_attention_heads
        self.first = tokens - kept
        self.stream = np.zeros((L + 1, kept, config.hidden_size), np.float32)
        self.weights = np.zeros((L, H, kept, kept), np.float32)
        self._depth = 0  # of the next states
        self._taken = 0  # tokens that went through all layers

    def residual(self, x: Array) -> None:
        start = self._taken - self.first
        self.stream[self._depth, max(0, start) : max(0, start + len(x))] = x[max(0, -start) :]
        self._depth += 1
        if self._depth == len(self.stream):
            self._depth, self._taken = 0, self._taken + len(x)

    def attention(self, weights: Array) -> None:
        start, end = self._taken - self.first, weights.shape[-1] - self.first  # of the columns kept
        if end > 0:
            rows = weights[:, max(0, -start) :, self.first :]
            self.weights[self._depth - 1, :, max(0, start) : end, :end] = rows


def _lens(
    runtime: NumpyRuntime, record: _Record, ids: Sequence[int], allowed: NDArray[np.bool_], most: int, everywhere: bool
) -> tuple[Candidates, NDArray[np.float64]]:
    """What the model would say after each layer, the last time only what is allowed, and what each token cost it."""
    depths, N, _ = record.stream.shape
    first = 0 if everywhere else N - 1
    used = len(allowed)
    K = min(most, used)
    found = np.empty((depths, N - first, K), np.int64)
    chances = np.empty((depths, N - first, K), np.float32)
    surprises = np.full(N, np.nan)
    for depth in range(depths):
        logits = runtime.logit_lens(record.stream[depth, first:])[:, :used]
        logits[-1, ~allowed] = -np.inf
        every = softmax(logits)
        top = np.argpartition(every, used - K, axis=-1)[:, used - K :]
        order = np.take_along_axis(every, top, -1).argsort(axis=-1, kind="stable")[:, ::-1]
        found[depth] = np.take_along_axis(top, order, -1)
        chances[depth] = np.take_along_axis(every, found[depth], -1)
        if depth == depths - 1 and everywhere:
            surprises[1:] = [-_logprob(row, token) / math.log(2) for row, token in zip(logits, ids[1:], strict=False)]
    return Candidates(found, chances), surprises


def _effects(
    runtime: NumpyRuntime, ids: Sequence[int], whole: float, answer: int, allowed: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """[T]: by how many bits `answer` is less likely without each token; the last first, since the cache before a gap
    is that of the whole prompt."""
    T = len(ids)
    effects = np.full(T, np.nan)
    most = min(MOST_TOKENS, math.isqrt(int(2 * MOST_WORK / runtime.config.parameters)))
    for gap in range(T - 1, max(-1, T - 1 - most), -1) if T > 1 else ():
        kept = gap if gap < T - 1 else gap - 1  # something must be taken in to be asked what follows
        runtime.rewind(kept)
        logits = runtime.prefill(ids[gap + 1 :] if gap < T - 1 else ids[kept:gap])
        logits = np.where(allowed, logits[: len(allowed)], np.float32(-np.inf))
        effects[gap] = (whole - _logprob(logits, answer)) / math.log(2)
    return effects


def _logprob(logits: Array, token: int) -> float:
    return float(log_softmax(logits)[token])
