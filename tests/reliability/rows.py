"""The rows of the scorecard: which fault is injected, and how often.

The function of a row takes an empty directory and a number of tries, and returns a line for each failed try. It also
checks that every injected fault took effect.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.reliability import disks, files, kills, terminals


@dataclass(frozen=True)
class Row:
    """One line of the scorecard."""

    what: str
    run: Callable[[Path, int], list[str]]
    fast: int = 1  # tries in the tests; 0: none
    full: int = 1


ROWS = {
    "R1 R2": Row("killed at random instants, resumed: the same bytes", kills.killed_and_resumed, 0, 50),
    "R3": Row("killed at each system call of a save: the old file or the new one", disks.killed_while_saving),
    "R5": Row("a full disk: the old file stays, nothing is left behind, one line of error", disks.refusing_disks),
    "R7": Row(
        "signals, also two at once: the model of the current step, the exit code of the signal", kills.signals, 0, 63
    ),
    "R8": Row("single flipped bits, all detected", files.flipped_bits, 0, 1000),
    "B2": Row("too little memory: one line of error", kills.short_memory, 0, 5),
    "R13": Row("a text of one line, in MB: planned for or refused, with little memory", terminals.long_line, 0, 200),
    "R14": Row("mutated files: read or refused in one line, quickly", files.mutants, 20, 2000),
    "R15": Row("huge headers: read or refused, with little memory", files.huge_files, 1, len(files.HUGE)),
    "R21": Row("absurd sampling options: output or one line of error", terminals.sampling_options),
    "R22": Row("prompts from 0 bytes to 10 MB", terminals.long_prompts, 1, 10),
    "R29": Row("a soak test, in seconds: memory stays flat, nothing is left behind", kills.soak, 0, 1200),
}
