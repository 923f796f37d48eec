"""Chat answers: shown as they arrive, with their figures, or as JSON."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.cli.terminal import console
from llmcli.cli.terminal.safe_text import visible
from llmcli.cli.terminal.text_layout import WordWrap, terminal_width

if TYPE_CHECKING:
    from llmcli.config import SamplingConfig
    from llmcli.generation.chat import Event, PrefillProgress
    from llmcli.generation.generator import Piece

INTERRUPTED = "interrupted"  # finish reason of an answer stopped by Ctrl-C


@dataclass
class Answer:
    """An answer and its figures, which grow as it arrives."""

    sampling: "SamplingConfig"  # with which it is generated
    prompt_ids: list[int] = field(default_factory=list)
    text: str = ""
    pieces: "list[Piece]" = field(default_factory=list)  # only pieces with a token
    finish_reason: str | None = None
    reading: "PrefillProgress | None" = None  # latest progress of the prefill
    dropped_turns: int = 0
    started: float = field(default_factory=time.perf_counter)
    first_at: float = math.nan  # arrival of the first token
    last_at: float = math.nan

    def add(self, piece: "Piece") -> None:
        self.last_at = time.perf_counter()
        self.first_at = self.last_at if math.isnan(self.first_at) else self.first_at
        self.text += piece.text
        self.finish_reason = piece.finish_reason
        if piece.id is not None:
            self.pieces.append(piece)

    @property
    def seconds_to_first_token(self) -> float:
        """NaN if there is no token."""
        return self.first_at - self.started

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token."""
        seconds = self.last_at - self.first_at
        later = len(self.pieces) - 1
        return later / seconds if later > 0 and seconds > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        prompt, cached = (self.reading.tokens, self.reading.cached) if self.reading else (0, 0)
        return {
            "role": "assistant",
            "content": self.text,
            "tokens": list(map(token_json, self.pieces)),
            "finish_reason": self.finish_reason,
            "prompt_tokens": prompt,
            "cached_tokens": cached,
            "dropped_turns": self.dropped_turns,
            **self.speed_json(),
        }

    def speed_json(self) -> dict[str, float]:
        return {
            "tokens_per_second": round(self.tokens_per_second, 1),
            "seconds_to_first_token": round(self.seconds_to_first_token, 4),
        }

    def note_speed(self) -> None:
        tokens = units.count(len(self.pieces), "token")
        console.note(f"[{tokens}, {self.tokens_per_second:,.0f} tokens/s, seed {self.sampling.seed}]")


def token_json(piece: "Piece") -> dict[str, Any]:
    return {"id": piece.id, "text": piece.text, "logprob": round(piece.logprob, 6)}


def receive(
    events: "Iterator[Event]",
    sampling: "SamplingConfig",
    *,
    shows_text: bool = True,
    dropped_note: str | None = "",
    is_stopped: Callable[[], bool] = lambda: False,
) -> Answer:
    """Show an answer as it arrives, until `is_stopped()`, and return it; in a terminal, lines are wrapped.
    When the context is full, print a note that ends with `dropped_note` (None: no note). Exceptions from
    `events` propagate."""
    from llmcli.generation.chat import READ_CHUNK, PrefillProgress, TurnsDropped

    answer = Answer(sampling)
    is_answered = False
    wrap = WordWrap(terminal_width()) if sys.stdout.isatty() else None
    try:
        for event in events:
            if isinstance(event, TurnsDropped):
                answer.dropped_turns = event.turns
                if dropped_note is not None:
                    dropped = "the oldest turn" if event.turns == 1 else f"the {event.turns:,} oldest turns"
                    full = f"the context of {event.context:,} tokens is full"
                    console.note(f"{full}: from now on the model does not see {dropped}{dropped_note}")
            elif isinstance(event, PrefillProgress):
                answer.reading = event
                if event.tokens - event.cached > READ_CHUNK:
                    console.status(f"reading: {event.processed:,} of {event.tokens:,} tokens")
            else:
                if not answer.text:
                    console.status("")
                answer.add(event)
                if shows_text and event.text:
                    text = event.text
                    if wrap:
                        wrap.columns = terminal_width()  # the window may have been resized
                        text = wrap.feed(visible(text))
                    console.verbatim(text, raw=True)
            if is_stopped() and answer.finish_reason is None:
                answer.finish_reason = INTERRUPTED
                # a generator: the conversation keeps the text that has arrived
                events.close()  # type: ignore[attr-defined]
                break
        is_answered = True
    finally:
        if not answer.text:
            console.status("")
        if shows_text and (is_answered or answer.text):
            console.verbatim(wrap.finish() if wrap else "", end="\n", raw=True)
    return answer


def note_end(answer: Answer, advice: str) -> None:
    """Explain why an answer was cut off; `advice` is how to raise the maximum number of tokens."""
    if answer.finish_reason == "length":
        is_full = len(answer.pieces) < answer.sampling.max_tokens
        reason = (
            ": the context is full"
            if is_full
            else f" after {units.count(len(answer.pieces), 'token')}; {advice}"
        )
        console.note(f"(cut off{reason})")


def note_incomplete(answer: Answer) -> None:
    """Note that a structured text was cut off before it was complete."""
    if answer.sampling.grammar:
        note_end(answer, "the text is incomplete; for a longer one: -n 2000")
