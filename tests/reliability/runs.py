"""Runs of `llm`, most of them in a process that saves its state after every step."""

import itertools
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from llmcli.config import ModelConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats import ensemble_file
from llmcli.formats.checkpoint import Checkpoint, save
from llmcli.formats.training_record import TrainingRecord

STEPS = 100
TIMEOUT = 600  # seconds after which a process hangs, even on the slowest machine

TEXT = "".join(f"{a} likes {b}.\n" for a in ("Anna", "Ben", "りんご") for b in ("tea", "milk", "rice", "bread🍎")) * 30
OPTIONS = ["--batch-tokens", "512", "--context", "32", "--threads", "1", "--dropout", "0.2"]
RESUME_FILE = "model.resume.safetensors"
SAVING_EVERY_STEP = (
    "import llmcli.training.files.resume as t; t.FIRST_PAUSE = t.LONGEST_PAUSE = t.PAUSE_PER_SAVE = 0.0; "
    "from llmcli.cli.main import main; main()"
)


def python(where: Path, code: str, *words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=where, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


MEASURED = """
import atexit, re, sys

calls = 0

def count(frame, event, _):
    global calls
    calls += event in ("call", "c_call")

def used():
    sys.setprofile(None)
    with open("/proc/self/status") as status:  # the result of wait4 includes memory of the parent process
        most = re.search(r"VmHWM:\\s*(\\d+)", status.read())[1]
    print(f"\\n{int(most) / 1024:.0f} {calls}", file=sys.stderr)

counted = sys.argv.pop(1) == "counted"
atexit.register(used)
from llmcli.cli.main import main
if counted:
    sys.setprofile(count)
main()
"""


def measured(where: Path, *words: str, counted: bool = False) -> tuple[int, str, float, int]:
    """(exit code, stderr, peak memory in MB, function calls if `counted`) of a command."""
    process = python(where, MEASURED, "counted" if counted else "", *words)
    stderr, _, figures = end(process).decode("utf-8", "replace").rstrip("\n").rpartition("\n")
    megabytes, calls = figures.split()
    return process.returncode, stderr, float(megabytes), int(calls)


class Calls:
    """Counts the function calls, Python's and C's, inside a `with`: a cost that does not depend on the machine. Raises
    AssertionError if there are so many that the code may never end."""

    endless = 100_000_000

    def __enter__(self) -> "Calls":
        self.number = 0
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, _: object, event: str, __: object) -> None:
        self.number += event in ("call", "c_call")
        if self.number > self.endless:
            raise AssertionError(f"more than {self.endless:,} calls of functions")


def train(
    where: Path, *options: str, steps: int, output: str = "model.safetensors", text: str = TEXT, code: str = ""
) -> "subprocess.Popen[bytes]":
    """Starts a training run on `text`, written to c.txt. `code` runs the command, by default SAVING_EVERY_STEP."""
    (where / "c.txt").write_text(text, "utf-8")
    words = ["train", "c.txt", *OPTIONS, "--steps", str(steps), "-o", output, "-q", *options]
    return python(where, code or SAVING_EVERY_STEP, *words)


def wait_until_saved(process: "subprocess.Popen[bytes]", where: Path) -> None:
    """Wait until the run has saved its state, or has ended."""
    for _ in range(100 * TIMEOUT):
        if (where / RESUME_FILE).exists() or process.poll() is not None:
            return
        time.sleep(0.01)


def end(process: "subprocess.Popen[bytes]", how: signal.Signals | None = None) -> bytes:
    """Send the signal, if any, and wait for the end of the process. Returns its stderr."""
    if how is not None:
        process.send_signal(how)
    return process.communicate(timeout=TIMEOUT)[1]


def names(where: Path) -> list[str]:
    return sorted(path.name for path in where.iterdir())


def problems(process: "subprocess.Popen[bytes]", *codes: int, when: str = "") -> list[str]:
    """Nothing if the process ends with one of these exit codes and without a traceback, else a line that says so."""
    stderr = end(process)
    if process.returncode in codes and b"Traceback" not in stderr:
        return []
    return [f"{when}ended with {process.returncode}: {stderr.decode('utf-8', 'replace')[-300:]}"]


KINDS = ("dense", "experts", "ensemble")  # of model files


def small_model(path: Path, kind: str = "dense") -> None:
    """Write a model with random weights, of one of KINDS."""
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    config = ModelConfig(tokenizer.vocab_size, 32, 64, 2, 4, 2, 8, 32)
    if kind == "experts":
        config = replace(config, model_type="qwen3_moe", num_experts=3, num_experts_per_tok=2)
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0, 0.2, shape).astype("f4") for name, shape in config.tensor_shapes().items()}
    model = Checkpoint(config, tokenizer.to_json(), tensors, TrainingRecord.from_json({"steps": 0}))
    if kind == "ensemble":
        ensemble_file.save(path, ensemble_file.combine({"one": model, "two": model}))
    else:
        save(path, model)


def invoke(*words: object, stdin: bytes = b"") -> Any:
    """Run the command in this process. The result has exit_code, stdout, stderr and exception."""
    from typer.testing import CliRunner

    from llmcli.cli.app import app

    return CliRunner().invoke(app, [str(word) for word in words], input=stdin)


def train_here(where: Path, *options: object, steps: int) -> Any:
    """The command of `train` in this process, which has torch already, without saving after every step."""
    (where / "c.txt").write_text(TEXT, "utf-8")
    return invoke(
        "train", where / "c.txt", *OPTIONS, "--steps", steps, "-o", where / "model.safetensors", "-q", *options
    )


def interrupted_here(where: Path, *options: object, steps: int, step: int) -> Any:
    """The same, with a SIGINT in the step number `step` of this process."""
    from llmcli.models.torch.transformer import LanguageModel

    real, calls = LanguageModel.loss, itertools.count(1)

    def loss(*values: Any) -> Any:
        if next(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return real(*values)

    with mock.patch.object(LanguageModel, "loss", loss):
        return train_here(where, *options, steps=steps)


def unfinished(answer: Any, when: str = "") -> list[str]:
    """Nothing if a command in this process succeeded, else a line that says what it did."""
    return [] if answer.exit_code == 0 else [f"{when}ended with {answer.exit_code}: {answer.stderr[-300:]}"]
