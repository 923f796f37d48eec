"""Notes that say how much of a long text is tokenized, and about how long the rest will take.

Standard library only.
"""

import time
from collections.abc import Callable, Iterator

from llmcli import units

NOTED_BYTES = 16_000_000  # of text, from which on there are notes: less takes a few seconds
NOTE_SECONDS = 20.0  # between two notes, at least
STEPS = 10  # notes in all, besides the first ones


class TokenizingProgress:
    """Counts the bytes that are tokenized."""

    def __init__(
        self, total: int, cached: int, on_note: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`total` bytes have to be tokenized; the tokens of `cached` others are there."""
        self._total, self._done, self._steps = total, 0, 0
        self._on_note, self._clock = on_note, clock
        self._started = self._noted = clock()
        if total >= NOTED_BYTES:
            on_note(
                f"tokenizing {units.size(total)} of text" + (f"; {units.size(cached)} are cached" if cached else "")
            )

    def add(self, size: int) -> None:
        """`size` more bytes are tokenized."""
        self._done += size
        now, steps = self._clock(), STEPS * self._done // max(1, self._total)
        is_due = self._noted == self._started or steps > self._steps
        if self._total < NOTED_BYTES or not is_due or now - self._noted < NOTE_SECONDS or self._done >= self._total:
            return
        self._noted, self._steps = now, steps
        left = (now - self._started) * (self._total - self._done) / self._done
        left = 60 * round(left / 60) if left >= 60 else left
        self._on_note(f"tokenized {100 * self._done // self._total} %, about {units.duration(left)} left")

    def counted(self, texts: Iterator[Iterator[str]]) -> Iterator[Iterator[str]]:
        """The same texts, whose pieces are tokenized when the next one is read."""
        for text in texts:
            yield map(self._count, text)

    def _count(self, piece: str) -> str:
        self.add(len(piece.encode()))
        return piece
