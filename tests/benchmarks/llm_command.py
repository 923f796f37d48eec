"""The command `llm` of this source tree, in a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Finished(NamedTuple):
    """A command that has ended."""

    output: str  # its standard output
    seconds: float  # wall-clock time
    megabytes: float  # peak memory


def environment() -> dict[str, str]:
    """In which a Python process imports this source tree, whatever is installed and wherever it starts."""
    others = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *([others] if others else [])])}


def llm(*arguments: str, directory: Path | None = None) -> Finished:
    """Run the command, in a directory if one is given. Ends this program if it fails."""
    began = time.monotonic()
    command = [sys.executable, "-m", "llmcli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", cwd=directory, env=environment())
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        sys.exit(f"llm {' '.join(arguments)} ended with status {process.returncode}")
    return Finished(text, time.monotonic() - began, usage.ru_maxrss / 1e3)
