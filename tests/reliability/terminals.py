"""Input and output: absurd options, long prompts, closed pipes, hostile text in a terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np

from llmcli.config import ModelConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.checkpoint import Checkpoint, save
from llmcli.formats.loading import load
from llmcli.formats.training_record import TrainingRecord
from tests.reliability.runs import TIMEOUT, invoke, small_model

NUMBERS = ("0", "-1", "1e-320", "1e308", "nan", "inf", "-inf", "1e400", "x", "")
WHOLE = ("0", "-1", "1000000000", "99999999999999999999", "1.5", "nan", "x", "")
OPTIONS = {
    "--temperature": NUMBERS, "--top-p": NUMBERS, "--min-p": NUMBERS, "--top-k": WHOLE,
    "--seed": WHOLE, "--samples": ("0", "-1", "2", "x"), "--next": ("0", "-1", "1000000000", "x"),
    "--stop": ("", "\n", "りんご"),
}  # fmt: skip


def sampling_options(where: Path, tries: int) -> list[str]:
    """R21: absurd values of every sampling option: output, or one line of error and exit code 2."""
    path = where / "model.safetensors"
    small_model(path)
    failures = []
    for option, values in OPTIONS.items():
        for value in values:
            length = [] if option == "--next" else ["-n", "3"]
            answer = invoke("generate", "Anna", "-m", str(path), *length, option, value)
            line = answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1
            if not (answer.exit_code == 0 or (answer.exit_code == 2 and line)) or "Traceback" in answer.stderr:
                failures.append(f"{option} {value!r}: {answer.exit_code}, {answer.stderr!r}, {answer.exception!r}")
    return failures


def long_prompts(where: Path, tries: int) -> list[str]:
    """R22: prompts without a token, of about a context length, and of `tries` MB."""
    path = where / "model.safetensors"
    small_model(path)
    context = load(path).config.max_position_embeddings
    failures = []
    for length in (0, 1, context - 1, context, context + 1, 10 * context, tries * 1_000_000):
        run = subprocess.run(
            [sys.executable, "-m", "llmcli", "generate", "-", "-n", "3", "-m", str(path)],
            input=b"\xc3\xa9"[:length] if length < 2 else b"q" * length, capture_output=True, timeout=TIMEOUT,
        )  # fmt: skip
        expected = 0 if length > 1 else 1
        line = run.stderr.count(b"\n") <= 1 and b"Traceback" not in run.stderr
        noted = b"only its end is used" in run.stderr or length <= context or expected != 0
        if run.returncode != expected or not line or not noted:
            failures.append(f"{length}: {run.returncode}, {run.stderr[-200:]!r}")
    return failures


# (what the shell runs, its expected exit codes, whether it may write to stderr)
PIPES = {
    "head": ("$LLM generate Anna -n 500 | head -c 1; exit ${PIPESTATUS[0]}", (0, 1, 141), False),
    "a closed output": ("$LLM generate Anna -n 5 >&-", (1,), True),
    "a full output": ("$LLM generate Anna -n 5 >/dev/full", (1,), True),
    "inspect into a full output": ("$LLM inspect model.safetensors >/dev/full", (1,), True),
    "closed errors": ("$LLM generate Anna -n 5 2>&-", (0,), False),
    "ASCII": ("PYTHONIOENCODING=ascii $LLM generate りんご -n 5", (0,), False),
    "the C locale": ("PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 LC_ALL=C $LLM generate りんご -n 5", (0,), False),
    "a closed input": ("$LLM generate - <&-", (1, 2), True),
    "tokens into head": ("$LLM tokenize \"$(head -c 100000 /dev/zero | tr '\\0' a)\" | head -1; exit ${PIPESTATUS[0]}",
                         (0, 1, 141), False),
}  # fmt: skip


def pipes(where: Path, tries: int) -> list[str]:
    """R23: closed pipes, full disks and ASCII encodings: no traceback, and no colours outside a terminal."""
    small_model(where / "model.safetensors")
    failures = []
    for name, (line, codes, words) in PIPES.items():
        if "/dev/full" in line and not Path("/dev/full").is_char_device():  # the shell would create a file
            continue
        run = subprocess.run(
            ["bash", "-c", line],
            cwd=where, env=os.environ | {"LLM": f"{sys.executable} -m llmcli"}, capture_output=True, timeout=TIMEOUT,
        )  # fmt: skip
        quiet = words or not run.stderr
        if run.returncode not in codes or not quiet or b"Traceback" in run.stderr or b"\x1b[" in run.stdout:
            failures.append(f"{name}: {run.returncode}, {run.stderr[-300:]!r}")
    return failures


HOSTILE = "\x1b]52;c;YQ==\x07\x1b[2J\x9b31m\u202e\u2066[red]\x08\x7f"


def commanding_text(where: Path, tries: int) -> list[str]:
    """R24: terminal escape sequences in text and names are escaped by every command; in a pipe, text is unchanged."""
    tokenizer = Tokenizer.train_char([HOSTILE + "Anna"])
    config = ModelConfig(tokenizer.vocab_size, 16, 32, 1, 2, 1, 8, 64)
    tensors = {name: np.zeros(shape, "f4") for name, shape in config.tensor_shapes().items()}
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        tensors[name][:] = 1
    tensors["lm_head.weight"][:] = -1
    tensors["lm_head.weight"][tokenizer.encode(HOSTILE)] = 1  # it generates only these
    record = {"corpus": [{"name": HOSTILE, "bytes": 1, "sha256": HOSTILE}], "steps": 1, HOSTILE: HOSTILE}
    path = where / "model.safetensors"
    save(path, Checkpoint(config, tokenizer.to_json(), tensors, TrainingRecord.from_json(record)))
    failures = []
    for words in (
        ["generate", HOSTILE, "-n", "200", "--min-p", "0", "--seed", "1"],
        ["generate", HOSTILE, "-n", "200", "--min-p", "0", "--seed", "1", "--color"],
        ["generate", HOSTILE, "--next", "20"],
        ["tokenize", HOSTILE],
        ["inspect", "model.safetensors"],
        ["inspect", "--tensors", "model.safetensors"],
        ["inspect", HOSTILE],
        ["generate", "x", "-m", HOSTILE],
    ):
        shown = _in_terminal(where, words)
        for bad in (b"\x1b]", b"\x1b[2J", "\x9b".encode(), "\u202e".encode(), "\u2066".encode(), b"\x08", b"\x7f"):
            if bad in shown:
                failures.append(f"{words[0]} {words[-1]!r} let {bad!r} through")
        if b"Traceback" in shown or not shown.strip():
            failures.append(f"{words[0]}: {shown[-200:]!r}")
    command = [sys.executable, "-m", "llmcli", "generate", "Anna", "-n", "200", "--min-p", "0", "--seed", "1"]
    if b"\x1b" not in subprocess.run(command, cwd=where, capture_output=True).stdout:
        failures.append("the model generates no escape sequence: the test proves nothing")
    return failures


def _in_terminal(where: Path, words: list[str]) -> bytes:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llmcli", *words]
    run = subprocess.Popen(command, cwd=where, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:
            break
        if not data:
            break
        seen += data
    os.close(ours)
    run.wait(TIMEOUT)
    return seen
