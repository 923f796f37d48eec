"""Prompt -> pieces of text. Every caller uses this one loop: generate, chat, samples during training, tests.

The model is any Runtime. The first token after a text comes from first_token.py, which sums over the tokenizations of
the prompt's end; token ids are continued as they are.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmcli.config import SamplingConfig
from llmcli.data.tokenizers.tokenizer import StreamDecoder, Tokenizer
from llmcli.data.tokenizers.vocabulary import START, Vocabulary, state_after
from llmcli.generation.first_token import FirstToken, read_prompt
from llmcli.generation.prompt import Prompt
from llmcli.generation.sampler import Sampler, SeenTokens
from llmcli.models.ngram_runtime import recompute
from llmcli.models.runtime import Array, Runtime

Choice = tuple[int, float]  # a token, and its log probability under the model


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
    return _pieces(runtime, tokenizer, known, sampling, sampler or Sampler(sampling))


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
    return _pieces(runtime, tokenizer, list(ids), sampling, Sampler(sampling), stop_ids)


def _pieces(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompt: Prompt | list[int],
    sampling: SamplingConfig,
    sampler: Sampler,
    stop_ids: Collection[int] = (),
) -> Iterator[Piece]:
    """The pieces of a text, whose tokens are processed one by one."""
    ids = prompt.ids if isinstance(prompt, Prompt) else prompt
    text = GeneratedText(tokenizer, ids, sampling, sampler=sampler, stop_ids=stop_ids)
    if not sampling.max_tokens:
        yield Piece(None, "", 0.0, "length")
        return
    if isinstance(prompt, Prompt):
        yield from text.add_first(read_prompt(runtime, tokenizer, prompt))
    while text.finish_reason is None:
        yield from text.add(logits_after(runtime, text.ids))


class GeneratedText:
    """A text that is being generated: it is given the logits after its last token, and chooses the next token.

    It knows when the text ends, and it does not run the model: `generate` gives it the logits of one runtime, a server
    those of many texts that are processed together.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        ids: Sequence[int],
        sampling: SamplingConfig,
        *,
        sampler: Sampler | None = None,
        stop_ids: Collection[int] = (),
    ) -> None:
        """`ids` are the tokens of the prompt; the other arguments are those of `continue_ids`. `sampling.max_tokens`
        must be at least 1."""
        self.ids = list(ids)  # of the prompt and of the text; a token that ends the text is not one of them
        self.tokens = 0  # new ones
        self.finish_reason: str | None = None
        self.last_token: Choice | None = None  # the token that ended the text, and its log probability
        self.first_bytes = b""  # of the first token after a prompt, those that follow the prompt; set by `add_first`
        self._tokenizer, self.sampling, self._stop_ids = tokenizer, sampling, stop_ids
        self._sampler = sampler or Sampler(sampling)
        self._decoder, self._state = StreamDecoder(), START
        self._penalizes = sampling.repetition_penalty != 1
        self._seen = SeenTokens(i for i in ids if i not in stop_ids) if self._penalizes else SeenTokens()
        self._stops = _StopStrings(sampling.stop) if sampling.stop else None

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the model."""
        return self._tokenizer.vocabulary

    @property
    def may_choose_together(self) -> bool:
        """Whether the next token depends on nothing but temperature and min-p, as choice_batch.py requires."""
        sampling = self.sampling
        filters = sampling.top_k > 0 or sampling.top_p < 1
        return not self._penalizes and not (filters and sampling.temperature)

    def draw(self, logits: Array) -> int:
        """An index, drawn from the softmax of the logits of tokens that may be next."""
        return self._sampler.draw(logits)

    @property
    def allowed(self) -> NDArray[np.bool_] | None:
        """[V]: mask of the tokens that may be next; None if all may be."""
        return self.vocabulary.allowed(self._state)

    def add(self, logits: Array, choice: Choice | None = None) -> list[Piece]:
        """Choose a token from the logits [V] after `ids`, unless choice_batch.py made the `choice` already. The pieces
        that this completes; the last one of the text has the finish reason."""
        token, logprob = choice or self._choose(logits)
        vocabulary = self.vocabulary
        return self._append(token, logprob, vocabulary.token_bytes[token], vocabulary.state_after(token, self._state))

    def _choose(self, logits: Array) -> Choice:
        model_logits = logits[: len(self.vocabulary)]  # a model may have rows that no token uses
        allowed = self.allowed
        masked = model_logits if allowed is None else np.where(allowed, model_logits, np.float32(-np.inf))
        return self._sampler(masked, self._seen.ids(), model_logits=model_logits)

    def add_first(self, first: FirstToken) -> list[Piece]:
        """Choose the first token after a prompt, and bring the runtime to the state before it; otherwise as `add`."""
        entry, logprob = self._sampler(
            first.logits, self._seen.ids(), model_logits=first.model_logits, tokens=first.tokens
        )
        continuations = first.continuations_of(entry)
        chosen = continuations[self._sampler.choose([continuation.probability for continuation in continuations])]
        self.ids, self.first_bytes = first.process(chosen), chosen.new_bytes
        return self._append(chosen.tokens[-1], logprob, chosen.new_bytes, state_after(chosen.new_bytes))

    def _append(self, token: int, logprob: float, new_bytes: bytes, state: int) -> list[Piece]:
        pieces = []
        if token in self._tokenizer.eos_ids or token in self._stop_ids:
            self.finish_reason, self.last_token = "stop", (token, logprob)
        else:
            self.ids.append(token)
            self.tokens += 1
            self._state = state
            if self._penalizes:
                self._seen.add(token)
            pieces.append(Piece(token, self._decoder.feed(new_bytes), logprob))
            if self.tokens == self.sampling.max_tokens:
                self.finish_reason = "length"
        if self.finish_reason:
            pieces.append(Piece(None, "", 0.0, self.finish_reason))  # an incomplete character at the end is dropped
        return pieces if self._stops is None else self._before_stop(self._stops, pieces)

    def _before_stop(self, stops: "_StopStrings", pieces: list[Piece]) -> list[Piece]:
        safe = [piece for piece in pieces for piece in stops.feed(piece)]
        if safe and safe[-1].finish_reason:
            self.finish_reason = safe[-1].finish_reason
        return safe


def logits_after(runtime: Runtime, ids: Sequence[int]) -> Array:
    """The logits [V] after `ids`, of which the runtime has processed none, or all but the last."""
    length, new = next_input(ids, runtime.length, runtime.context)
    if length:
        return runtime.step(new[0])
    if runtime.length:
        recompute(runtime, len(new) - 1)
    return runtime.prefill(new)


def next_input(ids: Sequence[int], length: int, context: int) -> tuple[int, Sequence[int]]:
    """(how many tokens of the cache to keep, the tokens to process), so that the logits after `ids` follow.

    The cache holds `length` tokens, none of `ids` or all but the last. If `ids` are more than fit the context, their
    end is used. When the context is full, its newer half is kept.

    >>> next_input([1, 2, 3, 4, 5], 0, 4), next_input([1, 2, 3], 2, 4), next_input([1, 2, 3, 4, 5], 4, 4)
    ((0, [2, 3, 4, 5]), (2, [3]), (0, [4, 5]))
    """
    if length == 0:
        return 0, ids[-context:]
    if length < context:
        return length, ids[-1:]
    return 0, ids[-max(1, context // 2) :]


class _StopStrings:
    """Holds back the pieces of a text that a stop string may follow, or begin in."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held: deque[Piece] = deque()

    def feed(self, piece: Piece) -> list[Piece]:
        """The pieces that no stop string can be part of any more; at a stop string, those before it and the last one
        with the finish reason, after which nothing may be fed."""
        self._held.append(piece)
        text = "".join(p.text for p in self._held)
        stop = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        # no stop string begins before
        safe = len(text) if piece.finish_reason else len(text) - _overlap(text, self._stops)
        if 0 <= stop <= safe:  # otherwise a longer stop string, which began earlier, may still be completed
            return [*_cut(self._held, stop), Piece(None, "", 0.0, "stop")]
        complete = []
        while self._held and len(self._held[0].text) <= safe:
            safe -= len(self._held[0].text)
            complete.append(self._held.popleft())
        return complete


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
