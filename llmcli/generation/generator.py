"""Prompt -> pieces of text. Every caller uses this one loop: generate, chat, samples during training, tests.

The model is any Runtime. The first token after a text comes from first_token.py, which sums over the tokenizations of
the prompt's end; token ids are continued as they are.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmcli.config import SamplingConfig
from llmcli.data.tokenizer import StreamDecoder, Tokenizer
from llmcli.data.vocabulary import START, state_after
from llmcli.generation.first_token import read_prompt
from llmcli.generation.prompt import Prompt
from llmcli.generation.sampler import Sampler, SeenTokens
from llmcli.models.runtime import Array, Runtime


@dataclass(frozen=True)
class Piece:
    """A token and the text that it completes. The last piece has no token, but the reason why generation ended."""

    id: int | None
    text: str  # "" while a character is incomplete; all pieces joined are the whole text
    logprob: float  # natural logarithm of the model's own probability, before any filter; that of the first token is
    # given the prompt's text, summed over its tokenizations
    finish_reason: str | None = None  # "stop" (a stop string, or a token that ends the text) or "length"


def generate(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: SamplingConfig,
    *,
    literal: bool = False,
    sampler: Sampler | None = None,
) -> Iterator[Piece]:
    """Continue a prompt, piece by piece. A piece never holds part of a character or part of a stop string.

    Unless `literal`, the prompt's end may be tokenized differently and its last word may continue (first_token.py). If
    the prompt is longer than the context, its end is used. When the context is full, its newer half is kept and
    generation continues. `sampler` replaces the sampler that `sampling` describes. Raises LLMError for an empty prompt.
    """
    known = Prompt.of(prompt, tokenizer, literal=literal)
    pieces = _pieces(runtime, tokenizer, known, sampling, sampler or Sampler(sampling))
    return _until_stop(pieces, sampling.stop) if sampling.stop else pieces


def continue_ids(
    runtime: Runtime,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    sampling: SamplingConfig,
    *,
    stop_ids: Collection[int] = (),
) -> Iterator[Piece]:
    """Continue token ids, of which the runtime has processed none, or all but the last; otherwise as `generate` does.

    `stop_ids` end the text, as those of the tokenizer do. The repetition penalty does not apply to them: every turn of
    a conversation has them, and an answer that avoids them does not end.
    """
    pieces = _pieces(runtime, tokenizer, list(ids), sampling, Sampler(sampling), stop_ids)
    return _until_stop(pieces, sampling.stop) if sampling.stop else pieces


def _pieces(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompt: Prompt | list[int],
    sampling: SamplingConfig,
    sampler: Sampler,
    stop_ids: Collection[int] = (),
) -> Iterator[Piece]:
    """The pieces, regardless of stop strings."""
    vocabulary, decoder, state, reason = tokenizer.vocabulary, StreamDecoder(), START, "length"
    ids, seen = list(prompt.ids if isinstance(prompt, Prompt) else prompt), SeenTokens()
    if sampling.repetition_penalty != 1:
        seen = SeenTokens(i for i in ids if i not in stop_ids)
    for number in range(sampling.max_tokens):
        if number == 0 and isinstance(prompt, Prompt):
            ids, token, logprob, new_bytes = _first_token(runtime, tokenizer, prompt, sampler, seen)
            next_state = state_after(new_bytes)
        else:
            model_logits = logits_after(runtime, ids)[: len(vocabulary)]  # a model may have rows that no token uses
            allowed = vocabulary.allowed(state)
            logits = model_logits if allowed is None else np.where(allowed, model_logits, np.float32(-np.inf))
            token, logprob = sampler(logits, seen.ids(), model_logits=model_logits)
            new_bytes, next_state = vocabulary.token_bytes[token], vocabulary.state_after(token, state)
        if token in tokenizer.eos_ids or token in stop_ids:
            reason = "stop"
            break
        ids.append(token)
        if sampling.repetition_penalty != 1:
            seen.add(token)
        state = next_state
        yield Piece(token, decoder.feed(new_bytes), logprob)
    yield Piece(None, "", 0.0, reason)  # an incomplete character at the end is dropped


def _first_token(
    runtime: Runtime, tokenizer: Tokenizer, prompt: Prompt, sampler: Sampler, seen: SeenTokens
) -> tuple[list[int], int, float, bytes]:
    """(the tokens before the first one, the first token, its log probability given the prompt's text, the bytes that it
    adds after the prompt)"""
    first = read_prompt(runtime, tokenizer, prompt)
    entry, logprob = sampler(first.logits, seen.ids(), model_logits=first.model_logits, tokens=first.tokens)
    continuations = first.continuations_of(entry)
    chosen = continuations[sampler.choose([continuation.probability for continuation in continuations])]
    return first.process(chosen), chosen.tokens[-1], logprob, chosen.new_bytes


def logits_after(runtime: Runtime, ids: Sequence[int]) -> Array:
    """The logits [V] after `ids`, of which the runtime has processed none, or all but the last.

    If `ids` are more than fit the context, their end is used. When the context is full, its newer half is kept.
    """
    if runtime.length == 0:
        return runtime.prefill(ids[-runtime.context :])
    if runtime.length < runtime.context:
        return runtime.step(ids[-1])
    runtime.rewind()
    return runtime.prefill(ids[-max(1, runtime.context // 2) :])


def _until_stop(pieces: Iterator[Piece], stops: Sequence[str]) -> Iterator[Piece]:
    """The pieces before the first stop string. A piece is held back while its text could be the beginning of one."""
    held: deque[Piece] = deque()
    for piece in pieces:
        held.append(piece)
        text = "".join(p.text for p in held)
        stop = min((at for stop in stops if (at := text.find(stop)) >= 0), default=-1)
        safe = len(text) if piece.finish_reason else len(text) - _overlap(text, stops)  # no stop string begins before
        if 0 <= stop <= safe:  # otherwise a longer stop string, which began earlier, may still be completed
            yield from _cut(held, stop)
            yield Piece(None, "", 0.0, "stop")
            return
        while held and len(held[0].text) <= safe:
            safe -= len(held[0].text)
            yield held.popleft()


def _cut(pieces: deque[Piece], length: int) -> Iterator[Piece]:
    """The pieces of the first `length` characters."""
    for piece in pieces:
        if length <= 0:
            break
        yield replace(piece, text=piece.text[:length], finish_reason=None)
        length -= len(piece.text)


def _overlap(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that is the beginning of a stop string.

    >>> _overlap("the en", ["end", "stop"])
    2
    """
    longest = max(len(stop) for stop in stops) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in stops)), 0)
