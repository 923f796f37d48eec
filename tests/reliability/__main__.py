"""Prints the scorecard as a table."""

import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from tests.reliability.rows import ROWS


def main() -> None:
    unknown = [name for name in sys.argv[1:] if name not in ROWS]
    if unknown:
        sys.exit(f"there is no row {unknown[0]}; choose from {', '.join(ROWS)}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
    print(f"# The scorecard\n\n`python -m tests.reliability`, {date.today()}, commit {commit}, {machine}.\n")
    print("| row | what | tries | failures | seconds |\n|---|---|---|---|---|")
    failed = []
    for name in sys.argv[1:] or ROWS:
        row = ROWS[name]
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as where:
            failures = row.run(Path(where), row.full)
        taken = time.monotonic() - began
        print(f"| {name} | {row.what} | {row.full:,} | {len(failures)} | {taken:.0f} |", flush=True)
        failed += [f"{name}: {failure}" for failure in failures]
    sys.exit("\n".join(failed) if failed else 0)


if __name__ == "__main__":
    main()
