"""Probabilities of given texts, of any number of tokens each: as the whole answer in a conversation, or as the
continuation of a text.

An answer is tokenized as in training, and closed: its probability is that of its tokens, times that of any token that
ends an answer. A continuation may go on, so its probability is that of all texts that begin with prompt + continuation,
given those that begin with the prompt. It is summed over tokenizations, as in token_healing.py: the text's own and the
most likely others, including tokens that cross the prompt's end or the continuation's. V = vocabulary size.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llmcli.data.tokenizers.tokenizer import Tokenizer, check_unicode
from llmcli.errors import LLMError, brief, usage
from llmcli.generation.token_healing import NEGLIGIBLE, Prompt, TokenizationSearch, default_evaluations
from llmcli.models.logits import log_softmax, softmax
from llmcli.models.runtime import Doubles, Runtime

UNLIKELY = 0.01  # relative to the most likely answer


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
    """Return the choices with their probabilities, which sum to 1, most likely first; ties keep their order."""
    probabilities = softmax(np.array([choice.logprob for choice in scored])).tolist()
    return sorted(zip(scored, probabilities, strict=True), key=lambda pair: -pair[1])


def score_answers(
    runtime: Runtime, tokenizer: Tokenizer, ids: Sequence[int], answers: Sequence[str], end_ids: Collection[int]
) -> Iterator[ScoredText]:
    """Score each of some answers after the tokens `ids`, given that one of `end_ids` follows it. The runtime's cache
    begins with all of `ids` except the last. Raises LLMError for an answer that does not fit the context."""
    for text in answers:
        yield _score_answer(runtime, tokenizer, ids, text, end_ids)[0]


def score_likely_answers(
    runtime: Runtime, tokenizer: Tokenizer, ids: Sequence[int], answers: Sequence[str], end_ids: Collection[int]
) -> Iterator[ScoredText]:
    """Like `score_answers`, most likely beginnings first, without answers that do not fit the context, or that are less
    than UNLIKELY times as likely as the best one: an answer is scored only while its bound, the probability of its
    beginning, leaves that open."""
    encoded = [tokenizer.encode(text) for text in answers]
    runtime.rewind(len(ids) - 1)
    first = log_softmax(runtime.logits(ids[-1:])[0][: len(tokenizer.token_bytes)])
    space, best = runtime.context - len(ids), -math.inf
    bounds = np.array([first[answer[0]] if len(answer) <= space else -math.inf for answer in encoded])
    while bounds[chosen := int(bounds.argmax())] > best + math.log(UNLIKELY):
        scored, logprobs = _score_answer(runtime, tokenizer, ids, answers[chosen], end_ids)
        known = encoded[chosen]
        totals = np.cumsum([0.0, *(row[token] for row, token in zip(logprobs, known, strict=False))])
        for i, answer in enumerate(encoded):
            n = next((n for n, pair in enumerate(zip(answer, known, strict=False)) if pair[0] != pair[1]), None)
            n = min(len(answer), len(known)) if n is None else n
            bounds[i] = min(bounds[i], totals[n] + (logprobs[n][answer[n]] if n < len(answer) else 0.0))
        bounds[chosen], best = -math.inf, max(best, scored.logprob)
        yield scored


def _score_answer(
    runtime: Runtime, tokenizer: Tokenizer, ids: Sequence[int], text: str, end_ids: Collection[int]
) -> tuple[ScoredText, list[Doubles]]:
    """Return the score, and the log probabilities [V] of the next token after `ids` and each token of the answer."""
    answer, V = tokenizer.encode(text), len(tokenizer.token_bytes)
    if len(ids) + len(answer) > runtime.context:
        raise _too_long(text, len(answer), len(ids), runtime.context)
    runtime.rewind(len(ids) - 1)
    logprobs = [log_softmax(row[:V]) for row in runtime.logits([ids[-1], *answer])]
    total = math.fsum(float(row[token]) for row, token in zip(logprobs, answer, strict=False))
    end = float(np.logaddexp.reduce(logprobs[-1][list(end_ids)]))
    return ScoredText(text, total + end, len(answer) + 1), logprobs


def score_continuations(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompt: Prompt,
    continuations: Sequence[str],
    *,
    reserve: int = 0,
    cached: int = 0,
) -> Iterator[ScoredText]:
    """Score each of some continuations of a prompt. Of a long prompt, only the end is used, so that `reserve` tokens of
    the context stay free. The runtime's cache begins with the first `cached` tokens of the prompt's head, but not all
    of it. Raises LLMError for a continuation that does not fit the context."""
    lengths = [len(tokenizer.encode(text)) for text in continuations]
    longest = max(lengths)
    space = runtime.context - reserve - longest - 1  # one more, since other tokenizations may be longer
    if space < 1:
        raise _too_long(continuations[lengths.index(longest)], longest, 1, runtime.context)
    head, tail = prompt.split(space, tokenizer.bos_ids)
    cached = cached if len(prompt.ids) <= space else 0
    beginning = b"".join(tokenizer.token_bytes[token] for token in tail)

    def log_probability(spelling: list[int]) -> float:
        """Return the log probability, after the head, of all token sequences that begin with the spelling's bytes."""
        nonlocal cached
        search = TokenizationSearch(runtime, tokenizer.vocabulary, head, spelling, cached, prompt.written)
        search.run(default_evaluations(runtime), NEGLIGIBLE)
        cached = len(head) - 1
        return search.log_total

    of_prompt = log_probability(tail)
    for text, length in zip(continuations, lengths, strict=True):
        data = beginning + text.encode("utf-8")
        yield ScoredText(text, log_probability(_spelling(tokenizer, tail, text, data)) - of_prompt, length)


def _spelling(tokenizer: Tokenizer, tail: list[int], text: str, data: bytes) -> list[int]:
    """Return tokens that spell `data`, the bytes of a prompt's tail and a text: in the tokenizer's own way if possible
    (SentencePiece may put a space before, which is no part of the text), or else the longest tokens from the left."""
    whole = data.decode("utf-8", "replace")  # the tail may begin inside a character
    for ids in (tokenizer.encode(whole), [*tail, *tokenizer.encode(text)]):
        if b"".join(tokenizer.token_bytes[token] for token in ids) == data:
            return ids
    return tokenizer.vocabulary.spell(data)


def _too_long(text: str, tokens: int, prompt: int, context: int) -> LLMError:
    return LLMError(
        f"the choice {brief(text)} has {tokens:,} tokens after {prompt:,} of the prompt, and the context length is "
        f"{context:,}; use a shorter one"
    )
