"""Batches: many prompts, decoded together by the engine, with results in the order of the prompts.

At temperature 0, each text is the same as if it were generated alone, unless the logits of two tokens differ
only in their last bits: rounding in a matrix product depends on the number of rows (`Runtime.step_batch`).
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from llmcli.config import SamplingConfig
from llmcli.data.conversations.messages import Messages
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.generation.chat import Assistant
from llmcli.generation.engine.engine import Engine
from llmcli.generation.engine.requests import (
    EngineLimits,
    Event,
    Finished,
    Generated,
    GenerationRequest,
    UnavailableError,
)
from llmcli.generation.engine.sequence import GeneratedSequence
from llmcli.generation.token_healing import Prompt
from llmcli.models.runtime import Runtime

CONCURRENT = 32  # texts decoded together
WINDOW = 256  # prompts read ahead of the first unfinished prompt


@dataclass
class BatchResult(Generated):
    """The text for one prompt, or the error that it caused."""

    known: dict[str, float] = field(default_factory=dict)  # "known" and "confidence" of a known answer
    error: LLMError | None = None
    request: GenerationRequest | None = None
    sequence: GeneratedSequence | None = None  # the request in the engine

    @property
    def is_done(self) -> bool:
        return bool(self.finished or self.error or self.known)

    @property
    def left_out(self) -> dict[str, int]:
        """What was left out because the context is too short: "cut" is the number of tokens at the beginning
        of a text, and "dropped_turns" the number of turns of a conversation."""
        if self.request is None or self.started is None:
            return {}
        cut = len(self.request.prompt.ids) - self.started.prompt_tokens
        counts = {"cut": cut, "dropped_turns": self.request.dropped_turns}
        return {name: count for name, count in counts.items() if count}

    @property
    def choices(self) -> list[tuple[str, float]]:
        """The given choices with their probabilities, most likely first; [] without choices."""
        return [
            (choice.text_bytes.decode("utf-8"), math.exp(choice.logprob or 0.0))
            for token in self.tokens
            if token.id is None
            for choice in token.alternatives
        ]

    def add(self, event: Event) -> None:
        """Receive an event of the engine. Raises errors that are not caused by the prompt."""
        super().add(event)
        if isinstance(event, LLMError) and not isinstance(event, UnavailableError):
            self.error = event
        elif isinstance(event, Exception):
            raise event.__cause__ or event


def continuation_request(
    prompt: str,
    tokenizer: Tokenizer,
    sampling: SamplingConfig,
    choices: Sequence[str] = (),
    *,
    literal: bool = False,
) -> GenerationRequest:
    """Return the request to continue a text like `generate`, or to score its continuations."""
    return _request(Prompt.of(prompt, tokenizer, literal=literal), sampling, choices, frozenset())


def answer_request(
    messages: Messages, assistant: Assistant, sampling: SamplingConfig, choices: Sequence[str] = ()
) -> GenerationRequest:
    """Return the request to answer a conversation, or to score its answers. Raises LLMError like
    `Assistant.answer`."""
    encode, context = assistant.tokenizer.encode, assistant.runtime.context
    longest = 1 + max(len(encode(choice)) for choice in choices) if choices else sampling.max_tokens
    ids, dropped_turns, stop_ids = assistant.encode(messages, longest)
    sampling = replace(sampling, max_tokens=min(sampling.max_tokens, context - len(ids)))
    return _request(Prompt(ids), sampling, choices, stop_ids, dropped_turns)


def _request(
    prompt: Prompt,
    sampling: SamplingConfig,
    choices: Sequence[str],
    stop_ids: frozenset[int],
    dropped_turns: int = 0,
) -> GenerationRequest:
    return GenerationRequest(
        "",
        prompt,
        SamplingConfig(temperature=0.0) if choices else sampling,
        stop_ids,
        top_logprobs=len(choices),
        choices=tuple(choices),
        dropped_turns=dropped_turns,
    )


def decode_batch(
    runtime: Runtime,
    tokenizer: Tokenizer,
    requests: Iterable[GenerationRequest | BatchResult],
    ends: Callable[[int, str], bool] = lambda number, text: False,
) -> Generator[BatchResult, None, None]:
    """Process requests together, and yield a result for each, in order. A BatchResult in place of a request
    is passed through. `ends` receives the number of a request (from 0) and its text so far, and returns
    whether to end the text."""
    engine = Engine(lambda name: (runtime, tokenizer), EngineLimits(concurrent=CONCURRENT, queue=WINDOW))
    arrived: SimpleQueue[tuple[int, BatchResult, Event]] = SimpleQueue()
    numbered = enumerate(requests)
    pending = deque[BatchResult]()

    def submit(number: int, request: GenerationRequest | BatchResult) -> None:
        result = request if isinstance(request, BatchResult) else BatchResult(request=request)
        pending.append(result)
        if isinstance(request, GenerationRequest):
            result.sequence = engine.submit(request, lambda event: arrived.put((number, result, event)))

    try:
        while True:
            while len(pending) < WINDOW and not (pending and pending[0].is_done):
                if (following := next(numbered, None)) is None:
                    break
                submit(*following)
            if not pending:
                return
            while not pending[0].is_done:
                number, result, event = arrived.get()
                if result.is_done:
                    continue  # an event that arrived after the text was ended
                result.add(event)
                if result.sequence and ends(number, result.text):
                    engine.cancel(result.sequence)
                    result.finished = result.finished or Finished("stop", len(result.tokens))
            yield pending.popleft()
    finally:
        engine.close()
