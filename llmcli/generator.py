"""Prompt -> pieces of text. The one loop that every caller consumes: generate, training samples, tests.

Whatever runs the graph comes in as a Runtime; numpy's is runtime.py, torch's is in model.py.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.errors import LLMError
from llmcli.sampler import Sampler
from llmcli.tokenizer import StreamDecoder, Tokenizer


class Runtime(Protocol):
    """A model that takes tokens in and says what comes next."""

    context: int  # tokens it has room for
    length: int  # tokens it has taken in

    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]: ...
    def step(self, token: int) -> NDArray[np.float32]: ...
    def rewind(self, length: int = 0) -> None: ...


@dataclass(frozen=True)
class Piece:
    """A token and the text that it completes; the last piece has no token, the rest of the text and the reason."""

    id: int | None
    text: str  # "" while a character is incomplete; all pieces joined are the whole text
    logprob: float  # natural logarithm of the model's own probability, whatever the sampling
    finish_reason: str | None = None  # "stop" (a stop text, or the end of the document) or "length"


@dataclass(frozen=True)
class Prompt:
    """A prompt as tokens up to its last word, and that word's bytes, which the model spells itself.

    A text's end cuts through tokens: after "I like to ea" the model knows " eat", not " ea" and then "t"; Japanese is
    cut anywhere. So the last word is taken back, and of the tokens that agree with it the model chooses.
    """

    ids: list[int]
    tail: bytes

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer, *, literal: bool = False) -> "Prompt":
        """A `literal` one is all tokens, as other programs take it. Raises LLMError for an empty prompt."""
        if not text:
            raise LLMError('the prompt is empty; give some text to go on from: llm generate "Once upon a time"')
        head, tail = (text, "") if literal else tokenizer.split_last(text)
        # a text begins like a line, where nothing else begins it
        ids = tokenizer.start_ids + tokenizer.encode(head or ("" if tokenizer.start_ids else "\n"))
        return cls(ids, tail.encode("utf-8"))


def agrees(token: bytes, tail: bytes) -> bool:
    """Whether a token can stand where `tail` must come next.

    >>> [agrees(t, b" ea") for t in (b" eat", b" e", b" to", b"")]
    [True, True, False, False]
    """
    return bool(token) and (token.startswith(tail) or tail.startswith(token))


def generate(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: SamplingConfig,
    *,
    literal: bool = False,
    sampler: Sampler | None = None,
) -> Iterator[Piece]:
    """Continue a prompt, piece by piece. Never half a character, never any of a stop text.

    Of a prompt that is not `literal` the last word may be spelled anew and grow (see Prompt). Of a prompt longer than
    the context the end is kept. When the context is full, its newer half is kept and the text goes on. Another
    `sampler` than that of `sampling` may choose. Raises LLMError for an empty prompt.
    """
    start = Prompt.of(prompt, tokenizer, literal=literal)
    pieces = _tokens(runtime, tokenizer, start, sampling, sampler or Sampler(sampling))
    return _until(pieces, sampling.stop) if sampling.stop else pieces


def _tokens(
    runtime: Runtime, tokenizer: Tokenizer, start: Prompt, sampling: SamplingConfig, sampler: Sampler
) -> Iterator[Piece]:
    ids, tail, decoder = start.ids, start.tail, StreamDecoder()
    runtime.rewind()
    reason, count = "length", 0
    while count < sampling.max_tokens:
        logits = logits_after(runtime, ids)[: len(tokenizer.token_bytes)]  # a model may have rows that no token uses
        if tail:
            logits = np.where(agreeing(tokenizer, tail), logits, np.float32(-np.inf))
        token, logprob = sampler(logits, ids if sampling.repetition_penalty != 1 else ())
        if token in tokenizer.end_ids:
            reason = "stop"
            break
        ids.append(token)
        data = tokenizer.token_bytes[token]
        chosen = len(data) > len(tail) or not tail  # else it only spells the prompt
        new, tail = data[len(tail) :], tail[len(data) :]
        if chosen:
            count += 1
            yield Piece(token, decoder.feed(new), logprob)
    yield Piece(None, decoder.finish(), 0.0, reason)


def agreeing(tokenizer: Tokenizer, tail: bytes) -> NDArray[np.bool_]:
    """[V]: which tokens can stand where `tail` must come next."""
    return np.fromiter((agrees(data, tail) for data in tokenizer.token_bytes), bool)


def logits_after(runtime: Runtime, ids: Sequence[int]) -> NDArray[np.float32]:
    """The logits [V] after tokens, of which the runtime has taken in all but the last, or none.

    Of more than the context the end is taken; when the context is full, its newer half is kept.
    """
    if runtime.length == 0:
        return runtime.prefill(ids[-runtime.context :])
    if runtime.length < runtime.context:
        return runtime.step(ids[-1])
    runtime.rewind()
    return runtime.prefill(ids[-max(1, runtime.context // 2) :])


def _until(pieces: Iterator[Piece], stops: Sequence[str]) -> Iterator[Piece]:
    """The pieces before the first stop text; a piece waits while its text could be the beginning of one."""
    waiting: deque[Piece] = deque()
    for piece in pieces:
        waiting.append(piece)
        text = "".join(p.text for p in waiting)
        found = min((at for stop in stops if (at := text.find(stop)) >= 0), default=-1)
        begun = len(text) if piece.finish_reason else len(text) - _overlap(text, stops)
        if 0 <= found <= begun:  # else a longer stop that began before may be under way
            for held in waiting:
                if found <= 0:
                    break
                yield replace(held, text=held.text[:found], finish_reason=None)
                found -= len(held.text)
            yield Piece(None, "", 0.0, "stop")
            return
        while waiting and len(waiting[0].text) <= begun:
            begun -= len(waiting[0].text)
            yield waiting.popleft()


def _overlap(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a stop text.

    >>> _overlap("the en", ["end", "stop"])
    2
    """
    longest = max(len(stop) for stop in stops) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in stops)), 0)
