"""Progress of reading files: notes, and a limit on the share of the time budget."""

import time
from collections.abc import Callable

from llmcli import units
from llmcli.data.text.temporary_files import ReadingEndsError

_NOTE_SECONDS = 5.0  # between two progress notes
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
        self._names: set[str] = set()  # of the files; several may be read at once
        self._bytes = 0

    def __call__(self, name: str, size: int) -> None:
        """Count `size` more bytes of a file. Raises ReadingEndsError."""
        self._names.add(name)
        self._bytes += size
        now = self._clock()
        read = f"{units.count(len(self._names), 'file')}, {units.size(self._bytes)}"
        if self._seconds and now - self._started > _READING_SHARE * self._seconds:
            raise ReadingEndsError(
                f"{name}: reading takes more than half of the time: {read} in "
                f"{units.duration(now - self._started)}; give a longer `seconds`, or less text"
            )
        if now - self._noted >= _NOTE_SECONDS:
            self._noted = now
            self._on_note(f"reading {name}: {read}")
