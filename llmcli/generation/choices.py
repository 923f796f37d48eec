"""Probabilities of given texts of any length, as the whole answer in a conversation or as the continuation of
a text.

An answer is tokenized as in training and is complete: its probability is the product over its tokens, times
the probability of a token that ends an answer. A continuation is open-ended: its probability is that of all
texts that begin with prompt + continuation, given that they begin with the prompt. It is summed over
tokenizations and weighted as in token_healing.py: the text's own tokenization and the most likely others,
including tokens that cross the end of the prompt or of the continuation.

The prompt is processed once; then batches of texts continue its KV cache. V = vocabulary size.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llmcli.data.text.words import begins_with_letter
from llmcli.data.tokenizers.tokenizer import Tokenizer, check_unicode
from llmcli.errors import LLMError, brief, usage
from llmcli.generation.token_healing import (
    CONTINUE_WORD_FACTOR,
    NEGLIGIBLE,
    FirstToken,
    Prompt,
    TokenizationSearch,
    default_evaluations,
    shared_length,
)
from llmcli.models.logits import log_softmax, softmax
from llmcli.models.runtime import PREFILL_CHUNK, Array, Doubles, Runtime, padded_batches

UNLIKELY = 0.01  # relative to the most likely answer
BATCH_TOKENS = PREFILL_CHUNK  # tokens of several texts, padded to the longest, that are processed at a time


@dataclass(frozen=True)
class ScoredText:
    """A text and its probability after a prompt."""

    text: str
    logprob: float  # natural logarithm
    tokens: int  # in the text's own tokenization, with the token that ends an answer

    @property
    def probability(self) -> float:
        return math.exp(self.logprob)

    @property
    def bits_per_byte(self) -> float:
        return -self.logprob / math.log(2) / max(1, len(self.text.encode("utf-8")))


def check_choices(choices: Sequence[str], name: str = "choices") -> None:
    """Raise LLMError unless there are at least two different texts, none of them empty."""
    if len(choices) < 2:
        raise usage(f"{name} must have at least two texts, found {len(choices)}")
    for i, choice in enumerate(choices):
        check_unicode(choice)
        if not choice.strip():
            raise usage(f"{name} has an empty text (number {i + 1}); leave it out")
        if choice in choices[:i]:
            raise usage(f"{name} has {brief(choice)} twice; leave one out")


def ranked(scored: Sequence[ScoredText]) -> list[tuple[ScoredText, float]]:
    """Return the choices with their probabilities, which sum to 1, most likely first; ties keep their
    order."""
    probabilities = softmax(np.array([choice.logprob for choice in scored])).tolist()
    return sorted(zip(scored, probabilities, strict=True), key=lambda pair: -pair[1])


def score_answers(
    runtime: Runtime,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    answers: Sequence[str],
    end_ids: Collection[int],
    *,
    only_likely: bool = False,
) -> Iterator[list[ScoredText]]:
    """Score answers after the tokens `ids`, each followed by one of `end_ids`; yields a batch at a time. The
    runtime's cache begins with all of `ids` except the last. Raises LLMError for an answer that does not fit
    the context.

    With `only_likely`, the order is that of the likeliest beginnings. Answers that do not fit the context are
    left out, and answers less than UNLIKELY times as likely as the best answer. The probability of an
    answer's beginning is an upper bound: an answer that it rules out is not scored."""
    encoded = [tokenizer.encode(text) for text in answers]
    lengths = [*map(len, encoded)]
    for text, length in zip(answers, lengths, strict=True):
        if len(ids) + length > runtime.context and not only_likely:
            raise _too_long(text, length, len(ids), runtime.context)
    runtime.rewind(len(ids) - 1)
    V = len(tokenizer.token_bytes)
    ends = list(end_ids)
    first = runtime.prefill(ids[-1:])
    bounds = np.zeros(len(encoded))
    least = -math.inf
    if only_likely:
        beginnings = log_softmax(first[:V])
        space = runtime.context - len(ids)
        bounds = np.array([beginnings[a[0]] if len(a) <= space else -math.inf for a in encoded])
    while True:
        order = [i for i in np.argsort(-bounds, kind="stable").tolist() if bounds[i] > least]
        batch = next(padded_batches(lengths, order, BATCH_TOKENS), None)
        if batch is None:
            return
        scores = []
        for i, rows in zip(batch, _logits_after(runtime, [encoded[i] for i in batch]), strict=True):
            logprobs = [log_softmax(row[:V]) for row in (first, *rows)]
            own = math.fsum(float(row[token]) for row, token in zip(logprobs, encoded[i], strict=False))
            end = float(np.logaddexp.reduce(logprobs[-1][ends]))
            scores.append(ScoredText(answers[i], own + end, lengths[i] + 1))
            if only_likely:
                _lower_bounds(bounds, encoded, encoded[i], logprobs)
                least = max(least, own + end + math.log(UNLIKELY))
        bounds[batch] = -math.inf
        yield scores


def _lower_bounds(
    bounds: Doubles, encoded: Sequence[list[int]], known: list[int], rows: Sequence[Doubles]
) -> None:
    """Lower the bounds of answers that share a beginning with the `known` one; `rows` are the distributions
    of the next token after each of its tokens."""
    totals = np.cumsum([0.0, *(row[token] for row, token in zip(rows, known, strict=False))])
    for i, answer in enumerate(encoded):
        n = shared_length(answer, known)
        bounds[i] = min(bounds[i], totals[n] + (rows[n][answer[n]] if n < len(answer) else 0.0))


def _logits_after(runtime: Runtime, texts: Sequence[list[int]]) -> list[list[Array]]:
    """Return the logits [V] after each token of texts that continue the cache. A text may have no tokens."""
    with_tokens = [ids for ids in texts if ids]
    rows = iter([*runtime.continuation_logits(with_tokens)] if with_tokens else ())
    return [[*next(rows)] if ids else [] for ids in texts]


def score_continuations(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompt: Prompt,
    continuations: Sequence[str],
    *,
    cached: int = 0,
) -> Iterator[list[ScoredText]]:
    """Score continuations of a prompt. Yields a batch at a time, and [] in between, so that each step takes
    little longer than a chunk of a prompt. Only the end of a long prompt is used. The runtime's cache begins
    with the first `cached` tokens of the prompt's head, but not all of it. Raises LLMError for a continuation
    that does not fit the context."""
    lengths = [len(tokenizer.encode(text)) for text in continuations]
    longest = max(lengths)
    space = prompt_space(runtime.context, longest)
    if space < 1:
        raise _too_long(continuations[lengths.index(longest)], longest, 1, runtime.context)
    head, tail = prompt.split(space, tokenizer.bos_ids)
    cached = cached if len(prompt.ids) <= space else 0
    beginning = tokenizer.vocabulary.bytes_of(tail)
    spelled = [tail]
    for text in continuations:
        spelled.append(_spelling(tokenizer, tail, text, beginning + text.encode("utf-8")))
    runtime.begin_prompt(cached, len(head), prompt.written)
    first = runtime.prefill(head[cached:])
    weights = [
        math.log(CONTINUE_WORD_FACTOR) if prompt.in_word and begins_with_letter(text.encode("utf-8")) else 0.0
        for text in continuations
    ]
    of_prompt = 0.0
    for batch in padded_batches([*map(len, spelled)], range(len(spelled)), BATCH_TOKENS):
        searches = [TokenizationSearch(runtime, tokenizer.vocabulary, head, spelled[i]) for i in batch]
        for search, rows in zip(searches, _logits_after(runtime, [spelled[i] for i in batch]), strict=True):
            search.begin([first, *rows])
        for _ in _run_together(runtime, searches):
            yield []
        # the log probability, after the head, of all token sequences that begin with the bytes of `spelled`
        totals = dict(zip(batch, (search.log_total for search in searches), strict=True))
        if totals.pop(0, None) is not None:
            of_prompt = FirstToken(searches[0], head, prompt.in_word, 0.0).log_total
        yield [
            ScoredText(continuations[i - 1], total + weights[i - 1] - of_prompt, lengths[i - 1])
            for i, total in totals.items()
        ]


def prompt_space(context: int, longest: int) -> int:
    """Return the number of tokens of a prompt that fit before continuations of at most `longest` tokens."""
    return context - longest - 1  # minus one: other tokenizations may be longer


def _run_together(runtime: Runtime, searches: Sequence[TokenizationSearch]) -> Iterator[None]:
    """Run searches with the same head, which is in the runtime's cache, like `TokenizationSearch.run`; yields
    after each batch."""
    max_evaluations = default_evaluations(runtime)
    while True:
        expanded = [
            (search, path) for search in searches if (path := search.next_path(max_evaluations, NEGLIGIBLE))
        ]
        if not expanded:
            return
        for batch in padded_batches([len(path) for _, path in expanded], range(len(expanded)), BATCH_TOKENS):
            paths = [expanded[i][1] for i in batch]
            for i, rows in zip(batch, runtime.continuation_logits(paths), strict=True):
                expanded[i][0].expand(rows[-1])
            yield


def _spelling(tokenizer: Tokenizer, tail: list[int], text: str, data: bytes) -> list[int]:
    """Return tokens that spell `data`, the bytes of a prompt's tail and a text: the tokenizer's own tokens if
    possible (SentencePiece may prepend a space, which is not part of the text), or else the longest tokens
    from left to right."""
    whole = data.decode("utf-8", "replace")  # the tail may begin inside a character
    for ids in (tokenizer.encode(whole), [*tail, *tokenizer.encode(text)]):
        if tokenizer.vocabulary.bytes_of(ids) == data:
            return ids
    return tokenizer.vocabulary.spell(data)


def _too_long(text: str, tokens: int, prompt: int, context: int) -> LLMError:
    return LLMError(
        f"the choice {brief(text)} has {tokens:,} tokens after {prompt:,} of the prompt, and the context "
        f"length is {context:,}; use a shorter choice"
    )
