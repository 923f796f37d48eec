"""One request while it is processed: its prompt in chunks, then token by token. Events tell what becomes of it.

It has a runtime of its own, but does not decide when it runs: engine.py does.
"""

from collections import deque
from collections.abc import Sequence as Ids
from dataclasses import dataclass

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.generation.generator import Choice, GeneratedText, Piece, next_input
from llmcli.generation.token_healing import Prompt, read_prompt
from llmcli.models.ngram_runtime import recompute
from llmcli.models.runtime import PREFILL_CHUNK, Array, Runtime, read
from llmcli.server.engine import logprobs
from llmcli.server.engine.requests import (
    Alternative,
    Event,
    Failed,
    Finished,
    OnEvent,
    PromptToken,
    Request,
    Started,
    Token,
)


@dataclass
class Counts:
    """Tokens and requests since the engine started."""

    requests: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompts, those whose keys and values were reused
    tokens: int = 0  # generated


class Sequence:
    """The tokens of one request, and the runtime that processes them."""

    def __init__(self, request: Request, on_event: OnEvent, counts: Counts) -> None:
        self.request = request
        self.cancelled = self.is_paused = False  # set from any thread
        self.is_open = self.is_done = self.has_failed = False
        self.runtime: Runtime | None = None
        self.max_bytes = 0  # memory that the KV cache can need
        self.waits_for_step = False  # the prompt is processed, and one token is to be processed next
        self._on_event, self._counts = on_event, counts
        self._alternatives: deque[tuple[Alternative, ...]] = deque()  # of the tokens whose pieces are held back
        self._prompt: list[PromptToken] = []
        self._first_bytes = b""  # of the first token, those that follow a prompt whose last word goes on

    # ---- the prompt

    def open(self, tokenizer: Tokenizer, context: int, bytes_per_token: int) -> None:
        """Prepare for a model. Raises LLMError for a prompt that it cannot process."""
        prompt, sampling = self.request.prompt, self.request.sampling
        self._tokenizer, self._context = tokenizer, context
        self._token_bytes = tokenizer.vocabulary.token_bytes
        ids = prompt.ids if isinstance(prompt, Prompt) else list(prompt)
        _check_ids(ids, len(self._token_bytes))
        self.prompt_length = len(ids)
        if self.request.prompt_logprobs and len(ids) > context:
            raise LLMError(
                f"the prompt has {len(ids):,} tokens, and the context length is {context:,}; use a shorter prompt"
            )
        head = prompt.split(context)[0] if isinstance(prompt, Prompt) else ids[-context:]
        self._text = GeneratedText(tokenizer, ids, sampling, stop_ids=self.request.stop_ids)
        self._pending: Ids[int] = head  # tokens to process before the next one can be chosen
        self._held: list[int] = []  # tokens in the cache
        self._is_started = False
        self.max_bytes = min(context, len(ids) + sampling.max_tokens) * bytes_per_token
        self.is_open = True

    @property
    def shareable_ids(self) -> Ids[int]:
        """The tokens that a cache may hold already: not the last one, whose logits are needed."""
        return () if self.request.prompt_logprobs else self._pending[:-1]

    def begin(self, runtime: Runtime, cached: int) -> None:
        """Process the prompt with this runtime, whose cache holds its first `cached` tokens."""
        self.runtime, self._cached = runtime, cached
        self._held = list(self._pending[:cached])
        self._pending = self._pending[cached:]

    def advance(self) -> None:
        """Process a chunk of what comes before the next token; after the last chunk, choose it."""
        is_last = len(self._pending) <= PREFILL_CHUNK
        if not self.request.sampling.max_tokens and not self.request.prompt_logprobs:
            self._start()
            self._finish("length")
            return
        if is_last and isinstance(self.request.prompt, Prompt) and not self._is_started:
            self._read_end(self.request.prompt)
            return
        chunk, self._pending = self._pending[:PREFILL_CHUNK], self._pending[PREFILL_CHUNK:]
        if not is_last and (not self.request.prompt_logprobs or self._is_started):
            read(self.live_runtime, chunk)
            self._held += chunk
            return
        logits = self._process(chunk)
        if is_last:
            self._start()
            if self.request.sampling.max_tokens:
                self.add(logits)
            else:
                self._finish("length")

    def _process(self, chunk: Ids[int]) -> Array:
        """Process tokens; the logits [V] after the last."""
        if not self.request.prompt_logprobs or self._is_started:
            logits = self.live_runtime.prefill(chunk)
        else:
            rows = self.live_runtime.logits(chunk)
            if not self._held:
                self._prompt.append(PromptToken(chunk[0], self._token_bytes[chunk[0]], None))
            following = [*chunk[1:], *self._pending[:1]]
            count = self.request.top_logprobs
            self._prompt += logprobs.prompt_tokens(rows[: len(following)], following, self._token_bytes, count)
            logits = rows[-1]
        self._held += chunk
        return logits

    def _read_end(self, prompt: Prompt) -> None:
        """Process the end of a prompt that may be tokenized in several ways, and choose the first token."""
        cached = len(self._held)
        reserve = self.live_runtime.context - self._context
        first = read_prompt(self.live_runtime, self._tokenizer, prompt, reserve=reserve, cached=cached)
        self._start()
        self._alternatives.append(logprobs.first_alternatives(first, self.request.top_logprobs))
        pieces = self._text.add_first(first)
        self._first_bytes = self._text.first_bytes
        ids = self._text.ids if self._text.last_token else self._text.ids[:-1]
        self._held = ids[len(ids) - self.live_runtime.length :]
        self._emit(pieces)

    @property
    def live_runtime(self) -> Runtime:
        assert self.runtime is not None, "it has begun"
        return self.runtime

    # ---- the text

    @property
    def next_token(self) -> int:
        """The token to process in the next step."""
        return self._text.ids[-1]

    @property
    def text(self) -> GeneratedText:
        """What is being generated."""
        return self._text

    def add(self, logits: Array, choice: Choice | None = None) -> None:
        """Choose the next token from the logits [V] after all that were processed, if it is not chosen already."""
        self._alternatives.append(logprobs.alternatives(logits, self._token_bytes, self.request.top_logprobs))
        self._emit(self._text.append(choice or self._text.choose(logits)))

    def step_done(self, logits: Array, choice: Choice | None = None) -> None:
        """The next token was processed: these are the logits after it, and the choice from them if it is made."""
        self._held.append(self.next_token)
        self.add(logits, choice)

    @property
    def held_ids(self) -> Ids[int]:
        """The tokens in the cache."""
        return self._held[: self.live_runtime.length]

    def _prepare(self) -> None:
        """Decide what comes next: a step, or the newer half of a full context."""
        keep, new = next_input(self._text.ids, self.live_runtime.length, self._context)
        self.waits_for_step = keep > 0
        if not keep:
            recompute(self.live_runtime, len(new) - 1)
            self._held, self._pending = [], new

    # ---- events

    def fail(self, error: LLMError) -> None:
        self._end()
        self.has_failed = True
        self._counts.failed += 1
        self._tell(Failed(error))

    def cancel(self) -> None:
        self._end()
        self._counts.cancelled += 1

    def _end(self) -> None:
        self.is_done, self.waits_for_step = True, False

    def _start(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._counts.prompt_tokens += self.prompt_length
            self._counts.cached_tokens += self._cached
            self._tell(Started(self.prompt_length, self._cached, tuple(self._prompt)))

    def _emit(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.id is not None:
                data, self._first_bytes = self._first_bytes or self._token_bytes[piece.id], b""
                self._tell(Token(piece.id, data, piece.text, piece.logprob, self._alternatives.popleft()))
        self._counts.tokens += 1
        if self._text.finish_reason is None:
            self._prepare()
            return
        if self._text.last_token and len(self._alternatives) == 1:  # no stop string cut the text before it
            token, logprob = self._text.last_token
            self._tell(Token(token, b"", "", logprob, self._alternatives.pop(), ends_text=True))
        self._finish(self._text.finish_reason)

    def _finish(self, reason: str) -> None:
        self._end()
        self._counts.finished += 1
        self._tell(Finished(reason, self._text.tokens))

    def _tell(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:  # nobody listens any more, such as an event loop that has ended
            self.cancelled = True


def _check_ids(ids: Ids[int], vocab_size: int) -> None:
    if not ids:
        raise LLMError("the prompt has no tokens; give a text to continue")
    if wrong := [i for i in ids if not 0 <= i < vocab_size]:
        raise LLMError(f"the prompt has the token {wrong[0]:,}; token ids of this model are 0 to {vocab_size - 1:,}")
