"""Progress of reading files: notes, and the end of a reading that takes too much of the time budget."""

import time
from collections.abc import Callable

from llmcli import units
from llmcli.data.text.temporary_files import ReadingEndsError

_NOTE_SECONDS = 5.0  # between two progress notes
_NOTED_BYTES = 1_000_000  # notes on a smaller file show only its name
_READING_SHARE = 0.5  # maximum share of the time budget


class ReadingProgress:
    """Reports the progress of reading, and stops it after a share of the time budget."""

    def __init__(
        self,
        seconds: float | None,
        on_note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._on_note = on_note
        self._clock = clock
        self._started = self._noted = clock()
        self._sizes: dict[str, int] = {}  # file -> size; several may be read at once

    def __call__(self, name: str, size: int) -> None:
        """Count `size` more bytes of a file. Raises ReadingEndsError."""
        self._sizes[name] = size = self._sizes.get(name, 0) + size
        now, files = self._clock(), len(self._sizes)
        if self._seconds and now - self._started > _READING_SHARE * self._seconds:
            is_one = files == 1 or size >= _NOTED_BYTES
            read = units.size(size) if is_one else units.count(files, "file")
            advice = "train on a part of the text" if is_one else "fewer and larger files"
            raise ReadingEndsError(
                f"{f'{name}: ' * is_one}reading takes more than half of the time: {read} in "
                f"{units.duration(now - self._started)}; give a longer `seconds`, or {advice}"
            )
        if now - self._noted >= _NOTE_SECONDS:
            self._noted = now
            number = f", file {files:,}" if files > 1 else ""
            amount = f": {units.size(size)} of text" if size >= _NOTED_BYTES else ""
            self._on_note(f"reading {name}{number}{amount}")
