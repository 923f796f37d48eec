"""The whole scorecard, printed as a table."""

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
        sys.exit(f"no row {unknown[0]}; there are {', '.join(ROWS)}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"{date.today()}, commit {commit}\n\n| row | what | tries | failures | seconds |\n|---|---|---|---|---|")
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
