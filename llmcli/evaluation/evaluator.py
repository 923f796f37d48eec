"""A model's bits per byte on a text, which are comparable between models with different tokenizers.

Windows of the model's context length slide over the text with a stride of half a window. Each token is
counted in one window: one where at least half a window (or all of the text so far) precedes it.
Losses are computed by any runtime or by torch. A model's n-gram cache (models/ngram_cache.py) sees all of the
preceding text.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmcli.config import EVALUATION_CONTEXT, SamplingConfig
from llmcli.data.tokens.batches import PrefixedTokens
from llmcli.data.tokens.tokens import count_bytes, tokenize
from llmcli.errors import LLMError, usage
from llmcli.evaluation.figures import Figures
from llmcli.formats.training_record import TrainingRecord
from llmcli.models.logits import check_finite, log_softmax
from llmcli.models.ngram_cache import NgramText
from llmcli.models.ngram_runtime import NgramRuntime, network_of
from llmcli.models.runtime import Bools, Ints, Runtime, Scores, WeightedScores, padded_batches
from llmcli.notebook import table

if TYPE_CHECKING:
    from llmcli.data.tokenizers.tokenizer import Tokenizer

# ids [B, T + 1] of windows -> (loss in nats, whether the token was the most likely) for ids[:, 1:], both
# [B, T]; an ensemble also returns the weights of its models [B, T, n]
ScoreWindows = Callable[[Ints], Scores | WeightedScores]
OnProgress = Callable[[float], None]  # receives the completed share
# receives tokens and their losses in nats
OnTokens = Callable[[NDArray[np.integer], NDArray[np.floating]], None]
BATCH_TOKENS = 4096
KL_TOKENS = 256  # sampled to estimate a divergence


@dataclass(frozen=True)
class Score:
    """A model's score on a text."""

    nats: float  # total cross-entropy of the tokens
    tokens: int
    bytes: int  # size of the text of these tokens
    correct: int = 0  # tokens that the network ranked first
    network_nats: float | None = None  # without the n-gram cache; None if there is no cache

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            self.correct + other.correct,
            None if self.network_nats is other.network_nats is None else self._network + other._network,
        )

    @property
    def _network(self) -> float:
        return self.nats if self.network_nats is None else self.network_nats

    @property
    def bits_per_byte(self) -> float:
        """`adapting_bits_per_byte` if the model has an n-gram cache, else `network_bits_per_byte`."""
        return _bits_per_byte(self.nats, self.bytes)

    @property
    def network_bits_per_byte(self) -> float:
        return _bits_per_byte(self._network, self.bytes)

    @property
    def adapting_bits_per_byte(self) -> float | None:
        """Bits per byte with the n-gram cache, which adapts to the text; None without a cache."""
        return None if self.network_nats is None else self.bits_per_byte

    @property
    def figures(self) -> Figures:
        return Figures(self.network_bits_per_byte, self.adapting_bits_per_byte)

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return math.exp(min(self.nats / self.tokens, 700.0)) if self.tokens else math.nan

    @property
    def accuracy(self) -> float:
        """Share of tokens that the network ranked first (top-1 accuracy)."""
        return self.correct / self.tokens if self.tokens else math.nan

    def _repr_html_(self) -> str:
        adapting = self.adapting_bits_per_byte
        rows = [
            ("bits per byte, network", f"{self.network_bits_per_byte:.3f}"),
            ("bits per byte, adapting", "-" if adapting is None else f"{adapting:.3f}"),
            ("perplexity per token", f"{self.perplexity:.2f}"),
            ("accuracy", f"{self.accuracy:.1%}"),
            ("tokens", f"{self.tokens:,}"),
        ]
        return table(["score", f"{self.bytes:,} bytes"], rows)


def _bits_per_byte(nats: float, size: int) -> float:
    return nats / math.log(2) / size if size else math.nan


def total_score(batches: Iterable[tuple[int, Score]], count: int, on_progress: OnProgress) -> Score:
    """Add up the scores of batches with `count` windows in total. Raises LLMError at the first loss that is
    NaN or infinite."""
    total = Score(0.0, 0, 0)
    done = 0
    for windows, score in batches:
        check_finite(score.nats)
        total += score
        done += windows
        on_progress(done / count)
    return total


def evaluate_windows(
    ids: NDArray[np.integer] | PrefixedTokens,
    byte_lengths: NDArray[np.integer],
    windows: Ints,
    score: ScoreWindows,
    *,
    batch_tokens: int = BATCH_TOKENS,
    cached: NgramText | None = None,
    on_tokens: OnTokens = lambda ids, nats: None,
    bos_ids: Sequence[int] = (),
    loss_mask: Bools | None = None,
) -> Iterator[tuple[int, Score]]:
    """Score windows in batches of at most `batch_tokens` tokens, or of one window. Yields (number of windows,
    their score); the caller can stop after any batch.

    Each token of a text `ids` is scored given the tokens before it; ids[0] precedes the text (end of text).
    `byte_lengths[i]` is the length of token i in bytes. `cached` holds the same ids with an n-gram cache,
    whose predictions are mixed with the network's. `on_tokens` is called in the order of the windows.
    `bos_ids` replace the first token of every window; see `last_tokens` in generation/token_healing.py. Only
    tokens in the `loss_mask` count."""
    for batch in padded_batches(windows[:, 2] - windows[:, 0] - 1, range(len(windows)), batch_tokens):
        spans = windows[batch].tolist()
        inputs = np.zeros((len(batch), max(end - start for start, _, end in spans)), np.int64)
        for row, (start, _, end) in zip(inputs, spans, strict=True):
            row[: end - start] = ids[start:end]
        inputs[:, : len(bos_ids)] = bos_ids
        losses, correct, *of_models = score(inputs)
        total = Score(0.0, 0, 0)
        for row, (start, counted_from, end) in enumerate(spans):
            first = max(counted_from, start + 1)  # nothing predicts the first token of a window
            counted = slice(first - start - 1, end - start - 1)
            mask = slice(None) if loss_mask is None else loss_mask[first:end]
            targets = ids[first:end][mask]
            network = losses[row, counted][mask]
            hits = int(correct[row, counted][mask].sum())
            shares = [weights[row, counted] for weights in of_models]
            nats = cached.nats(counted_from, network, *shares) if cached else network
            on_tokens(targets, nats)
            size = int(byte_lengths[targets].sum())
            network_nats = float(network.sum(dtype=np.float64)) if cached else None
            total += Score(float(nats.sum(dtype=np.float64)), len(targets), size, hits, network_nats)
        yield len(batch), total


def spread_indices(count: int) -> NDArray[np.intp]:
    """Order the numbers 0 to `count` - 1, in steps of the golden ratio, so that any prefix is evenly spread.

    >>> spread_indices(5).tolist()
    [0, 3, 1, 4, 2]
    """
    golden = (math.sqrt(5) - 1) / 2
    order = np.argsort(np.arange(count) * golden % 1.0, kind="stable")
    return np.argsort(order, kind="stable")  # the inverse permutation is spread as well


def evaluation_context(model_context: int, requested: int | None = None, trained: int = 0) -> int:
    """Return the context length for an evaluation: the requested one, or else at most EVALUATION_CONTEXT
    (because the time for attention grows quadratically) or the training context, whichever is longer. Raises
    LLMError for a request beyond the model's context.

    >>> evaluation_context(1024), evaluation_context(131_072), evaluation_context(131_072, 4096)
    (1024, 2048, 4096)
    >>> evaluation_context(131_072, trained=512), evaluation_context(131_072, trained=4096)
    (2048, 4096)
    """
    if requested is None:
        return min(model_context, max(EVALUATION_CONTEXT, trained))
    if requested > model_context:
        raise usage(
            f"`context` {requested} is longer than the model's context of {model_context:,} tokens; give "
            f"`context` {model_context} or less"
        )
    return requested


def trained_context(records: Iterable[TrainingRecord]) -> int:
    """Return the shortest training context in these records; 0 if a record has none."""
    return min((record.train.context if record.train else 0 for record in records), default=0)


def stride(context: int) -> int:
    """Return the stride of the windows in tokens, which is also the minimum context of each counted token."""
    return max(1, context // 2)


def text_windows(first_tokens: Sequence[int], context: int, share: float = 1.0) -> Ints:
    """Return the windows of documents as rows (start, first position counted, end), or an evenly spread share
    of them. `first_tokens` are the positions of the tokens that precede the documents, and the end of the
    last document. Each token after one of these positions is counted in exactly one window, and no window
    spans two documents.

    >>> text_windows([0, 8], 4).tolist()
    [[0, 1, 5], [2, 5, 7], [3, 7, 8]]
    """
    edges = np.array(first_tokens)
    lengths = np.diff(edges)
    # the first window of a document counts all of its tokens
    counts = -(-np.maximum(0, lengths - 1 - context) // stride(context)) + (lengths > 1)
    ends = np.cumsum(counts)  # number of windows up to the end of each document
    total = int(counts.sum())
    chosen = np.linspace(0, total - 1, min(total, max(1, round(share * total)))).round().astype(np.int64)
    document = np.searchsorted(ends, chosen, side="right")
    number = chosen - (ends - counts)[document]  # within the document
    counted = edges[document] + np.where(number, 1 + context + (number - 1) * stride(context), 1)
    end = np.minimum(edges[document + 1], counted + np.where(number, stride(context), context))
    return np.stack([np.maximum(edges[document], end - context - 1), counted, end], axis=1)


# ---- texts


def measure(
    name: str,
    text: Iterable[str],
    model: Runtime,
    tokenizer: "Tokenizer",
    on_progress: OnProgress = lambda share: None,
    on_tokens: OnTokens = lambda ids, nats: None,
    *,
    context: int | None = None,
) -> Score:
    """Score every token of a text, given in pieces, in windows of at most `context` tokens. Raises LLMError
    if the tokenizer changes the text, because the bits per byte would be wrong, and for NaN or infinite
    logits."""
    text_bytes = 0

    def counted() -> Iterator[str]:
        nonlocal text_bytes
        for part in text:
            text_bytes += len(part.encode("utf-8"))
            yield part

    ids = tokenize(iter([counted()]), tokenizer)
    token_bytes = count_bytes(ids, tokenizer.byte_lengths)
    # the space that the tokenizer prepends to the text
    added = 1 if tokenizer.adds_prefix_space and text_bytes else 0
    if token_bytes != text_bytes + added:
        raise LLMError(
            f"the tokenizer changes {name}: {text_bytes:,} bytes of text become {token_bytes:,} bytes of "
            f"tokens, so bits per byte would be wrong; normalize the text to Unicode NFC first"
        )
    ids_with_bos = PrefixedTokens(tokenizer.bos_id, ids)
    cached = NgramText(ids_with_bos, model.weights) if isinstance(model, NgramRuntime) else None
    context = context or evaluation_context(model.context)
    windows = text_windows([0, len(ids_with_bos)], context)
    batches = evaluate_windows(
        ids_with_bos,
        tokenizer.byte_lengths,
        windows,
        network_of(model).score_with_weights,
        cached=cached,
        on_tokens=on_tokens,
        bos_ids=tokenizer.bos_ids,
    )
    return replace(total_score(batches, len(windows), on_progress), bytes=text_bytes)


# ---- surprising passages, and the divergence of two versions of a model


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of a text."""

    start: int  # index of the first token
    end: int  # one past the last
    bits: float  # total surprisal, -log2 p


def most_surprising(
    bits: NDArray[np.floating], length: int = 16, max_passages: int = 5, breaks: Iterable[int] = ()
) -> list[Span]:
    """Find the passages of `length` tokens (or shorter documents) with the highest total surprisal, highest
    first.

    `bits` [N] is the surprisal of each token. Passages do not overlap, and do not cross breaks (the first
    token of another document).

    >>> most_surprising(np.array([1, 5, 5, 0, 0, 4, 4]), length=2, max_passages=2)
    [Span(start=1, end=3, bits=10.0), Span(start=5, end=7, bits=8.0)]
    """
    edges = np.array(sorted({0, *breaks, len(bits)}))
    start = np.arange(len(bits))
    end = np.minimum(start + length, edges[np.searchsorted(edges, start, side="right")])
    total = np.concatenate([[0.0], np.cumsum(bits, dtype=np.float64)])
    sums = total[end] - total[start]
    free = (end - start == length) | np.isin(start, edges)
    spans: list[Span] = []
    while len(spans) < max_passages and free.any():
        best = int(np.where(free, sums, -np.inf).argmax())
        spans.append(Span(int(start[best]), int(end[best]), float(sums[best])))
        free &= (end <= start[best]) | (start >= end[best])
    return spans


def tokens_of_lines(tokens: Sequence[bytes]) -> Iterator[tuple[int, range]]:
    """Yield the lines of a text, given as tokens, as (number from 1, indices of the tokens that begin in the
    line); lines in which no token begins are left out.

    >>> list(tokens_of_lines([b"a", b"b\\n", b"\\nc", b"d"]))
    [(1, range(0, 2)), (2, range(2, 3)), (3, range(3, 4))]
    """
    number = 1
    first = 0
    for end, token in enumerate(tokens, 1):
        breaks = token.count(b"\n")
        if breaks or end == len(tokens):
            yield number, range(first, end)
            number += breaks
            first = end


def divergence(reference: Runtime, other: Runtime, tokenizer: "Tokenizer") -> tuple[float, float]:
    """Return KL(reference || other) of the next token on a text sampled from `reference`, in bits per byte
    and as a share of the text's bits under `reference`. Raises LLMError for NaN logits."""
    ids = _sampled_text(reference, tokenizer)
    V = len(tokenizer.token_bytes)
    size = sum(len(tokenizer.token_bytes[token]) for token in ids[1:])
    reference.rewind()
    other.rewind()
    nats = entropy = 0.0
    for p_logits, q_logits in zip(reference.logits(ids[:-1]), other.logits(ids[:-1]), strict=True):
        p = log_softmax(p_logits[:V])
        q = log_softmax(q_logits[:V])
        nats += float(np.exp(p) @ (p - q))
        entropy -= float(np.exp(p) @ p)
    return round(nats / math.log(2) / max(1, size), 6), nats / entropy if entropy else 0.0


def _sampled_text(reference: Runtime, tokenizer: "Tokenizer") -> list[int]:
    """Sample a text from a model; return its ids, after the token that precedes a document."""
    from llmcli.generation.sampler import Sampler

    ids = [tokenizer.bos_id]
    sampler = Sampler(SamplingConfig(temperature=1.0, min_p=0.0))
    reference.rewind()
    count = min(KL_TOKENS, reference.context - 1)
    logits = reference.prefill(ids)
    while len(ids) <= count:
        ids.append(sampler(logits[: len(tokenizer.token_bytes)], ())[0])
        logits = reference.step(ids[-1])
    return ids
