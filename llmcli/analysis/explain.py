"""Prompt -> what happens inside a model while it reads it: attention, logit lens, ablation, surprisal.

The prompt is read as `generate` reads it, so the probabilities of the next token are identical. Then its tokens go
through the same graph once more, with a recorder that keeps the activations. numpy only, never torch.

L, H, C, V = layers, heads, hidden size, vocabulary; T = tokens in the context; N = the last of them, which are
analyzed; K = candidates per position.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmcli.analysis.copies import Copy, find_copies
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.generation.token_healing import Prompt, read_prompt
from llmcli.models.logits import entropy, log_softmax, softmax
from llmcli.models.ngram_runtime import NgramRuntime
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import Array, Runtime

MAX_TOKENS = 256  # analyzed: the memory for attention weights grows quadratically
MAX_ABLATION_WORK = 3e10  # parameters x tokens processed, over all ablations: a few seconds
MAX_LENS_WORK = 1e11  # multiplications of the logit lens at every position: some seconds


@dataclass(frozen=True)
class Candidates:
    """The K most likely next tokens at some positions, the most likely first."""

    ids: NDArray[np.int64]  # [..., K]
    probabilities: Array  # [..., K]


@dataclass(frozen=True)
class Explanation:
    """What happened inside a model while it read a prompt, and its prediction of the next token."""

    ids: list[int]  # [N], the analyzed tokens
    tail: str  # end of the prompt that is part of the most likely next token instead of `ids`; mostly ""
    truncated: int  # tokens of the prompt that do not fit the context
    preceding: int  # T - N, tokens in the context before the analyzed ones
    attention: Array  # [L, H, N, N]: one row per query; a row sums to 1 minus its weight on preceding tokens
    logit_lens: Candidates  # [L + 1, N or 1, K]: predictions after 0, 1, ... L layers, at each position or the last
    token: int  # the next token that the ablation is about: the most likely one, unless another was asked for
    ablation_effects: NDArray[np.float64]  # [N], bits that `token` loses without each; NaN: skipped
    surprisals: NDArray[np.float64]  # [N], bits of each token given the tokens before it; NaN: not computed
    logprobs: NDArray[np.float64]  # [V], natural log probabilities of the next token, as `generate` has them; -inf for
    # tokens that it never writes: incomplete UTF-8, and bytes that are not in the training text
    copies: tuple[Copy, ...] | None = None  # what an n-gram cache adds; None: there is none

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """[V], of the next token."""
        return np.exp(self.logprobs)

    @property
    def entropy(self) -> float:
        """Of the next token, in bits."""
        return entropy(self.probabilities / self.probabilities.sum())

    def most_likely(self, count: int) -> list[int]:
        """The `count` most likely next tokens, or as many as are possible."""
        ranked = np.argsort(-self.logprobs, kind="stable")[:count].tolist()
        return [token for token in ranked if np.isfinite(self.logprobs[token])]


@dataclass(frozen=True)
class NextToken:
    """A prompt as a model read it, and its prediction of the next token."""

    ids: list[int]  # of the prompt without its tail
    tail: bytes  # end of the prompt that is part of `token`, which starts inside the prompt; mostly b""
    allowed: NDArray[np.bool_]  # [V]: tokens that agree with the tail
    logprobs: NDArray[np.float64]  # [V], natural log probabilities; -inf for tokens that `generate` never writes
    token: int  # the most likely one


def predict_next(runtime: Runtime, tokenizer: Tokenizer, prompt: str | Prompt, *, literal: bool) -> NextToken:
    """The next token as `generate` predicts it: summed over the ways to split the prompt's end into tokens, the ids
    being the most likely of them. Afterwards the cache holds these ids, or the last of them that fit the context.

    Raises LLMError for an empty prompt and for NaN or infinite logits.
    """
    vocabulary = tokenizer.vocabulary
    first = read_prompt(runtime, tokenizer, Prompt.of(prompt, tokenizer, literal=literal))
    continuation = first.continuations_of(int(first.logits.argmax()))[0]
    token = continuation.tokens[-1]
    token_bytes = vocabulary.token_bytes[token]
    tail = token_bytes[: len(token_bytes) - len(continuation.new_bytes)]
    own = log_softmax(first.logits if first.model_logits is None else first.model_logits)
    logprobs = np.where(np.isneginf(first.logits), -np.inf, own)
    if first.tokens is not None:  # entry -> token; several entries may have one token
        entries, logprobs = logprobs, np.full(len(vocabulary), -np.inf)
        np.logaddexp.at(logprobs, first.tokens, entries)
    allowed = np.ones(len(vocabulary), bool)
    if tail:
        allowed[:] = False
        allowed[[*vocabulary.prefixes_of(tail), *vocabulary.extensions_of(tail).tolist()]] = True
    return NextToken(first.process(continuation), tail, allowed, logprobs, token)


def explain(
    runtime: NumpyRuntime,
    tokenizer: Tokenizer,
    prompt: str | Prompt,
    *,
    literal: bool,
    candidates: int = 5,
    every_position: bool = False,
    token: int | None = None,
    predictor: Runtime | None = None,
    check: Callable[[], None] = lambda: None,
) -> Explanation:
    """Run a prompt through a model and record what happens.

    - Next token: the probabilities that `generate` samples from, see `predict_next`.
    - Attention: the softmax of each head's scores.
    - Logit lens (nostalgebraist 2020): the final norm and the output layer, applied to the residual stream after each
      layer. With `every_position` at each token, which also gives the surprisals: -log2 p(token | tokens before).
    - Ablation: log2 p(token | all tokens) - log2 p(same token | all but one), of the most likely token or of `token`.
      The tokens after the missing one move forward by one position.

    Of a prompt longer than the context, the model sees the end that `generate` keeps. Limits: the last MAX_TOKENS are
    analyzed, fewer by MAX_LENS_WORK for a large model with `every_position`; ablation covers the last tokens that
    MAX_ABLATION_WORK allows. Given a `predictor`, the next token is its prediction, and `runtime` the part of it that
    is analyzed: one model of an ensemble, or the network beside its n-gram cache. `check` is called before each
    ablation; it may raise an exception to end the explanation. Raises LLMError for an empty prompt and for NaN or
    infinite logits.
    """
    predictor = predictor or runtime
    prediction = predict_next(predictor, tokenizer, prompt, literal=literal)
    if token is not None:
        prediction = replace(prediction, token=token)
    context = prediction.ids[len(prediction.ids) - predictor.length :]
    recorder = _ActivationRecorder(runtime, len(context), _analyzed(runtime, len(context), every_position))
    runtime.rewind()
    logits = runtime.prefill(context, recorder)
    ids, residuals = context[recorder.first :], recorder.residuals
    positions = residuals if every_position else residuals[:, -1:]
    lens = _logit_lens(runtime, positions, prediction.allowed, candidates)
    surprisals = np.full(len(ids), np.nan)
    if every_position:
        surprisals = _surprisals(runtime.logit_lens(residuals[-1])[:, : len(prediction.allowed)], ids)
    if predictor is runtime:  # the last prediction exactly as `generate` has it
        top = np.argsort(-prediction.logprobs, kind="stable")[: lens.ids.shape[-1]]
        lens.ids[-1, -1], lens.probabilities[-1, -1] = top, np.exp(prediction.logprobs[top])
    return Explanation(
        ids=ids,
        tail=prediction.tail.decode("utf-8", "ignore"),
        truncated=len(prediction.ids) - len(context),
        preceding=recorder.first,
        attention=recorder.weights,
        logit_lens=lens,
        surprisals=surprisals,
        token=prediction.token,
        copies=_copies(predictor, runtime, context, logits, prediction),
        ablation_effects=_ablation_effects(runtime, context, logits, prediction, check)[recorder.first :],
        logprobs=prediction.logprobs,
    )


def _copies(
    predictor: Runtime, runtime: NumpyRuntime, context: Sequence[int], logits: Array, prediction: NextToken
) -> tuple[Copy, ...] | None:
    """What the n-gram cache adds to the prediction; `logits` [V] are those of `runtime`. None without a cache, and for
    an ensemble, of which `runtime` is only a part."""
    if not isinstance(predictor, NgramRuntime) or predictor.parameters != runtime.parameters:
        return None
    network = log_softmax(logits[: len(prediction.logprobs)])
    return find_copies(context, predictor.cache.orders, network, prediction.logprobs)


def attention_weights(runtime: NumpyRuntime, ids: Sequence[int]) -> Array:
    """[L, H, N, N]: the attention weights of each token, a row, to itself and those before it. The KV cache then holds
    these ids."""
    recorder = _ActivationRecorder(runtime, len(ids), len(ids))
    runtime.rewind()
    runtime.prefill(ids, recorder)
    return recorder.weights


def _analyzed(runtime: NumpyRuntime, tokens: int, every_position: bool) -> int:
    """N, of `tokens` in the context."""
    config = runtime.config
    work_per_token = (config.num_hidden_layers + 1) * config.vocab_size * config.hidden_size
    return min(tokens, MAX_TOKENS, max(1, int(MAX_LENS_WORK / work_per_token)) if every_position else MAX_TOKENS)


class _ActivationRecorder:
    """Keeps the activations of the last N tokens of a context of T tokens, which is processed in chunks."""

    def __init__(self, runtime: NumpyRuntime, tokens: int, kept: int) -> None:
        config = runtime.config
        L, H = config.num_hidden_layers, config.num_attention_heads
        self.first = tokens - kept  # position of the first token that is kept
        self.residuals = np.zeros((L + 1, kept, config.hidden_size), np.float32)  # after 0, 1, ... L layers
        self.weights = np.zeros((L, H, kept, kept), np.float32)
        self._depth = 0  # layers that the current chunk has passed
        self._processed = 0  # tokens of the previous chunks

    def residual(self, x: Array) -> None:
        """The residual stream [t, C] of a chunk: before the first layer, then after each."""
        start = self._processed - self.first
        self.residuals[self._depth, max(0, start) : max(0, start + len(x))] = x[max(0, -start) :]
        self._depth += 1
        if self._depth == len(self.residuals):
            self._depth, self._processed = 0, self._processed + len(x)

    def attention(self, weights: Array) -> None:
        """The attention weights [H, t, S] of a chunk in the next layer."""
        start, end = self._processed - self.first, weights.shape[-1] - self.first  # columns among those kept
        if end > 0:
            rows = weights[:, max(0, -start) :, self.first :]
            self.weights[self._depth - 1, :, max(0, start) : end, :end] = rows


def _logit_lens(runtime: NumpyRuntime, residuals: Array, allowed: NDArray[np.bool_], candidates: int) -> Candidates:
    """The K most likely next tokens by the residual stream [L + 1, n, C] after each layer; at the last position only
    those `allowed`."""
    depths, n, _ = residuals.shape
    V = len(allowed)
    K = min(candidates, V)
    ids = np.empty((depths, n, K), np.int64)
    top_probabilities = np.empty((depths, n, K), np.float32)
    for depth in range(depths):
        logits = runtime.logit_lens(residuals[depth])[:, :V]
        logits[-1, ~allowed] = -np.inf
        probabilities = softmax(logits)
        top = np.argpartition(probabilities, V - K, axis=-1)[:, V - K :]
        order = np.take_along_axis(probabilities, top, -1).argsort(axis=-1, kind="stable")[:, ::-1]
        ids[depth] = np.take_along_axis(top, order, -1)
        top_probabilities[depth] = np.take_along_axis(probabilities, ids[depth], -1)
    return Candidates(ids, top_probabilities)


def _surprisals(logits: Array, ids: Sequence[int]) -> NDArray[np.float64]:
    """[N], -log2 p(token | tokens before) by the logits [N, V] after each token; NaN for the first token, whose
    prediction was not recorded."""
    surprisals = np.full(len(ids), np.nan)
    for position, token in enumerate(ids[1:], 1):
        surprisals[position] = -log_softmax(logits[position - 1])[token] / math.log(2)
    return surprisals


def _ablation_effects(
    runtime: NumpyRuntime, context: Sequence[int], logits: Array, prediction: NextToken, check: Callable[[], None]
) -> NDArray[np.float64]:
    """[T]: by how many bits the predicted token is less likely without each token of the context; NaN where skipped.

    `logits` [V] are those after the whole context. Goes from the last token to the first, so that the cached prefix is
    valid for all remaining gaps.
    """
    T = len(context)
    effects = np.full(T, np.nan)
    if T == 1:
        return effects  # nothing would be left to predict from
    original = _masked_logprob(logits, prediction)
    count = min(T, MAX_TOKENS, math.isqrt(int(2 * MAX_ABLATION_WORK / runtime.config.parameters)))
    for gap in range(T - 1, T - 1 - count, -1):
        check()
        kept = gap if gap < T - 1 else gap - 1  # one token at least has to be processed for a prediction
        runtime.rewind(kept)
        logits = runtime.prefill(context[gap + 1 :] if gap < T - 1 else context[kept:gap])
        effects[gap] = (original - _masked_logprob(logits, prediction)) / math.log(2)
    return effects


def _masked_logprob(logits: Array, prediction: NextToken) -> float:
    """Natural log probability of the predicted token among those allowed."""
    allowed = prediction.allowed
    return float(log_softmax(np.where(allowed, logits[: len(allowed)], np.float32(-np.inf)))[prediction.token])
