"""Time from the start of a command to its end, for commands that compute little.

    python -m tests.benchmarks.cold_start MODEL [--llm .venv/bin/llm ...] [--rounds 30]

Prints the minimum and median seconds beyond those of `python -c pass`, which runs in turn with them; "CPU" is the
median processor time, which other programs disturb less. Measure an installed wheel: in a checkout with
PYTHONDONTWRITEBYTECODE set, each start compiles all modules. Give several `--llm` to compare versions in turn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPT = "I like to eat"
ANSWERS = (
    "red", "green", "blue", "apples", "pears", "plums", "bread", "cheese", "soup", "rice",
    "beans", "fish", "meat", "eggs", "cake", "pie", "nuts", "corn", "peas", "figs",
)  # fmt: skip
COMMANDS = {
    "generate -n 1": ["generate", PROMPT, "-n", "1", "-s", "1"],
    "generate --next 5": ["generate", PROMPT, "--next", "5"],
    "generate --choices": ["generate", PROMPT, "--choices", ",".join(ANSWERS)],
    "explain": ["explain", PROMPT],
    "inspect": ["inspect"],
    "tokenize": ["tokenize", PROMPT],
    "--help": ["--help"],
    "--version": ["--version"],
}


def seconds(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """(wall clock, processor time) of one run."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    assert process.stdout
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"exit code {process.returncode}: {' '.join(command)}")
    return elapsed, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llm", action="append", help="installed command; can be repeated")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["LLMCLI_MODEL"] = str(options.model)
    runs: dict[tuple[str, str], list[str]] = {}
    for llm in options.llm or [str(Path(sys.executable).with_name("llm"))]:
        runs[llm, "python"] = [str(Path(llm).with_name("python")), "-c", "pass"]
        for name, arguments in COMMANDS.items():
            model = [str(options.model)] if name == "inspect" else []
            runs[llm, name] = [llm, *arguments, *model]
    times: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in runs}
    for number in range(options.rounds + 1):
        for key, command in runs.items():
            measured = seconds(command, environment)
            if number:  # the first round fills the file cache, and writes .pyc files
                times[key].append(measured)
    for (llm, name), measured in times.items():
        walls, processors = zip(*measured, strict=True)
        found = min(walls), statistics.median(walls), statistics.median(processors)
        if name == "python":
            bare = found
            print(f"\n{llm}: python -c pass takes {bare[0]:.3f} s (median {bare[1]:.3f}, CPU {bare[2]:.3f})")
        else:
            beyond, median, processor = (value - other for value, other in zip(found, bare, strict=True))
            print(f"{name:18} {beyond:6.3f} s beyond that (median {median:.3f}, CPU {processor:.3f})")


if __name__ == "__main__":
    main()
