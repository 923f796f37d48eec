"""The rows of the scorecard: what is tried, and what counts as a failure.

A row takes an empty directory and a number of tries and returns a line for each try that went wrong. Each fault that
is injected is proven to have struck.
"""

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmcli.checkpoint import Checkpoint, load, save
from llmcli.config import ModelConfig
from llmcli.tokenizer import StreamDecoder, Tokenizer
from tests.reliability.runs import TEXT, end, names, python, train, wait_until_kept

STEPS = 100


@dataclass(frozen=True)
class Row:
    """One line of the scorecard."""

    what: str
    run: Callable[[Path, int], list[str]]
    fast: int  # tries in the tests
    full: int


def wrong(process: "subprocess.Popen[bytes]", *codes: int) -> str:
    """ "" if a process ended with one of these codes and without a traceback, else what it did."""
    said = end(process)
    if process.returncode in codes and b"Traceback" not in said:
        return ""
    return f"ended with {process.returncode}: {said.decode('utf-8', 'replace')[-300:]}"


def small_model(path: Path) -> None:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    config = ModelConfig(tokenizer.vocab_size, 32, 64, 2, 4, 2, 8, 32)
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0, 0.2, shape).astype("f4") for name, shape in config.tensor_shapes().items()}
    save(path, Checkpoint(config, tokenizer.to_json(), tensors, {"steps": 0}))


def changed(where: Path, tries: int, change: Callable[[bytes, random.Random], bytes], *verbs: str) -> list[str]:
    """What went wrong with the verbs on a small model whose bytes were changed: each has to succeed or to refuse in a
    line, in less than a second."""
    from typer.testing import CliRunner

    from llmcli.cli import app

    path = where / "model.safetensors"
    small_model(path)
    whole = path.read_bytes()
    rng = random.Random(8)
    failures = []
    for number in range(tries):
        path.write_bytes(change(whole, rng))
        for verb in verbs:
            began = time.monotonic()
            answer = CliRunner().invoke(app, VERBS[verb] + [str(path)])
            took = time.monotonic() - began
            refused = answer.exit_code in (1, 2) and answer.stderr.startswith("error: ")
            clean = refused or (answer.exit_code == 0 and verb != "verify")
            if not clean or "Traceback" in answer.stderr or took > 1:
                failures.append(f"{number}, {verb}: {answer.exit_code}, {took:.1f} s, {answer.exception!r}")
    return failures


VERBS = {"verify": ["inspect", "--verify"], "inspect": ["inspect"], "generate": ["generate", "Anna", "-n", "2", "-m"]}


# ---- kills


def killed_and_resumed(where: Path, tries: int) -> list[str]:
    """R1, R2: kills at random instants; the file in the end is that of a run that never was killed."""
    began = time.monotonic()
    failures = [failure for failure in [wrong(train(where, steps=STEPS, output="whole.safetensors"), 0)] if failure]
    longest = time.monotonic() - began
    rng = random.Random(tries)
    done = 0
    while done < tries:
        process = train(where, steps=STEPS)
        try:
            process.wait(rng.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            if failure := wrong(process, -signal.SIGKILL):
                failures.append(failure)
            done += 1
            continue
        if failure := wrong(process, 0):  # it came to its end: compare, and begin the next run
            failures.append(failure)
            break
        failures += _same(where)
        (where / "model.safetensors").unlink(missing_ok=True)
    if not (where / "model.safetensors").exists():
        failures += [failure for failure in [wrong(train(where, steps=STEPS), 0)] if failure] + _same(where)
    if names(where) != ["c.txt", "model.safetensors", "whole.safetensors"]:
        failures.append(f"left behind: {names(where)}")
    return failures


def _same(where: Path) -> list[str]:
    first, second = (where / name for name in ("whole.safetensors", "model.safetensors"))
    if not second.exists() or first.read_bytes() != second.read_bytes():
        return ["the file is not that of a run that never was killed"]
    return []


KILLED_SAVE = """
import os, signal, sys
from llmcli.checkpoint import load, save
count = 0
def deadly(name):
    real = getattr(os, name)
    def call(*words, **more):
        global count
        count += 1
        if count == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*words, **more)
    setattr(os, name, call)
model = load("new.safetensors")
for name in ("open", "posix_fallocate", "write", "lseek", "fstat", "fsync", "fchmod", "replace", "close", "unlink"):
    deadly(name)
save("model.safetensors", model)
"""


def killed_while_saving(where: Path, tries: int) -> list[str]:
    """R3: a kill at each call of the system that a save makes: the old file or the new one. `tries` is not used."""
    failures = []
    small_model(where / "old.safetensors")
    small_model(where / "new.safetensors")
    model = load(where / "new.safetensors")
    model.record["steps"] = 1
    save(where / "new.safetensors", model)
    old, new = ((where / f"{name}.safetensors").read_bytes() for name in ("old", "new"))
    seen = set()
    for call in range(1, 200):
        (where / "model.safetensors").write_bytes(old)
        process = python(where, KILLED_SAVE, str(call))
        said = end(process)
        found = (where / "model.safetensors").read_bytes()
        seen.add(found)
        if found not in (old, new):
            failures.append(f"half a file after a kill at call {call}")
        if process.returncode == 0:
            break
        if process.returncode != -signal.SIGKILL:
            failures.append(f"call {call}: {said.decode()[-300:]}")
    if seen != {old, new}:
        failures.append("no kill left the old file, or none the new one")
    return failures


def signals(where: Path, tries: int) -> list[str]:
    """R7: each signal ends a run within 5 s with its code and what is needed to go on; so do two at once."""
    failures = []
    for number in range(tries):
        kind = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[number % 3]
        process = train(where, steps=STEPS)
        wait_until_kept(process, where)
        began = time.monotonic()
        process.send_signal(kind)
        twice = number % 2
        if twice:
            time.sleep(0.01)
            process.send_signal(kind)
        if failure := wrong(process, 128 + kind, *([130] if twice else [])):
            failures.append(failure)
        if time.monotonic() - began > 5:
            failures.append(f"{kind.name} took {time.monotonic() - began:.1f} s")
        if failure := wrong(train(where, steps=STEPS), 0):
            failures.append(f"after {kind.name}: {failure}")
        if names(where) != ["c.txt", "model.safetensors"]:
            failures.append(f"left behind: {names(where)}")
        (where / "model.safetensors").unlink(missing_ok=True)
    return failures


# ---- files


def flipped_bits(where: Path, tries: int) -> list[str]:
    """R8: any flipped bit of a model file is found by `inspect --verify`."""
    return changed(where, tries, _flipped, "verify")


def mutants(where: Path, tries: int) -> list[str]:
    """R14: mutated model files are read or refused in a line, in less than a second each."""
    return changed(where, tries, _mutated, "inspect", "generate")


def _flipped(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(whole)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _mutated(whole: bytes, rng: random.Random) -> bytes:
    """A few changes, most of them in the header, where they matter."""
    data = bytearray(whole)
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(rng.choice((1, 1, 2, 5))):
        end = header if rng.random() < 0.8 else len(data)
        place = rng.randrange(min(end, len(data)))
        kind = rng.randrange(6)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.randrange(256)
        elif kind == 2:
            del data[place : place + rng.randrange(1, 20)]
        elif kind == 3:
            data[place:place] = bytes(rng.choices(b'0123456789{}[]",:\\ux\0\xff', k=rng.randrange(1, 20)))
        elif kind == 4:
            data = data[: max(9, place)]
        else:
            digits = [i for i in range(8, min(header, len(data))) if 48 <= data[i] <= 57]
            if digits:
                data[rng.choice(digits)] = rng.choice(b"0123456789-")
    return bytes(data)


# ---- text


def streamed_text(where: Path, tries: int) -> list[str]:
    """R19: a text that comes piece by piece is the text decoded as a whole, for any bytes."""
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    rng = random.Random(19)
    failures = []
    for _ in range(tries):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(40))]
        decoder = StreamDecoder()
        streamed = "".join(decoder.feed(tokenizer.token_bytes[i]) for i in ids) + decoder.finish()
        if streamed != b"".join(tokenizer.token_bytes[i] for i in ids).decode("utf-8", "replace"):
            failures.append(f"ids {ids[:10]}")
    return failures


def text_stays_text(where: Path, tries: int) -> list[str]:
    """R20: any text comes back, and none becomes a control token."""
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    control = json.loads(tokenizer.to_json())["added_tokens"][0]["content"]
    rng = random.Random(20)
    pieces = [
        control,
        "<|im_start|>",
        "</s>",
        "<pad>",
        "りんご",
        "🍎",
        "\0",
        "\u202e",
        " ",
        "a",
        "\ud7ff",
        "\U0010ffff",
    ]
    failures = []
    for _ in range(tries):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 12)))
        ids = tokenizer.encode(text)
        if tokenizer.eos_id in ids or tokenizer.decode_bytes(ids) != text.encode("utf-8"):
            failures.append(repr(text))
    return failures


ROWS = {
    "R1 R2": Row("killed at random instants, resumed: the same bytes", killed_and_resumed, 1, 50),
    "R3": Row("killed at each call of a save: the old file or the new one", killed_while_saving, 1, 1),
    "R7": Row("signals, also twice at once: saved within 5 s, the right code", signals, 1, 20),
    "R8": Row("single flipped bits, all found", flipped_bits, 100, 1000),
    "R14": Row("mutated model files: read or refused in a line, at once", mutants, 100, 2000),
    "R19": Row("streamed text is the whole text", streamed_text, 1000, 10_000),
    "R20": Row("text stays text", text_stays_text, 1000, 10_000),
}
