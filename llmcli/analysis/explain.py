"""A model's activations on a prompt: attention, logit lens, logit attribution, ablation of tokens.

The prompt is processed as in `generate`, then once more with a recorder. numpy only, never torch.

L, H, C, V = layers, heads, hidden size, vocabulary; T = tokens in the context, N = analyzed tokens (the last
ones); K = candidates per layer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llmcli.analysis.attribution import Attribution, attribute_logit
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import OnNote, usage
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.ensemble_file import Ensemble
from llmcli.formats.metadata import Json
from llmcli.generation.next_words import NO_WORDS, NextWords, next_words
from llmcli.generation.token_healing import Prompt, last_tokens, read_prompt, shared_length
from llmcli.models import induction
from llmcli.models.ensemble import EnsembleRuntime
from llmcli.models.logits import entropy, log_softmax, masked, softmax
from llmcli.models.ngram_runtime import NgramRuntime, network_of, with_ngram_cache
from llmcli.models.numpy_runtime import ActivationRecorder, NumpyRuntime
from llmcli.models.open_runtime import open_runtime
from llmcli.models.runtime import Array, Bools, Doubles, Ints, Runtime
from llmcli.notebook import table

SHOWN_TOKENS = 10  # next tokens shown in a notebook
MAX_TOKENS = 256  # analyzed tokens: the memory for attention weights grows quadratically
MAX_ABLATION_WORK = 3e10  # parameters x tokens processed, over all ablations: a few seconds
MAX_COPIES = 5  # maximum number of copies listed
MIN_ADDED = 0.001  # minimum probability that the cache adds to a listed copy


class Candidates(NamedTuple):
    """The K most likely next tokens after 0, 1, ... L layers, most likely first."""

    ids: Ints  # [L + 1, K]
    probabilities: Array  # [L + 1, K]


class Copy(NamedTuple):
    """A token that the n-gram cache makes more likely, because it followed the same context earlier in the
    text."""

    token: int
    network_probability: float  # its probability under the network alone
    probability: float  # ... and with the cache
    matched: int  # length of the longest matching context before it, in tokens
    positions: tuple[int, ...]  # its positions after that context


class Place(NamedTuple):
    """The explained next token, and where it begins: after the prompt or inside it."""

    token: int
    context: list[int]  # the tokens before it that fit the model's context
    truncated: int  # prompt tokens that do not fit
    tail_bytes: bytes  # end of the prompt that belongs to the token, not to `context`; usually b""
    allowed: Bools  # [V]: tokens that are consistent with the tail


class Prediction(NamedTuple):
    """A model's prediction of the next token, and of the text that it adds to the prompt."""

    place: Place
    logprobs: Doubles  # [V], natural log probabilities; -inf for tokens that are never generated
    # [N], of the texts of the V tokens, then of `other_texts`, which only the end of a longer token spells
    text_logprobs: Doubles
    other_texts: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """The activations of a model for a prompt, and its prediction of the next token."""

    ids: list[int]  # [N], the analyzed tokens
    place: Place  # the explained next token: the most likely or the requested token
    preceding: int  # T - N, tokens in the context before the analyzed ones
    attention: Array  # [L, H, N, N]; each row (query) sums to 1 minus its weight on preceding tokens
    logit_lens: Candidates  # predictions of the next token after each layer
    # [N], bits that `token` loses without each context token; NaN: skipped, like the last
    ablation_effects: Doubles
    prediction: Prediction  # as in `generate`; its own place is that of the most likely token
    attribution: Attribution  # contributions to the network's logit for `token`
    tokenizer: Tokenizer
    copies: tuple[Copy, ...] | None = None  # tokens made more likely by the n-gram cache; None: no cache
    words: NextWords = NO_WORDS  # the next words, if requested

    @property
    def token(self) -> int:
        return self.place.token

    @property
    def logprobs(self) -> Doubles:
        """Natural log probabilities [V] of the next token; -inf for tokens that are never generated:
        incomplete UTF-8, and bytes that are not in the training text."""
        return self.prediction.logprobs

    @property
    def tail(self) -> str:
        return self.place.tail_bytes.decode("utf-8", "ignore")

    @property
    def truncated(self) -> int:
        return self.place.truncated

    @property
    def entropy(self) -> float:
        """Entropy of the text that the next token adds, in bits."""
        probabilities = np.exp(self.prediction.text_logprobs)
        return entropy(probabilities / probabilities.sum())

    def most_likely(self, count: int) -> list[int]:
        """Return at most `count` next tokens, the most likely first."""
        ranked = np.argsort(-self.logprobs, kind="stable")[:count].tolist()
        return [token for token in ranked if np.isfinite(self.logprobs[token])]

    def __repr__(self) -> str:
        likely = ", ".join(f"{text!r} {probability}" for text, probability in self._likely(3))
        return f"<Explanation of {len(self.ids)} tokens; next: {likely}>"

    def _repr_html_(self) -> str:
        effects = [
            (self.tokenizer.label(token), "-" if np.isnan(bits) else f"{bits:.2f}")
            for token, bits in zip(self.ids, self.ablation_effects, strict=True)
        ]
        lost = f"bits that {self.tokenizer.label(self.token)!r} loses without it"
        return table(["next token", "probability"], self._likely(SHOWN_TOKENS)) + table(
            ["token", lost], effects
        )

    def _likely(self, count: int) -> list[tuple[str, str]]:
        return [(self.tokenizer.label(i), f"{np.exp(self.logprobs[i]):.3f}") for i in self.most_likely(count)]


def predict_next(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    token: int | None = None,
    held: Sequence[int] = (),
) -> Prediction:
    """Predict the next token as `generate` does, summed over the tokenizations of the prompt's end. The place
    belongs to the most likely text, or is the most likely place of `token`. The KV cache holds the tokens
    `held`; afterwards it holds the tokens before the place that fit. Raises
    LLMError for an empty prompt and for NaN logits."""
    if len(prompt.ids) == prompt.added:
        raise usage("the prompt is empty; give a text to continue")
    vocabulary = tokenizer.vocabulary
    cached = shared_length(held, prompt.split(runtime.context, tokenizer.bos_ids)[0][:-1])
    first = read_prompt(runtime, tokenizer, prompt, cached=cached)
    continuations = (
        first.continuations_of(int(first.logits.argmax())) if token is None else first.continuations_to(token)
    )
    token = continuations[0].tokens[-1]
    token_bytes = vocabulary.token_bytes[token]
    tail = token_bytes[: len(token_bytes) - len(continuations[0].new_bytes)]
    logprobs = by_text = np.where(np.isneginf(first.logits), -np.inf, log_softmax(first.model_logits))
    others = tuple(first.token_of(i)[1] for i in range(len(vocabulary), len(by_text)))
    if first.tokens is not None:  # entry -> token; of several entries with one token, the most likely counts
        logprobs = np.full(len(vocabulary), -np.inf)
        np.maximum.at(logprobs, first.tokens, by_text)
    allowed = np.ones(len(vocabulary), bool)
    if tail:
        allowed[:] = False
        allowed[[*vocabulary.prefixes_of(tail), *vocabulary.extensions_of(tail).tolist()]] = True
    ids = first.process(continuations[0])
    context = last_tokens(ids, runtime.length, tokenizer.bos_ids)
    place = Place(token, context, len(ids) - len(context), tail, allowed)
    return Prediction(place, logprobs, by_text, others)


def explain(
    runtime: NumpyRuntime,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    candidates: int = 5,
    token: int | None = None,
    place: Place | None = None,
    predictor: Runtime | None = None,
    ablates: bool = True,
    evaluations: int | None = 0,
) -> Explanation:
    """Run a prompt through a model and record its activations.

    - Logit lens (nostalgebraist 2020): the final norm and the output layer, applied to the residual stream
      of the last token after each layer.
    - Logit attribution: see `Attribution`.
    - Ablation: log2 p(token | all tokens) - log2 p(token | all but one) for `token`, by default the most
      likely next token. The tokens after the removed one move forward by one position.

    Only the last tokens are analyzed, limited by MAX_TOKENS and MAX_ABLATION_WORK; without `ablates`, no
    token is removed. `place` comes from another explanation of the prompt. `predictor` makes the prediction
    if `runtime` is only a part of it: a model of an ensemble, or a network with an n-gram cache. `next_words`
    gets `evaluations` (0: do not search). Raises LLMError like `predict_next`."""
    predictor = predictor or runtime
    prediction = predict_next(predictor, tokenizer, prompt, token=token)
    place = place or prediction.place
    context = place.context
    held = prediction.place.context if network_of(predictor) is runtime else []
    copies = None
    if isinstance(predictor, NgramRuntime) and predictor.parameters == runtime.parameters:  # not an ensemble
        alone = predict_next(runtime, tokenizer, prompt, held=held)
        held = alone.place.context
        copies = find_copies(prompt, context, predictor.cache.orders, alone.logprobs, prediction.logprobs)
    recorder, logits = _recorded(runtime, context, held)
    residuals = recorder.residuals[:, -1]
    # the last prediction is exactly the one that `generate` makes, unless the token begins inside the prompt:
    # all rows are then about one tokenization
    last = prediction.logprobs if predictor is runtime and not place.tail_bytes else None
    lens = _logit_lens(runtime, residuals, place.allowed, candidates, last)
    effects = _ablation_effects(runtime, context, logits, place, limit=MAX_TOKENS if ablates else 0)
    words = NO_WORDS
    if evaluations != 0:
        words = next_words(predictor, tokenizer, prompt, evaluations=evaluations)
    return Explanation(
        ids=context[recorder.first :],
        place=place,
        preceding=recorder.first,
        attention=recorder.weights,
        attribution=attribute_logit(runtime, residuals, recorder.head_outputs, place.token),
        prediction=prediction,
        tokenizer=tokenizer,
        logit_lens=lens,
        copies=copies,
        words=words,
        ablation_effects=effects[recorder.first :],
    )


def _recorded(runtime: NumpyRuntime, context: list[int], held: list[int]) -> tuple[ActivationRecorder, Array]:
    """Record the activations of the last MAX_TOKENS tokens of a context; return them, and the logits [V]
    after it. The KV cache holds the tokens `held`, so that earlier tokens need not be processed again."""
    recorder = ActivationRecorder(runtime.config, len(context), min(len(context), MAX_TOKENS))
    recorder.processed = shared_length(held, context[: recorder.first])
    runtime.rewind(recorder.processed)
    return recorder, runtime.prefill(context[recorder.processed :], recorder)


def find_copies(
    prompt: Prompt, context: Sequence[int], orders: int, network: Doubles, mixed: Doubles
) -> tuple[Copy, ...]:
    """Find the tokens that an n-gram cache of `orders` makes more likely after `context`, the end of a
    prompt; the largest increase comes first. `network` and `mixed` [V] are the log probabilities of the next
    token without and with the cache, summed over the tokenizations of the prompt's end."""
    T = len(context)
    backward = context[::-1]
    matches: dict[int, tuple[int, list[int]]] = {}  # token -> (length of the context, positions)
    for position in range(1, T - prompt.written):
        matched = shared_length(backward[T - position : T - position + orders], backward)
        longest, positions = matches.get(context[position], (1, []))
        if matched > longest:
            positions = []
        if matched >= longest:
            matches[context[position]] = matched, [*positions, position]
    copies = [
        Copy(token, math.exp(network[token]), math.exp(mixed[token]), matched, tuple(positions))
        for token, (matched, positions) in matches.items()
    ]
    ranked = sorted(copies, key=lambda copy: copy.network_probability - copy.probability)
    return tuple(
        copy for copy in ranked[:MAX_COPIES] if copy.probability - copy.network_probability >= MIN_ADDED
    )


def mean_attention(weights: Array, layer: int | None, head: int | None) -> Array:
    """Average attention [L, H, ...] over all layers and heads, or select a layer or one of its heads
    (numbered from 1)."""
    layers = slice(None) if layer is None else slice(layer - 1, layer)
    heads = slice(None) if head is None else slice(head - 1, head)
    return weights[layers, heads].mean((0, 1))


def _logit_lens(
    runtime: NumpyRuntime, residuals: Array, allowed: Bools, candidates: int, last: Doubles | None
) -> Candidates:
    """Return the most likely `allowed` tokens given the residual stream [L + 1, C] after each layer. `last`
    [V] replaces the log probabilities after the last layer."""
    logits = runtime.logit_lens(residuals)[:, : len(allowed)]
    logits[:, ~allowed] = -np.inf
    probabilities = softmax(logits)
    if last is not None:
        probabilities[-1] = np.exp(last)
    ids = np.argsort(-probabilities, axis=-1, kind="stable")[:, :candidates]
    return Candidates(ids, np.take_along_axis(probabilities, ids, -1))


def _ablation_effects(
    runtime: NumpyRuntime,
    context: Sequence[int],
    logits: Array,
    place: Place,
    limit: int,
) -> Doubles:
    """Return the bits that the predicted token loses without each of the last `limit` tokens of the context
    [T], except the last, from which it is predicted; NaN where skipped. `logits` [V] are those after the
    whole context. Tokens are removed from last to first, so that the cached prefix stays valid."""
    T = len(context)
    effects = np.full(T, np.nan)
    original = _masked_logprob(logits, place)
    count = min(T, limit, math.isqrt(int(2 * MAX_ABLATION_WORK / runtime.config.parameters)))
    for removed in range(T - 2, T - 1 - count, -1):
        runtime.rewind(removed)
        logits = runtime.prefill(context[removed + 1 :])
        effects[removed] = (original - _masked_logprob(logits, place)) / math.log(2)
    return effects


def _masked_logprob(logits: Array, place: Place) -> float:
    """Return the natural log probability of the explained token among the allowed ones."""
    return float(log_softmax(masked(logits[: len(place.allowed)], place.allowed))[place.token])


class ExplainedModel(NamedTuple):
    """The model whose activations are explained, and the runtime that predicts."""

    checkpoint: Checkpoint
    network: NumpyRuntime
    predictor: Runtime  # the network, possibly with its n-gram cache, or the ensemble that it belongs to
    member: Json | None = None  # name and weight of the model in the ensemble

    @property
    def facts(self) -> Json:
        """The member of an ensemble and the initialized heads, for JSON."""
        facts = {"expert": self.member, "initialized_heads": initialized_heads(self.checkpoint)}
        return {name: value for name, value in facts.items() if value}


def initialized_heads(model: Checkpoint) -> dict[str, str]:
    """Return the heads that were not initialized at random: their name ("2.1") and initialization. Training
    may have changed them."""
    train = model.record.train
    return induction.initialized_heads(model.config) if train is not None and train.induction else {}


def choose_explained_model(
    source: Checkpoint | Ensemble,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    on_note: OnNote,
    runtime: Runtime | None = None,
    open_network: Callable[[Checkpoint], NumpyRuntime] = NumpyRuntime,
) -> ExplainedModel:
    """Choose the model to explain: in an ensemble, the one with the largest weight after the prompt.
    `runtime` is the source's, if it is already open; otherwise `open_network` opens the chosen model."""
    if not isinstance(source, Ensemble):
        used = runtime and network_of(runtime)
        network = used if isinstance(used, NumpyRuntime) else open_network(source)
        if runtime is None:
            cache = source.record.ngram_cache
            return ExplainedModel(source, network, with_ngram_cache(network, cache))
        return ExplainedModel(source, network, runtime if isinstance(runtime, NgramRuntime) else network)
    if runtime is None or not isinstance(network_of(runtime), EnsembleRuntime):
        runtime = open_runtime(source, on_note=on_note)
    predict_next(runtime, tokenizer, prompt)
    weights = runtime.expert_weights()[0].tolist()
    top = weights.index(max(weights))
    name = source.names[top]
    checkpoint = source.experts[top]
    on_note(
        f"ensemble of {len(weights)} models: showing the activations of {name}, which has the largest "
        f"weight after this prompt ({weights[top]:.3f}); the final probabilities are the ensemble's"
    )
    member: Json = {"name": name, "weight": round(weights[top], 6)}
    return ExplainedModel(checkpoint, open_network(checkpoint), runtime, member)
