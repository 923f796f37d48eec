"""A request being processed: its prompt in chunks, then token by token. V = vocabulary size."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.generation.choices import ScoredText, prompt_space, score_answers, score_continuations
from llmcli.generation.engine.prefix_cache import Prefix, PrefixCache
from llmcli.generation.engine.requests import (
    Event,
    Finished,
    GenerationRequest,
    OnEvent,
    Started,
    Token,
)
from llmcli.generation.generator import ChosenToken, GeneratedText, Piece, step_with_draft
from llmcli.generation.sampler import Sampler
from llmcli.generation.token_healing import Prompt, last_tokens, read_prompt
from llmcli.models.logits import log_softmax
from llmcli.models.runtime import PREFILL_CHUNK, Array, Doubles, Runtime

TokenOf = Callable[[int], tuple[int | None, bytes]]  # entry -> (token, its bytes)


class GeneratedSequence:
    """The tokens of a request, and the runtime that processes them."""

    def __init__(
        self,
        request: GenerationRequest,
        on_event: OnEvent,
        opened: "Future[tuple[Runtime, Tokenizer]]",
        group: object = None,
    ) -> None:
        """Without a `group`, the request forms its own group."""
        self.request = request
        self.opened = opened
        self.group = self if group is None else group
        self.is_cancelled = self.is_paused = False  # set from any thread
        self.is_aside = self.is_done = False
        self.runtime: Runtime | None = None
        self.max_bytes = 0  # maximum memory of the KV cache; 0 before `open`
        self.waits_for_step = False  # the prompt is processed, and the next step processes one token
        self._on_event = on_event
        self._alternatives: deque[tuple[Token, ...]] = deque()  # for tokens whose pieces are held back
        self._prompt: list[Token] = []
        self._choices: Iterator[list[ScoredText]] | None = None  # choices that are still to be scored
        self._scored: list[ScoredText] = []

    # ---- the prompt

    def open(self) -> None:
        """Prepare for the model, which is loaded. The prompt has at least one token; a prompt to score fits
        the context."""
        prompt, sampling = self.request.prompt, self.request.sampling
        runtime, tokenizer = self.opened.result()
        ids = prompt.ids
        self.text = GeneratedText(tokenizer, ids, sampling, self.request.stop_ids, self.request.grammar)
        self._tokenizer = self.text.tokenizer
        self._context = runtime.context
        self._token_bytes = tokenizer.vocabulary.token_bytes
        # tokens to process before the next one can be chosen
        self._pending: Sequence[int] = prompt.split(self._context, tokenizer.bos_ids)[0]
        self._cached_ids: list[int] = []  # the tokens in the cache
        self._is_shifted = False  # whether the cache depends on tokens that it no longer holds
        tokens = min(self._context, len(ids) + sampling.max_tokens)
        self.max_bytes = tokens * runtime.cache_bytes_per_token

    def begin(self, prefixes: PrefixCache, live: Iterable[Prefix]) -> None:
        """Get a runtime whose cache holds the longest part of the prompt found in any kept or `live`
        cache."""
        # without the last token, because its logits are needed; empty if the prompt's log probabilities are
        # requested
        shareable = () if self.request.prompt_logprobs else self._pending[:-1]
        shared = prefixes.take(self.request.model, shareable, live)
        self.runtime, self._shared = shared or (self.opened.result()[0].fork(), 0)
        # tokens generated for an earlier request are part of this prompt
        self.runtime.begin_prompt(self._shared, len(self._pending), self.request.prompt.written)
        self._cached_ids = list(self._pending[: self._shared])
        self._pending = self._pending[self._shared :]

    def advance(self) -> None:
        """Process a chunk of the tokens before the next token; after the last chunk, choose the next
        token."""
        is_last = len(self._pending) <= PREFILL_CHUNK
        scores_prompt = self.request.prompt_logprobs
        max_tokens = self.request.sampling.max_tokens
        if not max_tokens and not scores_prompt:
            self._start()
            self._finish("length")
            return
        if is_last and self.request.choices:
            self._score_choice()
            return
        prompt = self.request.prompt
        if is_last and (prompt.tail or prompt.in_word):
            self._read_end(prompt)
            return
        chunk = self._pending[:PREFILL_CHUNK]
        self._pending = self._pending[PREFILL_CHUNK:]
        if scores_prompt:
            logits = self._score(chunk)
        elif is_last:
            logits = self.live_runtime.prefill(chunk)
        else:
            self.live_runtime.read(chunk)
        self._cached_ids += chunk
        if is_last:
            self._start()
            if max_tokens:
                self._add(logits)
            else:
                self._finish("length")

    def _score_choice(self) -> None:
        """Score a batch of the choices after the prompt; after the last one, choose."""
        request = self.request
        runtime = self.live_runtime
        cached = len(self._cached_ids)
        ids = [*self._cached_ids, *self._pending]
        if self._choices is None:
            if request.stop_ids:
                if len(ids) > cached + 1:
                    runtime.read(ids[cached:-1])
                self._choices = score_answers(
                    runtime, self._tokenizer, ids, request.choices, request.stop_ids
                )
            else:
                self._choices = score_continuations(
                    runtime, self._tokenizer, request.prompt, request.choices, cached=cached
                )
        self._scored += next(self._choices)
        if len(self._scored) == len(request.choices):
            runtime.rewind(cached)
            self._choose()

    def _choose(self) -> None:
        """Choose from the scored choices by the sampling settings, as if they were tokens."""
        logprobs = log_softmax(np.array([choice.logprob for choice in self._scored], np.float32))
        chosen, _ = Sampler(self.request.sampling)(logprobs.astype(np.float32))
        data = [choice.text.encode("utf-8") for choice in self._scored]
        others = self._most_likely(logprobs, lambda i: (None, data[i]))
        self._start()
        # without the one that ends it
        self.text.tokens = self._scored[chosen].tokens - bool(self.request.stop_ids)
        self._send(Token(None, data[chosen], float(logprobs[chosen]), others, self._scored[chosen].text))
        self._finish("stop")

    def _score(self, chunk: Sequence[int]) -> Array:
        """Process tokens of the prompt with their log probabilities; return the logits [V] after the last."""
        rows = self.live_runtime.logits(chunk)
        if not self._cached_ids:
            self._prompt.append(Token(chunk[0], self._token_bytes[chunk[0]], None))
        following = [*chunk[1:], *self._pending[:1]]
        for row, token in zip(rows, following, strict=False):
            logprobs = log_softmax(row[: len(self._token_bytes)])
            others = self._most_likely(logprobs)
            self._prompt.append(Token(token, self._token_bytes[token], float(logprobs[token]), others))
        return rows[-1]

    def _read_end(self, prompt: Prompt) -> None:
        """Process the end of a prompt with several tokenizations, and choose the first token."""
        cached = len(self._cached_ids)
        first = read_prompt(self.live_runtime, self._tokenizer, prompt, cached=cached)
        self._add_alternatives(first.model_logits, first.token_of)
        pieces = self.text.add_first(first)
        ids = self.text.ids if self.text.last_token else self.text.ids[:-1]
        self._start(ids)
        self._cached_ids = last_tokens(ids, self.live_runtime.length, self._tokenizer.bos_ids)
        self._emit(pieces)

    @property
    def live_runtime(self) -> Runtime:
        assert self.runtime is not None, "call `begin` first"
        return self.runtime

    # ---- the text

    @property
    def next_token(self) -> int:
        """The token to process in the next step."""
        return self.text.ids[-1]

    def prefix(self) -> Prefix | None:
        """Return the cache with its tokens, or None if nothing can continue it."""
        if self.runtime is None or self._is_shifted:
            return None
        ids = np.array(self._cached_ids[: self.runtime.length], np.int64)
        return Prefix(self.request.model, self.runtime, ids, self.runtime.cache_bytes)

    def step(self) -> None:
        """Process the next token of this text alone, with a draft of the tokens after it."""
        first = len(self.text.ids) - 1
        steps = step_with_draft(self.live_runtime, self.text)
        self._cached_ids += self.text.ids[first : first + len(steps)]
        for logits, _ in steps:
            self._add_alternatives(logits)
        self._emit([piece for _, pieces in steps for piece in pieces])

    def finish_step(self, logits: Array, choice: ChosenToken | None) -> None:
        """Receive the logits [V] after the token of the last step, and the token chosen from them, if it is
        already chosen."""
        self._cached_ids.append(self.next_token)
        self._add(logits, choice)

    def _add(self, logits: Array, choice: ChosenToken | None = None) -> None:
        """Choose the next token from the logits [V] after all processed tokens, unless it is already
        chosen."""
        self._add_alternatives(logits)
        self._emit(self.text.append(choice or self.text.choose(logits)))

    def _token_of(self, token: int) -> tuple[int | None, bytes]:
        return token, self._token_bytes[token]

    def _add_alternatives(self, logits: Array, token_of: TokenOf | None = None) -> None:
        logits = logits if token_of else logits[: len(self._token_bytes)]  # rows that no token uses
        is_asked = self.request.top_logprobs > 0
        self._alternatives.append(self._most_likely(log_softmax(logits), token_of) if is_asked else ())

    def _most_likely(self, logprobs: Doubles, token_of: TokenOf | None = None) -> tuple[Token, ...]:
        """Return the requested number of tokens, most likely first, from a Sampler's log probabilities
        [V]."""
        describe = token_of or self._token_of
        return tuple(
            Token(*describe(i), float(logprobs[i]))
            for i in _highest(logprobs, self.request.top_logprobs)
            if logprobs[i] > -np.inf
        )

    def _prepare(self) -> None:
        """Prepare the next step, for which a full context needs space."""
        if self.live_runtime.length == self._context:
            self.live_runtime.shift(self.text.ids[:-1])
            self._is_shifted = True
        self.waits_for_step = True

    # ---- events

    def fail(self, error: Exception) -> None:
        self.runtime = None  # its cache may be incomplete
        self.end()
        self._send(error)

    def _finish(self, reason: str) -> None:
        self.end()
        self._send(Finished(reason, self.text.tokens))

    def end(self) -> None:
        self.is_done = True
        self.waits_for_step = False

    def _start(self, ids: Sequence[int] | None = None) -> None:
        before = tuple(self.text.ids if ids is None else ids)
        space = self._context
        if self._scored and not self.request.stop_ids:  # continuations
            space = prompt_space(space, max(scored.tokens for scored in self._scored))
        prompt_tokens = min(len(self.request.prompt.ids), space)
        self._send(Started(prompt_tokens, self._shared, tuple(self._prompt), before))

    def _emit(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.id is not None:
                alternatives = self._alternatives.popleft()
                self._send(Token(piece.id, piece.new_bytes, piece.logprob, alternatives, piece.text))
        if self.text.finish_reason is None:
            self._prepare()
            return
        if self.text.last_token and len(self._alternatives) == 1:  # no stop string cut the text earlier
            token, logprob = self.text.last_token
            self._send(Token(token, b"", logprob, self._alternatives.pop(), ends_text=True))
        self._finish(self.text.finish_reason)

    def _send(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:  # the receiver is gone, for example an event loop that has ended
            self.is_cancelled = True


def _highest(logprobs: Doubles, count: int) -> list[int]:
    """Return the indices of the highest values in order; ties keep their order, as in greedy decoding."""
    if not count:
        return []
    candidates = np.arange(len(logprobs))
    if count < len(logprobs):
        candidates = np.flatnonzero(logprobs >= np.partition(logprobs, -count)[-count])
    return candidates[np.argsort(-logprobs[candidates], kind="stable")[:count]].tolist()
