"""Prompt -> what may come first after it, given its text and not one way to split that into tokens.

A text's end cuts through tokens: a model knows " eat", and after "I like to ea" has never seen " ea" and then "t". The
probability of a continuation given the prompt's bytes is a sum over all token sequences that spell the prompt, each
weighted by its own probability, the last token of each ending with the prompt or going beyond it:

    p(next | prompt) = sum over sequences of p(sequence) [it writes prompt + next] / sum over sequences of p(sequence)

Only the last tokens of the prompt are split anew, the likeliest ways first. What is not followed is known by its
probability, the unexplored rest. Sampling, --next, --steps and explain all begin here.

V = tokens in the vocabulary; T = tokens.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from llmcli.data.characters import character_class
from llmcli.data.tokenizer import Tokenizer
from llmcli.data.vocabulary import START, Vocabulary, state_after, state_between
from llmcli.errors import LLMError
from llmcli.models.logits import check_finite, log_softmax, softmax
from llmcli.models.runtime import Array, Runtime

RESPLIT = 3  # tokens at a prompt's end that are split anew: one more gains nothing, one fewer loses (LOG.md)
EVALUATIONS = 8  # of the model for other ways to split them, when text is generated; of a large one fewer:
WORK = 150_000_000  # evaluations x parameters, so that they take no longer than the prompt itself
NEGLIGIBLE = 1e-3  # a way that is less likely than this share of those known is not followed then
# People end a prompt at a word's end more often than a cut at random would. Going on inside a prompt's last word counts
# so much less than in the text; measured on prompts that do and that don't end there (tests/benchmarks/LOG.md).
INSIDE_WORD = 0.4

Path = tuple[int, ...]  # tokens after a prompt's head


@dataclass(frozen=True)
class Prompt:
    """A prompt as the tokenizer splits it; the tokens of its `tail` can be split in other ways too."""

    head: list[int]
    tail: list[int] = field(default_factory=list)
    in_word: bool = False  # it ends with a letter, and the word may go on

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer, *, literal: bool = False) -> "Prompt":
        """A `literal` one has no tail: its tokens are taken as they are, as other programs do. Raises LLMError for an
        empty prompt."""
        if not text:
            raise LLMError('the prompt is empty; give some text to go on from: llm generate "Once upon a time"')
        if literal:
            return cls(tokenizer.bos_ids + tokenizer.encode(text))
        before, word = tokenizer.split_last_word(text)
        # a text begins like a line, where nothing else begins it
        line = [] if before or tokenizer.bos_ids else tokenizer.encode("\n")
        ids = tokenizer.bos_ids + line + tokenizer.encode(text)
        left, count = len(word.encode("utf-8")), 0
        while count < min(RESPLIT, len(ids) - 1):
            left -= len(tokenizer.token_bytes[ids[-1 - count]])
            if left < 0:
                break
            count += 1
        cut = len(ids) - count
        return cls(ids[:cut], ids[cut:], character_class(text[-1]) == "letters")

    @property
    def ids(self) -> list[int]:
        """All of it."""
        return self.head + self.tail


@dataclass(frozen=True)
class Way:
    """A token sequence that spells a prompt's tail and what comes after it, as far as its last token writes that."""

    probability: float
    tokens: Path
    new: bytes  # what the last token writes after the prompt


@dataclass(frozen=True)
class _Last:
    """Ways that differ in their last token alone."""

    before: Path
    skipped: int  # bytes of the last token that still belong to the prompt
    tokens: NDArray[np.int64]  # [n], what the last can be
    entries: NDArray[np.int64]  # [n], of each
    probabilities: NDArray[np.float64]  # [n]


class Opening:
    """What may come first after a prompt: a distribution over N entries, which a Sampler chooses from.

    The first V entries are the tokens of the vocabulary by what they write; others stand for text that only the end of
    a longer token writes. An entry can come about in several ways, whose probabilities are summed.
    """

    logits: Array  # [N], -inf where nothing may be written
    own: Array | None = None  # [N], the model's own logits, where they are not these
    tokens: NDArray[np.int64] | None = None  # [N], the likeliest token of each entry; None: the entry itself

    def __init__(self, found: "_Search", head: list[int], in_word: bool) -> None:
        self._found, self._head, self._vocabulary = found, head, found.vocabulary
        self.unexplored = found.unexplored  # the share that ways not followed could have: at most so much
        self._extra: dict[bytes, int] = {}  # entries beyond V
        allowed = self._vocabulary.allowed(START)
        every = np.arange(len(self._vocabulary))
        factors = np.where(self._vocabulary.begins_with_letter, INSIDE_WORD, 1.0) if in_word else np.ones(len(every))
        if allowed is not None:
            factors[~allowed] = 0
        ways = [
            _Last(path, 0, every, every, math.exp(logprob - found.known) * factors * softmax(row.astype(np.float64)))
            for logprob, path, row in found.ending
        ]
        for logprobs, path, skipped, tokens in found.passing:
            chances = np.exp(logprobs - found.known)
            if in_word:
                chances[self._vocabulary.letter_at(tokens, skipped)] *= INSIDE_WORD
            ways.append(_Last(path, skipped, tokens, self._entries(tokens, skipped), chances))
        total = sum(float(last.probabilities.sum()) for last in ways)
        if not total:
            raise LLMError(
                "the model thinks no text possible here: its weights are damaged (look: llm inspect --verify)"
            )
        self._ways = [replace(last, probabilities=last.probabilities / total) for last in ways]
        if len(ways) > 1 or in_word:
            self._sum()
        else:
            self.own = found.ending[0][2]
            self.logits = self.own if allowed is None else np.where(allowed, self.own, np.float32(-np.inf))

    def ways(self, least: float) -> Iterator[Way]:
        """All that are at least so likely; none that ends with the prompt, each goes on by a token."""
        for last in self._ways:
            for i in np.flatnonzero(last.probabilities >= least).tolist():
                yield self._way(last, i)

    def ways_of(self, entry: int) -> list[Way]:
        """Those in which an entry comes about, the likeliest first."""
        found = [
            self._way(last, i)
            for last in self._ways
            for i in np.flatnonzero((last.entries == entry) & (last.probabilities > 0)).tolist()
        ]
        return sorted(found, key=lambda way: -way.probability)

    @property
    def evaluations(self) -> int:
        """How often the model was evaluated so far."""
        return self._found.evaluations

    @property
    def space(self) -> int:
        """How many tokens after the prompt's head the context has room for."""
        return self._found.space

    def logits_after(self, path: Path) -> Array:
        """[V], after the prompt's head and these tokens."""
        return self._found.logits_after(path)

    def take(self, way: Way) -> list[int]:
        """All tokens before the last of a way; the model holds them, or the end that fits its context."""
        self._found.take(way.tokens[:-1])
        return [*self._head, *way.tokens[:-1]]

    def _way(self, last: _Last, i: int) -> Way:
        token = int(last.tokens[i])
        new = self._vocabulary.token_bytes[token][last.skipped :]
        return Way(float(last.probabilities[i]), (*last.before, token), new)

    def _entries(self, tokens: NDArray[np.int64], skipped: int) -> NDArray[np.int64]:
        """[n], of tokens that go beyond the prompt."""
        found, V = [], len(self._vocabulary)
        for token in tokens.tolist():
            new = self._vocabulary.token_bytes[token][skipped:]
            entry = self._vocabulary.find(new)
            found.append(self._extra.setdefault(new, V + len(self._extra)) if entry is None else entry)
        return np.array(found, np.int64)

    def _sum(self) -> None:
        N = len(self._vocabulary) + len(self._extra)
        chances, likeliest, self.tokens = np.zeros(N), np.zeros(N), np.arange(N)
        for last in self._ways:
            np.add.at(chances, last.entries, last.probabilities)
            better = last.probabilities > likeliest[last.entries]
            likeliest[last.entries[better]] = last.probabilities[better]
            self.tokens[last.entries[better]] = last.tokens[better]
        # of the size that logits have, for the repetition penalty
        size = float(np.logaddexp.reduce(self._found.ending[0][2].astype(np.float64))) if self._found.ending else 0.0
        with np.errstate(divide="ignore"):
            self.logits = (np.log(chances) + size).astype(np.float32)


def read(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    most: int | None = None,
    negligible: float = NEGLIGIBLE,
    room: int = 0,
) -> Opening:
    """Let a model read a prompt, of a long one the end that leaves `room` tokens of the context free.

    The model is evaluated `most` times at most, at least twice; else as often as EVALUATIONS and WORK say. Raises
    LLMError for damaged weights.
    """
    if most is None:
        most = 2 + min(EVALUATIONS, WORK // max(1, runtime.parameters))
    space = max(1, runtime.context - room)
    tail = prompt.tail[max(0, len(prompt.tail) - (space - 1)) :] if space > 1 else []
    head = prompt.ids[: len(prompt.ids) - len(tail)]
    found = _Search(runtime, tokenizer.vocabulary, head[-(space - len(tail)) :], tail)
    while found.evaluations < most and found.is_worth_it(negligible):
        found.follow()
    return Opening(found, head, prompt.in_word)


class _Search:
    """Best-first search for the token sequences that spell the bytes of a tail."""

    def __init__(self, runtime: Runtime, vocabulary: Vocabulary, head: list[int], tail: list[int]) -> None:
        self.vocabulary, self.evaluations = vocabulary, 0
        self.ending: list[tuple[float, Path, Array]] = []  # with the prompt: (logprob, tokens, logits [V] after them)
        # beyond it by a last token: (logprobs [n], tokens before, bytes of the last inside the prompt, last tokens [n])
        self.passing: list[tuple[NDArray[np.float64], Path, int, NDArray[np.int64]]] = []
        self.known = -math.inf  # logarithm of their probabilities' sum
        self._open: list[tuple[float, Path, int]] = []  # heap: (-logprob, tokens, bytes spelled)
        self._too_long = -math.inf  # logarithm of the sum of those that the context has no room for
        self._runtime, self._head, self._held = runtime, len(head), Path()
        self.space = runtime.context - len(head)
        self._text = b"".join(vocabulary.token_bytes[token] for token in tail)
        self._state = START  # of UTF-8 where the text begins
        runtime.rewind()
        rows = [self._row(runtime.prefill(head))]
        if tail:
            rows += [self._row(row) for row in runtime.logits(tail)]
            self._state = state_between(b"".join(vocabulary.token_bytes[token] for token in head[-4:]))
            self._held = tuple(tail)
        self.evaluations = 1 + bool(tail)
        logprob, done = 0.0, 0
        for count, row in enumerate(rows):
            follows = tail[count] if count < len(tail) else None
            chances = self._expand(logprob, tuple(tail[:count]), done, row, follows)
            if follows is not None:
                logprob, done = logprob + float(chances[follows]), done + len(vocabulary.token_bytes[follows])
        if self.known == -math.inf:  # the prompt is impossible to the model: take it as it stands
            self.ending, self.known = [(0.0, tuple(tail), rows[-1])], 0.0

    @property
    def unexplored(self) -> float:
        """What the sequences not followed could have at most, as a share of all."""
        left = np.logaddexp.reduce([-cost for cost, _, _ in self._open], initial=self._too_long)
        return float(np.exp(left - np.logaddexp(left, self.known))) if left > -np.inf else 0.0

    def is_worth_it(self, negligible: float) -> bool:
        """Whether the likeliest sequence not followed has more than a negligible share of what is known."""
        return bool(self._open) and math.exp(min(0.0, -self._open[0][0] - self.known)) > negligible

    def follow(self) -> None:
        """Follow the likeliest sequence by one evaluation."""
        cost, path, done = heapq.heappop(self._open)
        self._expand(-cost, path, done, self.logits_after(path))

    def logits_after(self, path: Path) -> Array:
        """[V], after the head and at least one token."""
        self._runtime.rewind(self._head)
        self._held = path
        self.evaluations += 1
        return self._row(self._runtime.prefill(path))

    def take(self, path: Path) -> None:
        """Let the model hold the head and these tokens."""
        if path != self._held and path:
            self.logits_after(path)
        elif path != self._held:
            self._runtime.rewind(self._head)
            self._held = path

    def _row(self, logits: Array) -> Array:
        row = logits[: len(self.vocabulary)]  # a model may have rows that no token uses
        check_finite(row.max())
        return row

    def _expand(self, logprob: float, path: Path, done: int, row: Array, but: int | None = None) -> NDArray[np.float64]:
        """Go on from a sequence with every token that fits, but for one; the logprobs [V] of the next token."""
        chances = log_softmax(row)
        rest = self._text[done:]
        if not rest:
            self.ending.append((logprob, path, row))
            self.known = float(np.logaddexp(self.known, logprob))
            return chances
        beyond = self.vocabulary.extensions_of(rest)
        allowed = self.vocabulary.allowed(max(START, state_after(self._text[:done], self._state)))
        if allowed is not None:
            beyond = beyond[allowed[beyond]]
        if len(beyond):
            self.passing.append((logprob + chances[beyond], path, len(rest), beyond))
            self.known = float(np.logaddexp(self.known, np.logaddexp.reduce(self.passing[-1][0])))
        for token in self.vocabulary.prefixes_of(rest):
            if token != but:
                way = (-logprob - float(chances[token]), (*path, token), done + len(self.vocabulary.token_bytes[token]))
                if len(path) < self.space:
                    heapq.heappush(self._open, way)
                else:
                    self._too_long = float(np.logaddexp(self._too_long, -way[0]))
        return chances
