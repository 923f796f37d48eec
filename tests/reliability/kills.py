"""Runs that are killed, stopped, started twice, changed or led astray: what they leave, and how they go on."""

import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np

from llmcli.formats.checkpoint import load
from tests.reliability.runs import (
    BESIDE,
    EAGER,
    OPTIONS,
    STEPS,
    TEXT,
    end,
    measured,
    names,
    python,
    train,
    wait_until_kept,
    wrong,
)


def killed_and_resumed(where: Path, tries: int) -> list[str]:
    """R1, R2: kills at random instants; the file in the end is that of a run that never was killed. Of several tries
    some are of a run with experts."""
    failures = _killed_and_resumed(where, tries - tries // 3)
    if tries // 3:
        for name in names(where):
            (where / name).unlink()
        failures += _killed_and_resumed(where, tries // 3, "--experts", "3")
    return failures


def _killed_and_resumed(where: Path, tries: int, *options: str) -> list[str]:
    began = time.monotonic()
    failures = [
        failure for failure in [wrong(train(where, *options, steps=STEPS, output="whole.safetensors"), 0)] if failure
    ]
    longest = time.monotonic() - began
    rng = random.Random(tries)
    done = 0
    while done < tries:
        process = train(where, *options, steps=STEPS)
        try:
            process.wait(rng.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            if failure := wrong(process, -signal.SIGKILL, 0):
                failures.append(failure)
            done += 1
            if (where / BESIDE).exists() or not (where / "model.safetensors").exists():
                continue  # else it had ended already
        else:
            if failure := wrong(process, 0):
                failures.append(failure)
                break
        failures += _same(where)
        (where / "model.safetensors").unlink(missing_ok=True)
    if not (where / "model.safetensors").exists():
        failures += [failure for failure in [wrong(train(where, *options, steps=STEPS), 0)] if failure] + _same(where)
    if names(where) != ["c.txt", "model.safetensors", "whole.safetensors"]:
        failures.append(f"left behind: {names(where)}")
    return failures


def _same(where: Path) -> list[str]:
    first, second = (where / name for name in ("whole.safetensors", "model.safetensors"))
    if not second.exists() or first.read_bytes() != second.read_bytes():
        return ["the file is not that of a run that never was killed"]
    return []


def signals(where: Path, tries: int) -> list[str]:
    """R7: a signal ends a run after the step that it comes in, with its code, the model of that step and what is needed
    to go on; so do two at once. The others come at any instant."""
    failures = []
    kinds = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    for kind, times in [(kind, times) for kind in kinds for times in (1, 2)] if tries > 1 else [(signal.SIGTERM, 2)]:
        failures += _signalled_in_a_step(where, kind, times)
    for number in range(tries):
        kind = kinds[number % 3]
        process = train(where, steps=STEPS, code=SAME_REQUEST + EAGER)
        wait_until_kept(process, where)
        process.send_signal(kind)
        if number >= 3:
            process.send_signal(kind)
        if failure := wrong(process, 128 + kind):
            failures.append(failure)
        if not (where / "model.safetensors").exists():
            failures.append(f"{kind.name}: no model was saved")
        if failure := wrong(train(where, steps=STEPS), 0):
            failures.append(f"after {kind.name}: {failure}")
        if names(where) != ["c.txt", "model.safetensors"]:
            failures.append(f"left behind: {names(where)}")
        (where / "model.safetensors").unlink(missing_ok=True)
    return failures


# two signals are one request, however much time a loaded machine lets pass between them
SAME_REQUEST = "import llmcli.cli.commands.train as c; c.SAME_REQUEST = float('inf');"
SIGNALLED = (
    SAME_REQUEST
    + """
import signal, sys
import llmcli.models.transformer
kind, times, step = (int(sys.argv.pop(1)) for _ in range(3))
real, steps = llmcli.models.transformer.LanguageModel.loss, []
def loss(self, ids):
    steps.append(1)
    if len(steps) == step:
        for _ in range(times):
            signal.raise_signal(kind)
    return real(self, ids)
llmcli.models.transformer.LanguageModel.loss = loss
from llmcli.cli.app import main
main()
"""
)


def _signalled_in_a_step(where: Path, kind: signal.Signals, times: int, step: int = 7) -> list[str]:
    """A run that gets a signal, once or twice at once, in the middle of a step: no further step is taken, and the file
    of the model is there when the process has ended."""
    (where / "c.txt").write_text(TEXT, "utf-8")
    words = ["train", "c.txt", *OPTIONS, "--steps", str(STEPS), "-q"]
    process = python(where, SIGNALLED, str(int(kind)), str(times), str(step), *words)
    failures = [failure for failure in [wrong(process, 128 + kind)] if failure]
    model = where / "model.safetensors"
    if not model.exists() or load(model).record["steps"] != step:
        failures.append(f"{kind.name} x {times}: the model of step {step} was not saved")
    if failure := wrong(train(where, steps=STEPS), 0):
        failures.append(f"after {kind.name} x {times}: {failure}")
    model.unlink(missing_ok=True)
    return failures


def stale_files_go(where: Path, tries: int) -> list[str]:
    """R6: what killed runs left beside a model is removed by the next one."""
    for number in range(tries):
        for name in ("model.safetensors", BESIDE):
            (where / f".{name}.{10_000_000 + number}.tmp").write_bytes(b"half a file")
    (where / ".other.safetensors.1.tmp").write_bytes(b"somebody else's")
    failures = [failure for failure in [wrong(train(where, steps=2), 0)] if failure]
    if names(where) != [".other.safetensors.1.tmp", "c.txt", "model.safetensors"]:
        failures.append(f"left behind: {names(where)}")
    return failures


def two_runs(where: Path, tries: int) -> list[str]:
    """R9: of two runs on one output one runs and one is refused in a line; a kill frees the place."""
    failures = []
    for _ in range(tries):
        first = train(where, steps=10_000)
        wait_until_kept(first, where)
        second = train(where, steps=10_000)
        said = end(second)
        if second.returncode != 1 or not said.startswith(b"error: another run is making model.safetensors"):
            failures.append(f"the second ended with {second.returncode}: {said!r}")
        if first.poll() is not None:
            failures.append("the first did not go on")
        end(first, signal.SIGKILL)
        third = train(where, steps=10_000)
        wait_until_kept(third, where, (where / BESIDE).stat().st_mtime_ns)
        if third.poll() is not None:
            failures.append(f"after a kill: {end(third)!r}")
        end(third, signal.SIGKILL)
        (where / BESIDE).unlink()
    return failures


def changed_runs(where: Path, tries: int) -> list[str]:
    """R11: a run that stopped does not go on with another text, option or number of threads, and says what differs."""
    failures = []
    run = train(where, steps=STEPS)
    wait_until_kept(run, where)
    end(run, signal.SIGKILL)
    kept = (where / BESIDE).read_bytes()
    changes = {
        "the text": ([], TEXT + "One more.\n"),
        "--seed": (["--seed", "5"], TEXT),
        "--steps": (["--steps", str(STEPS + 1)], TEXT),
        "--lr": (["--lr", "2"], TEXT),
        "--vocab-size": (["--vocab-size", "300"], TEXT),
        "--threads": (["--threads", "2"], TEXT),
        "--val": (["--val", "0.2"], TEXT),
    }
    for what, (options, text) in changes.items():
        run = train(where, *options, steps=STEPS, text=text)
        said = end(run)
        if run.returncode != 1 or what.encode() not in said or b"--force to begin anew" not in said:
            failures.append(f"{what}: {run.returncode}, {said!r}")
        if (where / BESIDE).read_bytes() != kept:
            failures.append(f"{what}: what the run needs to go on was changed")
    return failures + [f for f in [wrong(train(where, steps=STEPS), 0)] if f]


EXPLODES = """
from functools import partial
import llmcli.models.transformer, llmcli.training.trainer as trainer
from llmcli.training.evaluation_schedule import EvaluationSchedule
trainer.train = partial(trainer.train, schedule=EvaluationSchedule(training_per_evaluated=1))
real, steps = llmcli.models.transformer.LanguageModel.loss, []
def loss(self, ids):
    steps.append(1)
    return real(self, ids) * (float("nan") if len(steps) > 60 else 1)
llmcli.models.transformer.LanguageModel.loss = loss
from llmcli.cli.app import main
main()
"""


def exploding_loss(where: Path, tries: int) -> list[str]:
    """R12: a loss that is no number ends the run in a line; an older model stays, or the last good state is saved."""
    failures = []
    end(train(where, steps=2))
    before = (where / "model.safetensors").read_bytes()
    run = train(where, "--lr", "1e9", "--force", steps=STEPS)
    said = end(run)
    if run.returncode != 1 or b"became NaN or infinite" not in said or b"--lr" not in said or b"Traceback" in said:
        failures.append(f"--lr 1e9: {run.returncode}, {said!r}")
    if (where / "model.safetensors").read_bytes() != before:
        failures.append("the older model was replaced")
    run = train(where, "--force", steps=STEPS, code=EXPLODES)
    said = end(run)
    if run.returncode != 1 or b"the best weights before that, of step" not in said or b"Traceback" in said:
        failures.append(f"late: {run.returncode}, {said!r}")
    model = load(where / "model.safetensors")
    if not all(np.isfinite(tensor).all() for tensor in model.tensors.values()) or model.record["steps"] != 60:
        failures.append("the last good state is not there")
    if names(where) != ["c.txt", "model.safetensors"]:
        failures.append(f"left behind: {names(where)}")
    return failures


LIMITED = """
import resource, sys
most = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (most, most))
from llmcli.cli.app import main
main()
"""


def short_memory(where: Path, tries: int) -> list[str]:
    """B2: with memory for no such model, or for hardly any, a run works or is refused in a line: no traceback, no
    signal, and an older model stays."""
    failures = []
    end(train(where, steps=2))
    before = (where / "model.safetensors").read_bytes()
    large = ["--width", "8192", "--layers", "48"]
    for most, options, codes in (
        (64 << 30, large, (1,)),
        *((size << 28, ["--width", "512"], (0, 1)) for size in SIZES),
    ):
        (where / "c.txt").write_text(TEXT, "utf-8")
        words = ["train", "c.txt", "--steps", "2", "--threads", "1", "-q", "--force", *options]
        run = python(where, LIMITED, str(most), *words)
        said = end(run)
        line = run.returncode == 0 or (said.startswith(b"error: ") and said.count(b"\n") == 1)
        if run.returncode not in codes or not line:
            failures.append(f"{most >> 20} MB: {run.returncode}, {said[-300:]!r}")
        if run.returncode and (where / "model.safetensors").read_bytes() != before:
            failures.append(f"{most >> 20} MB: the older model was replaced")
        before = (where / "model.safetensors").read_bytes()
    return failures


SIZES = (8, 10, 12, 16)  # quarters of a gigabyte: from hardly enough for torch itself to enough


def same_run_same_bytes(where: Path, tries: int) -> list[str]:
    """R28: the same command gives the same file."""
    failures = []
    for output in ("a.safetensors", "b.safetensors"):
        failures += [f for f in [wrong(train(where, steps=20, output=output), 0)] if f]
    if (where / "a.safetensors").read_bytes() != (where / "b.safetensors").read_bytes():
        failures.append("two runs differ")
    return failures


def soak(where: Path, tries: int) -> list[str]:
    """R29: train, kill, go on, generate, `tries` seconds long: memory stays flat and nothing is left behind."""
    failures: list[str] = []
    rng = random.Random(29)
    peaks: dict[str, list[float]] = {"train": [], "generate": []}
    began = time.monotonic()
    while time.monotonic() - began < tries or len(peaks["train"]) < 2:
        run = train(where, steps=STEPS)
        try:
            run.wait(rng.uniform(0.5, 6))
        except subprocess.TimeoutExpired:
            end(run, rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        words = ["train", "c.txt", *OPTIONS, "--steps", str(STEPS), "-q", "--force"]
        for command in (words, ["generate", "Anna", "-n", "20", "--seed", "1"]):
            code, said, megabytes, _ = measured(where, *command)
            peaks[command[0]].append(megabytes)
            failures += [f"{command[0]} ended with {code}: {said[-300:]}"] if code or "Traceback" in said else []
        if names(where) != ["c.txt", "model.safetensors"]:
            failures.append(f"left behind: {names(where)}")
        if failures:
            return failures
        (where / "model.safetensors").unlink()
    return [
        f"memory of {command} grows: {found}"
        for command, found in peaks.items()
        if max(found[len(found) // 2 :]) > 1.05 * max(found[: len(found) // 2])
    ]
