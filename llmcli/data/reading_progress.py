"""Progress of reading files: notes, and a limit on the share of the time budget."""

import time
from collections.abc import Callable

from llmcli import units
from llmcli.data.text.temporary_files import ReadingEndsError
from llmcli.errors import OnNote

_NOTE_SECONDS = 5.0  # between two progress notes
_READING_SHARE = 0.5  # maximum share of the time budget


def reading_progress(seconds: float | None, on_note: OnNote) -> Callable[[str, int], None]:
    """Return a function that counts the bytes that are read, reports the progress, and raises
    ReadingEndsError after a share of `seconds`."""
    started = noted = time.monotonic()
    names: set[str] = set()  # several files may be read at once
    total = 0

    def on_read(name: str, size: int) -> None:
        nonlocal total, noted
        names.add(name)
        total += size
        now = time.monotonic()
        read = f"{units.count(len(names), 'file')}, {units.size(total)}"
        if seconds and now - started > _READING_SHARE * seconds:
            raise ReadingEndsError(
                f"{name}: reading takes more than half of the time: {read} in "
                f"{units.duration(now - started)}; give a longer `seconds`, or less text"
            )
        if now - noted >= _NOTE_SECONDS:
            noted = now
            on_note(f"reading {name}: {read}")

    return on_read
