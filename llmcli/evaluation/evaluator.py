"""Text -> bits per byte: how well a model predicts, in a measure that needs no tokenizer to compare.

Windows of the model's context slide over the text by half a context, and only what has at least half a context
before it is counted (but for the text's beginning, which has what there is). Who computes the losses is not this
room's business: torch and numpy both serve. Whether a model learned from a text is read from its record.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmcli.config import EVALUATION_CONTEXT
from llmcli.data.batches import Preceded
from llmcli.data.corpus import BLOCK, Corpus, Encoder, tokenize
from llmcli.errors import LLMError, usage
from llmcli.models.runtime import Scorer

# ids [B, T + 1] -> for each of ids[:, 1:], [B, T] both: its nats, and whether it was the likeliest
Score = Callable[[NDArray[np.int64]], tuple[NDArray[np.floating], NDArray[np.bool_]]]
Window = tuple[int, int, int]  # start, first position counted, end


class ByteEncoder(Encoder, Protocol):
    """And of its tokenizer: the bytes of each id too, and what is put before a text."""

    @property
    def token_bytes(self) -> list[bytes]: ...
    @property
    def start_id(self) -> int: ...
    @property
    def space_first(self) -> bool: ...


@dataclass(frozen=True)
class Figures:
    """What a model makes of a text."""

    nats: float  # summed over the tokens counted
    tokens: int
    bytes: int  # of text in these tokens
    right: int = 0  # tokens that the model held for the likeliest

    def __add__(self, other: "Figures") -> "Figures":
        """Of two texts together."""
        return Figures(
            self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes, self.right + other.right
        )

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(min(self.nats / self.tokens, 700.0)) if self.tokens else math.nan

    @property
    def accuracy(self) -> float:
        """The share of the tokens that the model held for the likeliest."""
        return self.right / self.tokens if self.tokens else math.nan


def evaluate(
    ids: NDArray[np.integer] | Preceded,
    byte_lengths: NDArray[np.integer],
    context: int,
    score: Score,
    *,
    most_tokens: int | None = None,
    batch_tokens: int = 4096,
    tell: Callable[[float], None] = lambda share: None,
    each: Callable[[NDArray[np.integer], NDArray[np.floating]], None] = lambda ids, nats: None,
) -> Figures:
    """Score ids[1:], each given what stands before it; ids[0] is what the text starts from (the end-of-text id).

    `byte_lengths[i]` is the length of token i in bytes. With `most_tokens` about so many tokens are scored, in
    windows spread evenly over the text. `tell` hears which share is done, `each` the tokens counted and their nats, in
    the order of the text.
    """
    windows = select_windows(len(ids), context, most_tokens)
    figures, done = Figures(0.0, 0, 0), 0
    for some, counted in evaluate_windows(ids, byte_lengths, windows, score, batch_tokens=batch_tokens, each=each):
        figures, done = figures + counted, done + len(some)
        tell(done / len(windows))
    return figures


def evaluate_windows(
    ids: NDArray[np.integer] | Preceded,
    byte_lengths: NDArray[np.integer],
    windows: Sequence[Window],
    score: Score,
    *,
    batch_tokens: int = 4096,
    each: Callable[[NDArray[np.integer], NDArray[np.floating]], None] = lambda ids, nats: None,
) -> Iterator[tuple[Sequence[Window], Figures]]:
    """The figures of some windows at a time, `batch_tokens` tokens or one window; so a caller can stop in between."""
    longest = max((end - start for start, _, end in windows), default=1) - 1
    rows = max(1, batch_tokens // max(1, longest))
    for first in range(0, len(windows), rows):
        batch = [windows[i] for i in range(first, min(first + rows, len(windows)))]
        width = max(end - start for start, _, end in batch)
        block = np.zeros((len(batch), width), np.int64)  # short windows are filled up on the right, never scored
        for row, (start, _, end) in enumerate(batch):
            block[row, : end - start] = ids[start:end]
        losses, hits = score(block)
        figures = Figures(0.0, 0, 0)
        for row, (start, counted_from, end) in enumerate(batch):
            counted = slice(counted_from - start - 1, end - start - 1)
            targets = ids[counted_from:end]
            each(targets, losses[row, counted])
            figures += Figures(
                float(losses[row, counted].sum(dtype=np.float64)),
                len(targets),
                int(byte_lengths[targets].sum()),
                int(hits[row, counted].sum()),
            )
        yield batch, figures


def select_windows(count: int, context: int, most_tokens: int | None = None) -> Sequence[Window]:
    """The windows that a text of `count` ids is scored in; with `most_tokens` some of them, spread evenly."""
    windows = _Windows(count, context)
    if most_tokens is not None and len(windows) * stride(context) > most_tokens:
        keep = max(1, most_tokens // stride(context))
        return [windows[round(i)] for i in np.linspace(0, len(windows) - 1, keep)]
    return windows


def scattered(windows: Sequence[Window]) -> list[Window]:
    """The same windows in an order in which any number of the first are spread over the text: steps of the golden ratio
    (a low-discrepancy sequence).

    >>> scattered([(i, i, i) for i in range(5)])[:3]
    [(0, 0, 0), (3, 3, 3), (1, 1, 1)]
    """
    golden = (math.sqrt(5) - 1) / 2
    order = sorted(range(len(windows)), key=lambda i: i * golden % 1.0)  # the inverse permutation is spread as well
    return [windows[i] for i in np.argsort(order, kind="stable")]


def evaluation_context(longest: int, wanted: int | None = None) -> int:
    """Tokens that a model sees at once when it is evaluated: as wanted, or EVALUATION_CONTEXT at most, since the time
    for attention grows with the square. Raises LLMError where more are wanted than the model's `longest`.

    >>> evaluation_context(1024), evaluation_context(131_072), evaluation_context(131_072, 4096)
    (1024, 2048, 4096)
    """
    if wanted is None:
        return min(longest, EVALUATION_CONTEXT)
    if wanted > longest:
        raise usage(f"--context {wanted} is longer than the model's context of {longest:,} tokens; give that or less")
    return wanted


def stride(context: int) -> int:
    """By how many tokens a window moves on; so many at least stand before each that is counted."""
    return max(1, context // 2)


class _Windows(Sequence[Window]):
    """(start, first position counted, end) of each window; every position from 1 on is counted exactly once. None is
    held in memory.

    >>> list(_Windows(8, 4))
    [(0, 1, 5), (2, 5, 7), (3, 7, 8)]
    """

    def __init__(self, count: int, context: int) -> None:
        """Of a text of `count` tokens."""
        self._count, self._context = count, context

    def __len__(self) -> int:
        after_first = max(0, self._count - 1 - self._context)
        return -(-after_first // stride(self._context)) + (self._count > 1)

    def __getitem__(self, index: int) -> tuple[int, int, int]:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        counted = 1 if index == 0 else 1 + self._context + (index - 1) * stride(self._context)
        end = min(self._count, counted + (self._context if index == 0 else stride(self._context)))
        return max(0, end - self._context - 1), counted, end


# ---- texts on disk


@dataclass(frozen=True)
class Passage:
    """One document, or its end: what is evaluated at once."""

    name: str
    corpus: Corpus  # of this document alone
    start: int  # byte of its text

    def text(self) -> Iterator[str]:
        """In pieces."""
        for text in self.corpus.texts(self.start):
            yield from text


def passages(corpus: Corpus, start: int = 0) -> list[Passage]:
    """The documents of a corpus from byte `start` on."""
    found, first = [], 0
    for document in corpus.documents:
        if start < first + document.text_bytes:
            found.append(Passage(document.name, Corpus((document,)), max(0, start - first)))
        first += document.text_bytes
    return found


def measure(
    passage: Passage,
    model: Scorer,
    tokenizer: ByteEncoder,
    tell: Callable[[float], None] = lambda share: None,
    each: Callable[[NDArray[np.integer], NDArray[np.floating]], None] = lambda ids, nats: None,
    *,
    context: int | None = None,
) -> Figures:
    """Every token of a passage, the first after what a document begins after: the end of another, or a control token.

    The model sees `context` tokens at once, or else as many as `evaluation_context` says. Raises LLMError when the
    tokenizer changes the text, since then tokens and bytes are not of the same text, or the model's answer is not a
    number.
    """
    size = 0

    def counted() -> Iterator[str]:
        nonlocal size
        for part in passage.text():
            size += len(part.encode("utf-8"))
            yield part

    ids = tokenize(iter([counted()]), tokenizer)
    lengths = np.array([len(data) for data in tokenizer.token_bytes])
    spelled = sum(int(lengths[ids[first : first + BLOCK]].sum()) for first in range(0, len(ids), BLOCK))
    own = 1 if tokenizer.space_first and size else 0  # bytes that are the tokenizer's, not the text's
    if spelled != size + own:
        raise LLMError(
            f"the tokenizer changes {passage.name}: {size:,} bytes of text become {spelled:,} in tokens, so bits per "
            f"byte would be wrong; bring the text into Unicode's form NFC first"
        )
    context = context or evaluation_context(model.context)
    figures = evaluate(Preceded(tokenizer.start_id, ids), lengths, context, model.score, tell=tell, each=each)
    figures = replace(figures, bytes=figures.bytes - own)
    if not math.isfinite(figures.nats):
        raise LLMError("the model's answer is not a number: its weights are damaged (look: llm inspect --verify)")
    return figures


def learned_bytes(corpus: Corpus, record: dict[str, Any]) -> int | None:
    """How much of a corpus, from its beginning, a model learned from; None if its record tells of another corpus."""
    if _hashes(record) != [document.sha256 for document in corpus.documents]:
        return None
    learned = record.get("train_bytes")
    return learned if isinstance(learned, int) and 0 <= learned <= corpus.text_bytes else None


def held_out_from(corpus: Corpus, records: list[dict[str, Any]]) -> int:
    """The byte from which on none of the models learned: that of the one that learned most of this very corpus.

    0, which means all of the text, if none of them learned from this corpus or one left no end of it.
    """
    most = max((learned_bytes(corpus, record) or 0 for record in records), default=0)
    return most if most < corpus.text_bytes else 0


def learned_some(corpus: Corpus, record: dict[str, Any], start: int = 0) -> bool:
    """Whether a model learned from some of the text from byte `start` on, as far as whole files tell."""
    learned = learned_bytes(corpus, record)
    if learned is not None:
        return learned > start
    return not {document.sha256 for document in corpus.documents}.isdisjoint(_hashes(record))


def _hashes(record: dict[str, Any]) -> list[str]:
    """The sha256 of each document in a record; a record of another shape has none."""
    listed = record.get("corpus")
    return [str(d.get("sha256")) for d in listed if isinstance(d, dict)] if isinstance(listed, list) else []
