"""Runs that are killed, interrupted or short of memory: what they leave behind, and how they resume."""

import random
import signal
import subprocess
import time
from pathlib import Path

from llmcli.formats.loading import load
from tests.reliability.runs import (
    OPTIONS,
    RESUME_FILE,
    SAVING_EVERY_STEP,
    STEPS,
    TEXT,
    end,
    measured,
    names,
    problems,
    python,
    train,
    train_here,
    unfinished,
    wait_until_saved,
)


def killed_and_resumed(where: Path, tries: int) -> list[str]:
    """R1, R2: kills at random times; the final file is the same as without a kill. A third of several tries is a run
    with experts."""
    failures = _killed_and_resumed(where, tries - tries // 3)
    if tries // 3:
        for name in names(where):
            (where / name).unlink()
        failures += _killed_and_resumed(where, tries // 3, "--experts", "3")
    return failures


def _killed_and_resumed(where: Path, tries: int, *options: str) -> list[str]:
    began = time.monotonic()
    failures = problems(train(where, *options, steps=STEPS, output="whole.safetensors"), 0)
    longest = time.monotonic() - began
    rng = random.Random(tries)
    done = 0
    while done < tries:
        process = train(where, *options, steps=STEPS)
        try:
            process.wait(rng.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            failures += problems(process, -signal.SIGKILL, 0)
            done += 1
            if (where / RESUME_FILE).exists() or not (where / "model.safetensors").exists():
                continue  # else the run had ended before the kill
        else:
            if failed := problems(process, 0):
                failures += failed
                break
        failures += _same(where)
        (where / "model.safetensors").unlink(missing_ok=True)
    if not (where / "model.safetensors").exists():
        failures += problems(train(where, *options, steps=STEPS), 0) + _same(where)
    if names(where) != ["c.txt", "model.safetensors", "whole.safetensors"]:
        failures.append(f"left behind: {names(where)}")
    return failures


def _same(where: Path) -> list[str]:
    first, second = (where / name for name in ("whole.safetensors", "model.safetensors"))
    if not second.exists() or first.read_bytes() != second.read_bytes():
        return ["the file differs from that of a run that was not killed"]
    return []


def signals(where: Path, tries: int) -> list[str]:
    """R7: a signal, or two at once, ends a run after the current step, with the exit code of the signal, the model of
    that step and a resume file. The other signals come at any time."""
    failures = []
    kinds = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    for kind, times in [(kind, times) for kind in kinds for times in (1, 2)] if tries > 1 else [(signal.SIGTERM, 2)]:
        failures += _signalled_in_a_step(where, kind, times)
    for number in range(tries):
        kind = kinds[number % 3]
        process = train(where, steps=STEPS, code=SAME_REQUEST + SAVING_EVERY_STEP)
        wait_until_saved(process, where)
        process.send_signal(kind)
        if number >= 3:
            process.send_signal(kind)
        failures += problems(process, 128 + kind)
        if not (where / "model.safetensors").exists():
            failures.append(f"{kind.name}: no model was saved")
        failures += unfinished(train_here(where, steps=STEPS), when=f"after {kind.name}: ")
        if names(where) != ["c.txt", "model.safetensors"]:
            failures.append(f"left behind: {names(where)}")
        (where / "model.safetensors").unlink(missing_ok=True)
    return failures


# two signals count as one request, however much time passes between them on a busy machine
SAME_REQUEST = "import llmcli.signals as c; c.SAME_REQUEST = float('inf');"
SIGNALLED = (
    SAME_REQUEST
    + """
import signal, sys
import llmcli.models.torch.transformer
kind, times, step = (int(sys.argv.pop(1)) for _ in range(3))
real, steps = llmcli.models.torch.transformer.LanguageModel.loss, []
def loss(self, ids, learned=None):
    steps.append(1)
    if len(steps) == step:
        for _ in range(times):
            signal.raise_signal(kind)
    return real(self, ids, learned)
llmcli.models.torch.transformer.LanguageModel.loss = loss
from llmcli.cli.main import main
main()
"""
)


def _signalled_in_a_step(where: Path, kind: signal.Signals, times: int, step: int = 7) -> list[str]:
    """A signal, once or twice, in the middle of a step: no further step is taken, and the model is saved before the
    process ends."""
    (where / "c.txt").write_text(TEXT, "utf-8")
    words = ["train", "c.txt", *OPTIONS, "--steps", str(STEPS), "-q"]
    process = python(where, SIGNALLED, str(int(kind)), str(times), str(step), *words)
    failures = problems(process, 128 + kind)
    model = where / "model.safetensors"
    if not model.exists() or load(model).record.steps != step:
        failures.append(f"{kind.name} x {times}: the model of step {step} was not saved")
    failures += unfinished(train_here(where, steps=STEPS), when=f"after {kind.name} x {times}: ")
    model.unlink(missing_ok=True)
    return failures


LIMITED = """
import resource, sys
most = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (most, most))
from llmcli.cli.main import main
main()
"""


def short_memory(where: Path, tries: int) -> list[str]:
    """B2: with too little memory a run succeeds or is refused in one line: no traceback, no signal, and an existing
    model stays."""
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
        stderr = end(run)
        line = run.returncode == 0 or (stderr.startswith(b"error: ") and stderr.count(b"\n") == 1)
        if run.returncode not in codes or not line:
            failures.append(f"{most >> 20} MB: {run.returncode}, {stderr[-300:]!r}")
        if run.returncode and (where / "model.safetensors").read_bytes() != before:
            failures.append(f"{most >> 20} MB: the existing model was replaced")
        before = (where / "model.safetensors").read_bytes()
    return failures


SIZES = (8, 10, 12, 16)  # quarters of a gigabyte: from hardly enough for torch alone to enough


def soak(where: Path, tries: int) -> list[str]:
    """R29: train, kill, resume, generate, for `tries` seconds: memory stays flat and nothing is left behind."""
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
            code, stderr, megabytes, _ = measured(where, *command)
            peaks[command[0]].append(megabytes)
            failures += [f"{command[0]} ended with {code}: {stderr[-300:]}"] if code or "Traceback" in stderr else []
        if names(where) != ["c.txt", "model.safetensors"]:
            failures.append(f"left behind: {names(where)}")
        if failures:
            return failures
        (where / "model.safetensors").unlink()
    return [
        f"memory of {command} grows: {megabytes}"
        for command, megabytes in peaks.items()
        if max(megabytes[len(megabytes) // 2 :]) > 1.05 * max(megabytes[: len(megabytes) // 2])
    ]
