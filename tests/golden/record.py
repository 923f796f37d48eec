"""Records the results of the commands in commands.py, for tests/test_golden.py to compare with.

    python -m tests.golden.record [GROUP ...]

To be run by hand where a change of the output is intended, and reviewed as a diff: a command is a line of the record.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import llmcli
from tests.golden.commands import GROUPS
from tests.golden.results import environment, is_runnable, record_file, run, set_up


def rounded(value: Any) -> Any:
    """A JSON value with numbers of eight significant digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    groups = parser.parse_args().groups or list(GROUPS)
    print(f"recording {Path(llmcli.__file__).parent}")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        set_up(directory)
        for group in groups:
            lines = []
            for command in GROUPS[group]:
                if not is_runnable(command):
                    parser.error(f"{command.needs} must be installed to record: llm {command.line}")
                with environment(directory, command.needs):
                    results = json.dumps(rounded(run(command)), ensure_ascii=False)
                lines.append(f"{json.dumps(command.line)}: {results}")
            record_file(group).write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
            print(f"{record_file(group)}: {len(lines)} commands")


if __name__ == "__main__":
    main()
