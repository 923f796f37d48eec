"""The start time of this command: --time counts from there, imports included.

Imports nothing else: the program calls it before all other imports.
"""

import os
import time
from pathlib import Path

_began: float | None = None


def remember() -> None:
    """Record that this process runs one command, which began with it."""
    global _began
    _began = time.monotonic() - _age()


def began() -> float:
    """The start in the time of time.monotonic, which all processes of a machine share; now, without `remember`."""
    return time.monotonic() if _began is None else _began


def _age() -> float:
    """Seconds since the operating system started this process; 0 if unknown."""
    try:
        fields = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0
