"""Token healing: the first token after a prompt that ends inside a token or a word.

A prompt such as "I like to ea" may end inside a token: a model knows " eat", but has never seen " ea"
followed by "t". This is the prompt boundary problem. Token healing usually drops the last token and
constrains the next token to begin with its text. Here, the probability of a continuation given the prompt's
bytes is a sum over all token sequences that spell the prompt; the last token of a sequence ends with the
prompt or extends beyond it:

                       sum of p(sequence) over sequences that spell prompt + next
    p(next | prompt) = ----------------------------------------------------------
                       sum of p(sequence) over sequences that spell prompt

Only the prompt's tail is retokenized, and the most likely sequences are explored first. The total probability
of the others is known and reported as unexplored. Whatever predicts or generates what follows a prompt of
text uses this module for the first token: `generate`, `explain`, choices, batches and the HTTP routes.

V = vocabulary size; N = entries in the distribution; n = tokens in a group; T = tokens.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from llmcli.data.text.words import begins_with_letter, character_class
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokenizers.vocabulary import Vocabulary, unfinished
from llmcli.errors import DAMAGED, LLMError
from llmcli.generation.sampler import Sampler
from llmcli.models.logits import check_finite, log_softmax, masked, softmax
from llmcli.models.runtime import Array, Bools, Doubles, Ints, Runtime

# tokens at the prompt's end that may be replaced; four are no better (tests/benchmarks/LOG.md)
MAX_TAIL_TOKENS = 3
# maximum evaluations of the model for other tokenizations during generation; fewer for a large model, so that
# they take no longer than the prompt itself
MAX_EVALUATIONS = 8
MAX_WORK = 150_000_000  # evaluations x parameters
NEGLIGIBLE = 1e-3  # sequences less likely than this share of the total so far are not followed
# People's prompts end at the end of a word more often than texts cut at random. The probability that the last
# word continues is therefore multiplied by this factor, measured on prompts of both kinds
# (tests/benchmarks/LOG.md).
CONTINUE_WORD_FACTOR = 0.4

Path = tuple[int, ...]  # tokens after a prompt's head


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt. Its `tail` may be tokenized differently."""

    head: list[int]
    tail: list[int] = field(default_factory=list)
    in_word: bool = False  # whether it ends with a letter, so that its last word may continue
    # number of tokens at its beginning that represent the beginning of a text
    added: int = field(default=0, compare=False)
    # number of tokens at its end that the model generated, which an n-gram cache ignores; 0 if there is a
    # tail
    written: int = 0

    @classmethod
    def of(cls, text: "str | Prompt", tokenizer: Tokenizer, *, literal: bool = False) -> "Prompt":
        """Tokenize a text; with `literal`, without a tail. An empty text becomes the tokens that begin a
        text. A Prompt, such as a conversation, is returned unchanged."""
        if isinstance(text, Prompt):
            return text
        if not text:
            beginning = tokenizer.bos_ids or beginning_of_line(tokenizer)
            return cls(beginning, added=len(beginning))
        if literal:
            return cls(tokenizer.bos_ids + tokenizer.encode(text), added=len(tokenizer.bos_ids))
        before, last_word = tokenizer.split_last_word(text)
        # a line break replaces a missing beginning-of-text token
        line = [] if before or tokenizer.bos_ids else tokenizer.encode("\n")
        ids = tokenizer.bos_ids + line + tokenizer.encode(text)
        cut = len(ids)
        word_bytes = len(last_word.encode("utf-8"))
        while cut > max(1, len(ids) - MAX_TAIL_TOKENS):  # the tail lies within the last word
            word_bytes -= len(tokenizer.token_bytes[ids[cut - 1]])
            if word_bytes < 0:
                break
            cut -= 1
        in_word = character_class(text[-1]) == "letters"
        return cls(ids[:cut], ids[cut:], in_word, len(tokenizer.bos_ids + line))

    @property
    def ids(self) -> list[int]:
        return self.head + self.tail

    def split(self, space: int, bos_ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return (head, tail): the last tokens that fit `space` tokens, at least one of them before the tail,
        as in `last_tokens`."""
        space = max(1, space)
        tail = self.tail[max(0, len(self.tail) - (space - 1)) :] if space > 1 else []
        return last_tokens(self.ids[: len(self.ids) - len(tail)], space - len(tail), bos_ids), tail


def last_tokens(ids: Sequence[int], count: int, bos_ids: Sequence[int]) -> list[int]:
    """Return the last `count` tokens of a text. If the tokenizer has a beginning-of-text token (`bos_ids`),
    it replaces the first of them. Models that saw this token before every text in training direct much of
    their attention to it and predict badly without it (attention sink: Xiao et al. 2023, arXiv:2309.17453).

    >>> last_tokens([7, 8, 9], 2, []), last_tokens([1, 7, 8, 9], 2, [1]), last_tokens([1, 7, 8], 5, [1])
    ([8, 9], [1, 9], [1, 7, 8])
    """
    last = [*ids[max(0, len(ids) - count) :]]
    if 1 < count < len(ids) and ids[0] in bos_ids:
        last[0] = ids[0]
    return last


def beginning_of_line(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens before a line: a line break or, if the training text has none, the tokens that begin
    a document."""
    if tokenizer.seen_bytes is not None and b"\n" not in tokenizer.seen_bytes:
        return [tokenizer.bos_id]
    return tokenizer.bos_ids + tokenizer.encode("\n")


def default_evaluations(runtime: Runtime) -> int:
    """Return the maximum number of evaluations of a model to find the tokenizations of a text."""
    return 2 + min(MAX_EVALUATIONS, MAX_WORK // max(1, runtime.parameters))


def read_prompt(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    max_evaluations: int | None = None,
    negligible: float = NEGLIGIBLE,
    reserve: int = 0,
    cached: int = 0,
) -> "FirstToken":
    """Process a prompt; return the distribution of the next token.

    Only the end of a long prompt is used, so that `reserve` tokens of the context stay free. The model is
    evaluated at most `max_evaluations` times (at least 2; the default depends on MAX_EVALUATIONS and
    MAX_WORK). Sequences less likely than `negligible` times the total so far are not followed. The runtime's
    cache begins with the first `cached` tokens of the used part of the prompt's head, but not all of it.
    Raises LLMError for damaged weights.
    """
    if max_evaluations is None:
        max_evaluations = default_evaluations(runtime)
    head, tail = prompt.split(runtime.context - reserve, tokenizer.bos_ids)
    search = TokenizationSearch(runtime, tokenizer.vocabulary, head, tail)
    search.read(cached, prompt.written)
    unexplored = search.run(max_evaluations, negligible)
    return FirstToken(search, prompt.ids[: len(prompt.ids) - len(tail)], prompt.in_word, unexplored)


class Continuation(NamedTuple):
    """A token sequence that spells a prompt's tail."""

    probability: float
    tokens: Path
    new_bytes: bytes  # bytes of the last token after the prompt


class FirstToken:
    """A distribution over N entries; a Sampler chooses one.

    The first V entries are the tokens of the vocabulary, by the text that they add; the others are texts that
    only the end of a longer token spells. The probabilities of all continuations that add the same text are
    summed.
    """

    logits: Array  # [N], -inf where an entry is not allowed
    model_logits: Array  # [N], without the restrictions of a grammar or of the vocabulary
    tokens: Ints | None = None  # [N], the most likely last token of each entry; None: the entry itself

    def __init__(
        self, search: "TokenizationSearch", head: list[int], in_word: bool, unexplored: float
    ) -> None:
        """`head` are the tokens before the prompt's tail; with `in_word`, the prompt's last word may
        continue."""
        self.search = search
        self._head = head
        self._vocabulary = search.vocabulary
        self.unexplored = unexplored  # maximum probability of the sequences that were not explored
        self._extra_entries: dict[bytes, int] = {}  # text -> entry from V on
        groups = list(self._find_groups(in_word))
        total = sum(float(group.probabilities.sum()) for group in groups)
        if not total:
            raise LLMError(f"the model gives every allowed token a probability of 0: {DAMAGED}")
        self._groups = [group._replace(probabilities=group.probabilities / total) for group in groups]
        self.log_total = search.log_total  # logarithm of what `model_logits` are normalized by
        if len(groups) > 1 or in_word:
            self.log_total += math.log(total)
            self._sum_groups()
        else:
            allowed = self._vocabulary.allowed(search.end)
            _, _, logits = search.aligned[0]
            self.model_logits = logits
            self.logits = masked(logits, allowed)

    def restrict(self, allowed: Bools, allows: Callable[[bytes], bool]) -> None:
        """Allow only entries whose text a token of `allowed` [V] adds, or which `allows` accepts."""
        entries = np.append(allowed, np.array([allows(text) for text in self._extra_entries], bool))
        self.logits = masked(self.logits, entries)
        if np.isneginf(self.logits).all():  # too unlikely for the sum: use the logits after one tokenization
            _, path, row = self.search.aligned[0]
            every = np.arange(len(allowed))
            self.model_logits = row
            self.logits = masked(row, allowed)
            self.tokens = None
            self._groups = [_Group(path, 0, every, every, softmax(self.logits.astype(np.float64)))]

    def continuations(self, min_probability: float, sampler: Sampler | None = None) -> Iterator[Continuation]:
        """Yield all continuations with at least this probability, after a sampler's filters if there is a
        sampler. Each adds at least one token after the prompt's text."""
        groups = self._groups
        if sampler is not None:
            own = softmax(self.logits.astype(np.float64))
            chosen = sampler.probabilities(self.logits, self.tokens)
            factors = np.divide(chosen, own, out=np.zeros_like(own), where=own > 0)
            groups = [
                group._replace(probabilities=group.probabilities * factors[group.entries]) for group in groups
            ]
        return self._selected(groups, lambda group: group.probabilities >= min_probability)

    def continuations_of(self, entry: int) -> list[Continuation]:
        """Return the continuations summed in an entry, most likely first."""
        return self._ranked(lambda group: (group.entries == entry) & (group.probabilities > 0))

    def continuations_to(self, token: int) -> list[Continuation]:
        """Return the continuations whose last token is `token`, most likely first. There is at least one: any
        token may follow the prompt's own tokens."""
        return self._ranked(lambda group: group.tokens == token)

    def token_of(self, entry: int) -> tuple[int | None, bytes]:
        """Return (token of an entry, or None if no single token adds its text; text of the entry)."""
        if entry < len(self._vocabulary):
            return entry, self._vocabulary.token_bytes[entry]
        texts = list(self._extra_entries)  # in the order of their entries
        return None, texts[entry - len(self._vocabulary)]

    def process(self, continuation: Continuation) -> list[int]:
        """Bring the runtime to the state before a continuation's last token. Returns all tokens before it;
        the runtime holds the last of them that fit the context."""
        self.search.process(continuation.tokens[:-1])
        return [*self._head, *continuation.tokens[:-1]]

    def _ranked(self, selects: "Callable[[_Group], Bools]") -> list[Continuation]:
        return sorted(self._selected(self._groups, selects), key=lambda one: -one.probability)

    def _selected(
        self, groups: "Sequence[_Group]", selects: "Callable[[_Group], Bools]"
    ) -> Iterator[Continuation]:
        for group in groups:
            for i in np.flatnonzero(selects(group)).tolist():
                token = int(group.tokens[i])
                new_bytes = self._vocabulary.token_bytes[token][group.inside :]
                yield Continuation(float(group.probabilities[i]), (*group.before, token), new_bytes)

    def _find_groups(self, in_word: bool) -> Iterator["_Group"]:
        vocabulary = self._vocabulary
        every = np.arange(len(self._vocabulary))
        factors = np.ones(len(every))
        if in_word:
            factors[vocabulary.begins_with_letter] = CONTINUE_WORD_FACTOR
        allowed = vocabulary.allowed(self.search.end)
        if allowed is not None:
            factors[~allowed] = 0
        for logprob, path, logits in self.search.aligned:
            weight = math.exp(logprob - self.search.log_total)
            yield _Group(path, 0, every, every, weight * factors * softmax(logits.astype(np.float64)))
        for logprobs, before, inside, last in self.search.crossing:
            probabilities = np.exp(logprobs - self.search.log_total)
            texts = [vocabulary.token_bytes[token][inside:] for token in last.tolist()]
            if in_word:
                probabilities[list(map(begins_with_letter, texts))] *= CONTINUE_WORD_FACTOR
            entries = np.array(list(map(self._entry, texts)), np.int64)
            yield _Group(before, inside, last, entries, probabilities)

    def _entry(self, text: bytes) -> int:
        entry = self._vocabulary.find(text)
        if entry is None:
            entry = self._extra_entries.setdefault(text, len(self._vocabulary) + len(self._extra_entries))
        return entry

    def _sum_groups(self) -> None:
        N = len(self._vocabulary) + len(self._extra_entries)
        probabilities = np.zeros(N)
        highest = np.zeros(N)
        self.tokens = np.arange(N)
        for group in self._groups:
            np.add.at(probabilities, group.entries, group.probabilities)
            higher = group.probabilities > highest[group.entries]
            highest[group.entries[higher]] = group.probabilities[higher]
            self.tokens[group.entries[higher]] = group.tokens[higher]
        # shifted to the scale of the model's logits, on which the repetition penalty depends
        aligned = self.search.aligned
        shift = float(np.logaddexp.reduce(aligned[0][2].astype(np.float64))) if aligned else 0.0
        with np.errstate(divide="ignore"):
            self.logits = self.model_logits = (np.log(probabilities) + shift).astype(np.float32)


class _Group(NamedTuple):
    """Continuations that differ only in their last token."""

    before: Path
    inside: int  # bytes of the last token that still belong to the prompt
    tokens: Ints  # [n], last tokens
    entries: Ints  # [n]
    probabilities: Doubles  # [n]


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Count the tokens at the beginning that two texts share."""
    differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differing, min(len(a), len(b)))


class TokenizationSearch:
    """Best-first search for token sequences that spell the bytes of a tail."""

    def __init__(self, runtime: Runtime, vocabulary: Vocabulary, head: list[int], tail: list[int]) -> None:
        """The search begins with `read` or `begin`."""
        self.vocabulary = vocabulary
        # sequences that end with the prompt: (log probability, tokens, logits [V] after them)
        self.aligned: list[tuple[float, Path, Array]] = []
        # sequences whose last token extends beyond the prompt: (log probabilities [n], tokens before the
        # last token, bytes of the last token that belong to the prompt, last tokens [n])
        self.crossing: list[tuple[Doubles, Path, int, Ints]] = []
        self.log_total = -math.inf  # logarithm of the total probability of both
        self.space = runtime.context - len(head)  # for tokens after the head
        self.evaluations = 0  # number of evaluations so far
        # heap of sequences to expand: (-logprob, tokens, bytes spelled)
        self._open: list[tuple[float, Path, int]] = []
        self._current = 0.0, Path(), 0  # the last one taken from the heap
        self._runtime = runtime
        self._head = head
        self.tail = tuple(tail)
        self._cached = Path()  # tokens after the head in the runtime's cache
        self._text = vocabulary.bytes_of(tail)
        # bytes of the character that is incomplete before the text, and at its end
        self._start = unfinished(vocabulary.bytes_of(head[-4:]), "ignore") or b""
        self.end = b"" if tail else self._start

    def read(self, cached: int, written: int = 0) -> None:
        """Process head and tail; the runtime's cache begins with the first `cached` tokens of the head, but
        not all of it. The model wrote the last `written` tokens of the head."""
        self._runtime.begin_prompt(cached, len(self._head), written)
        rows = [self._runtime.prefill(self._head[cached:])]
        if self.tail:
            rows += [*self._runtime.logits(self.tail)]
            self._cached = self.tail
        self.begin(rows)

    def begin(self, rows: Sequence[Array]) -> None:
        """Expand every prefix of the tail's own tokenization, given the logits [V] after the head and each
        token of the tail."""
        tail = self.tail
        rows = [self._checked(row) for row in rows]
        self.evaluations = 1 + bool(tail)
        logprob = 0.0
        spelled = 0
        for count, row in enumerate(rows):
            following = tail[count] if count < len(tail) else None
            logprobs = self._expand(logprob, tuple(tail[:count]), spelled, row, following)
            if following is not None:
                logprob += float(logprobs[following])
                spelled += len(self.vocabulary.token_bytes[following])
        if self.log_total == -math.inf:  # the prompt is impossible under the model: use its own tokenization
            self.aligned = [(0.0, tuple(tail), rows[-1])]
            self.log_total = 0.0

    def run(self, max_evaluations: int, negligible: float) -> float:
        """Explore the most likely sequences. Returns an upper bound for the share of the probability of the
        others."""
        while (path := self.next_path(max_evaluations, negligible)) is not None:
            self._runtime.rewind(len(self._head))
            self._cached = path
            self.expand(self._runtime.prefill(path))
        left = np.logaddexp.reduce([-cost for cost, _, _ in self._open], initial=-math.inf)
        return float(np.exp(left - np.logaddexp(left, self.log_total))) if left > -np.inf else 0.0

    def next_path(self, max_evaluations: int, negligible: float) -> Path | None:
        """Return the most likely sequence to evaluate and `expand`, if it has more than a negligible share of
        the total and fewer than `max_evaluations` were evaluated."""
        if self.evaluations >= max_evaluations or not self._open:
            return None
        if math.exp(min(0.0, -self._open[0][0] - self.log_total)) <= negligible:
            return None
        self._current = heapq.heappop(self._open)
        self.evaluations += 1
        return self._current[1]

    def expand(self, logits: Array) -> None:
        """Add the continuations of the last sequence of `next_path`, given the logits [V] after it."""
        cost, path, spelled = self._current
        self._expand(-cost, path, spelled, self._checked(logits))

    def logits_after(self, paths: Sequence[Path]) -> list[Array]:
        """Return the logits [V] after the head and the tokens of each path, which has at least one token.
        Tokens shared by the beginnings of all paths are processed at most once."""
        self.evaluations += len(paths)
        # the first and the last path in sorted order have the shortest common prefix
        length = min(shared_length(min(paths), max(paths)), min(map(len, paths)) - 1)
        shared = paths[0][:length]
        cached = shared_length(shared, self._cached)
        self._runtime.rewind(len(self._head) + cached)
        if cached < length:
            self._runtime.read(shared[cached:])
        self._cached = shared
        rest = [path[length:] for path in paths]
        return [self._checked(rows[-1]).copy() for rows in self._runtime.continuation_logits(rest)]

    def process(self, path: Path) -> None:
        """Make the runtime's cache hold the head and the tokens of `path`."""
        if path != self._cached:
            self._runtime.rewind(len(self._head))
            self._cached = path
            if path:
                self._runtime.read(path)

    def _checked(self, logits: Array) -> Array:
        row = logits[: len(self.vocabulary)]  # a model may have rows that no token uses
        check_finite(row.max())
        return row

    def _expand(
        self, logprob: float, path: Path, spelled: int, row: Array, skipped: int | None = None
    ) -> Doubles:
        """Continue a sequence with every token that fits the text, except `skipped`; return the log
        probabilities [V] of the next token."""
        logprobs = log_softmax(row)
        rest = self._text[spelled:]
        if not rest:
            self.aligned.append((logprob, path, row))
            self.log_total = float(np.logaddexp(self.log_total, logprob))
            return logprobs
        last = self.vocabulary.extensions_of(rest)
        if len(last):  # only near the end of the text, which may be long
            allowed = self.vocabulary.allowed(unfinished(self._start + self._text[:spelled]) or b"")
            last = last if allowed is None else last[allowed[last]]
        if len(last):
            crossing = (logprob + logprobs)[last]
            self.crossing.append((crossing, path, len(rest), last))
            self.log_total = float(np.logaddexp(self.log_total, np.logaddexp.reduce(crossing)))
        for token in self.vocabulary.prefixes_of(rest):
            if token != skipped and len(path) < self.space:
                cost = -logprob - float(logprobs[token])
                length = len(self.vocabulary.token_bytes[token])
                heapq.heappush(self._open, (cost, (*path, token), spelled + length))
        return logprobs
