"""Prompt -> pieces of text. The one loop that every caller consumes: generate, training samples, tests.

Whatever runs the graph comes in as a Runtime; numpy's is runtime.py, torch's is in model.py. The first token is chosen
from what prompt.py says, which sums over the ways to split the prompt's end into tokens.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.data.tokenizer import StreamDecoder, Tokenizer
from llmcli.data.vocabulary import START, state_after
from llmcli.generation.prompt import Prompt, read
from llmcli.generation.sampler import Sampler, Seen
from llmcli.models.runtime import Runtime


@dataclass(frozen=True)
class Piece:
    """A token and the text that it completes; the last piece has no token and the reason."""

    id: int | None
    text: str  # "" while a character is incomplete; all pieces joined are the whole text
    logprob: float  # natural logarithm of the model's own probability, whatever the sampling; of the first token
    # given the prompt's text, however that is split into tokens
    finish_reason: str | None = None  # "stop" (a stop text, or the end of the document) or "length"


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

    A prompt that is not `literal` may have its last tokens split anew, and its last word may grow (see prompt.py). Of a
    prompt longer than the context the end is kept. When the context is full, its newer half is kept and the text goes
    on. Another `sampler` than that of `sampling` may choose. Raises LLMError for an empty prompt.
    """
    known = Prompt.of(prompt, tokenizer, literal=literal)
    pieces = _tokens(runtime, tokenizer, known, sampling, sampler or Sampler(sampling))
    return _until(pieces, sampling.stop) if sampling.stop else pieces


def _tokens(
    runtime: Runtime, tokenizer: Tokenizer, prompt: Prompt, sampling: SamplingConfig, sampler: Sampler
) -> Iterator[Piece]:
    vocabulary, decoder, state, reason = tokenizer.vocabulary, StreamDecoder(), START, "length"
    ids, seen = list(prompt.ids), Seen()
    if sampling.repetition_penalty != 1:
        seen = Seen(ids)
    for number in range(sampling.max_tokens):
        if number == 0:
            ids, token, logprob, new = _first(runtime, tokenizer, prompt, sampler, seen)
            after = state_after(new)
        else:
            own = logits_after(runtime, ids)[: len(vocabulary)]  # a model may have rows that no token uses
            allowed = vocabulary.allowed(state)
            logits = own if allowed is None else np.where(allowed, own, np.float32(-np.inf))
            token, logprob = sampler(logits, seen.ids(), own=own)
            new, after = vocabulary.token_bytes[token], vocabulary.state_after(token, state)
        if token in tokenizer.end_ids:
            reason = "stop"
            break
        ids.append(token)
        if sampling.repetition_penalty != 1:
            seen.add(token)
        state = after
        yield Piece(token, decoder.feed(new), logprob)
    yield Piece(None, "", 0.0, reason)  # bytes of a character that did not become whole are not written


def _first(
    runtime: Runtime, tokenizer: Tokenizer, prompt: Prompt, sampler: Sampler, seen: Seen
) -> tuple[list[int], int, float, bytes]:
    """(the tokens before the first one, that, its log probability given the prompt's text, what it writes after it)"""
    opening = read(runtime, tokenizer, prompt)
    entry, logprob = sampler(opening.logits, seen.ids(), own=opening.own, tokens=opening.tokens)
    ways = opening.ways_of(entry)
    way = ways[sampler.pick([way.probability for way in ways])]
    return opening.take(way), way.tokens[-1], logprob, way.new


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
