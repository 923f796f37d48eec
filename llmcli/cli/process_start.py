"""The start time of this command. --time is measured from here, so that it includes imports.

Imports nothing of llmcli: the entry point calls it before all other imports.
"""

import os
import time

_began: float | None = None


def remember() -> None:
    """Record that this process runs a single command, so that the command began when the process started."""
    global _began
    _began = time.monotonic() - _age()


def began() -> float:
    """Return the start time on the clock of time.monotonic, which all processes share; the current time if
    `remember` was not called."""
    return time.monotonic() if _began is None else _began


def _age() -> float:
    """Return the seconds since the operating system started this process; 0 if unknown."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0
