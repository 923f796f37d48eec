"""Damaged and huge model files: read or refused, quickly."""

import random
import resource
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmcli.errors import LLMError
from tests.reliability.runs import (
    KINDS,
    RESUME_FILE,
    Calls,
    end,
    invoke,
    measured,
    small_model,
    train,
    wait_until_saved,
)


def changed(where: Path, tries: int, change: Callable[[bytes, random.Random], bytes], *commands: str) -> list[str]:
    """Run commands on small models, of each kind in turn, whose bytes were changed. Each must succeed or refuse in one
    line, with few function calls. Returns the failures."""
    path = where / "model.safetensors"
    wholes = []
    for kind in KINDS:
        small_model(path, kind)
        wholes.append(path.read_bytes())
    rng = random.Random(8)
    failures = []
    for number in range(tries):
        path.write_bytes(change(wholes[number % len(wholes)], rng))
        for command in commands:
            with Calls() as calls:
                answer = invoke(*COMMANDS[command], str(path))
            if calls.number > MAX_CALLS or not (_is_clean(answer) and (answer.exit_code or command != "verify")):
                failures.append(
                    f"{number}, {command}: {answer.exit_code}, {calls.number:,} calls, {answer.exception!r}"
                )
    return failures


def _is_clean(answer: Any) -> bool:
    """Whether a command succeeded, or refused in one line."""
    refused = answer.exit_code in (1, 2) and answer.stderr.startswith("error: ")
    return (answer.exit_code == 0 or refused) and "Traceback" not in answer.stderr


MAX_CALLS = 300_000  # function calls: several times as many as for an undamaged small model
MAX_CALLS_HUGE = 10_000_000  # for a file of up to 100 MB
COMMANDS = {
    "verify": ["inspect", "--verify"],
    "inspect": ["inspect"],
    "generate": ["generate", "Anna", "-n", "2", "-m"],
}


def flipped_bits(where: Path, tries: int) -> list[str]:
    """R8: `inspect --verify` detects any flipped bit of a model file."""
    return changed(where, tries, _flipped, "verify")


def mutants(where: Path, tries: int) -> list[str]:
    """R14: mutated model files and resume files are read or refused in one line, with few function calls and at most
    300 MB of additional memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failures = changed(where, tries, _mutated, "inspect", "generate") + _mutated_resumes(where, tries)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return failures if grown < 300 else [*failures, f"memory grew by {grown:.0f} MB"]


def _mutated_resumes(where: Path, tries: int) -> list[str]:
    from llmcli.training.files import resume

    (where / "model.safetensors").unlink()
    run = train(where, steps=10_000)
    wait_until_saved(run, where)
    end(run, signal.SIGKILL)
    path = where / RESUME_FILE
    whole = path.read_bytes()
    rng = random.Random(9)
    failures = []
    for number in range(tries):
        path.write_bytes(data := _mutated(whole, rng))
        with Calls() as calls:
            try:
                resume.load(path)
                if data != whole:
                    failures.append(f"{number}: a mutated resume file was accepted")
            except LLMError as error:
                if "`overwrite=True`" not in str(error):
                    failures.append(f"{number}: does not say what to type: {error}")
        if calls.number > MAX_CALLS:
            failures.append(f"{number}: {calls.number:,} calls")
    return failures


def _flipped(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(whole)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _mutated(whole: bytes, rng: random.Random) -> bytes:
    """A few changes, most of them in the header."""
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


def huge_files(where: Path, tries: int) -> list[str]:
    """R15: as many of a catalogue of huge files as `tries`, each read or refused in one line."""
    return [failure for name, make in [*HUGE.items()][:tries] for failure in _measured(where, name, make)]


def _measured(where: Path, name: str, make: Callable[[Path], int]) -> list[str]:
    """`inspect`, in its own process, on a huge file: it ends with the expected exit code, with few function calls for
    the size of the file and less than 600 MB of memory."""
    path = where / "huge.safetensors"
    expected = make(path)
    code, stderr, megabytes, calls = measured(where, "inspect", str(path), counted=True)
    path.unlink()
    failures = []
    if code != expected or "Traceback" in stderr:
        failures.append(f"{name}: ended with {code}, {stderr[-200:]!r}")
    if megabytes > 600 or calls > MAX_CALLS_HUGE:
        failures.append(f"{name}: {megabytes:.0f} MB, {calls:,} calls")
    return failures


def _write(path: Path, header: bytes, size: int | None = None) -> None:
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        if size is not None:
            file.truncate(8 + len(header) + size)


def _many_tensors(path: Path) -> int:
    info = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    _write(path, b"{" + b",".join(b'"t%d":%b' % (i, info) for i in range(1_000_000)) + b"}")
    return 1


def _many_keys(path: Path) -> int:
    _write(path, b'{"__metadata__":{' + b",".join(b'"k%d":""' % i for i in range(1_000_000)) + b"}}")
    return 1


def _long_text(path: Path) -> int:
    _write(path, b'{"__metadata__":{"k":"' + b"x" * 50_000_000 + b'"}}')
    return 0


def _spaces(path: Path) -> int:
    _write(path, b"{" + b" " * 99_000_000 + b"}")
    return 0


def _many_numbers(path: Path) -> int:
    _write(path, b'{"a":{"dtype":"F32","shape":[' + b"999," * 20_000_000 + b'1],"data_offsets":[0,0]}}')
    return 1


HUGE = {
    "a million empty tensors": _many_tensors,
    "a million names in the metadata": _many_keys,
    "a text of 50 MB in the metadata": _long_text,
    "99 MB of spaces": _spaces,
    "twenty million sizes of a tensor": _many_numbers,
}
