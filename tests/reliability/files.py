"""Damaged, malformed and hostile model files, and files of other formats: read or refused, quickly."""

import ast
import json
import os
import random
import resource
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llmcli
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from tests.reliability.malformed import MALFORMED, OTHERS, made
from tests.reliability.runs import (
    KINDS,
    RESUME_FILE,
    TEXT,
    TIMEOUT,
    Calls,
    end,
    invoke,
    measured,
    python,
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


def malformed_files(where: Path, tries: int) -> list[str]:
    """R15: each of a catalogue of malformed files and files of other formats is refused in one line; of
    the huge ones as many as `tries`."""
    failures = []
    path = where / "x.safetensors"
    cases = {name: make() for name, (make, _) in OTHERS.items()}
    cases |= {name: made(header, body) for name, (header, body, _) in MALFORMED.items()}
    for name, data in cases.items():
        path.write_bytes(data)
        for words in (["inspect", str(path)], ["generate", "x", "-m", str(path)]):
            answer = invoke(*words)
            if answer.exit_code != 1 or not _is_clean(answer):
                failures.append(f"{name}, {words[0]}: {answer.exit_code}, {answer.stderr!r}, {answer.exception!r}")
    return failures + [failure for name, make in [*HUGE.items()][:tries] for failure in _measured(where, name, make)]


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

BAD_VALUES: tuple[Any, ...] = (0, -1, 1 << 31, 1 << 62, 10**30, 1.5, float("nan"), "8", None, [], {}, True)


def absurd_configs(where: Path, tries: int) -> list[str]:
    """R16: each number of a config in turn is made absurd: refused in one line, with few function calls and 300 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failures = [failure for kind in ("dense", "experts") for failure in _absurd(where / "model.safetensors", kind)]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return failures if grown < 300 else [*failures, f"memory grew by {grown:.0f} MB"]


def _absurd(path: Path, kind: str) -> list[str]:
    small_model(path, kind)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]["sha256"]  # as an attacker would
    config = json.loads(header["__metadata__"]["config.json"])
    failures = []
    for key in [key for key, value in config.items() if type(value) is int]:
        for value in BAD_VALUES:
            header["__metadata__"]["config.json"] = json.dumps(config | {key: value})
            path.write_bytes(made(header, data[8 + length :]))
            with Calls() as calls:
                answer = invoke("generate", "Anna", "-n", "1", "-m", str(path))
            unused = key in UNUSED or (key, kind) == ("intermediate_size", "experts") or value is None
            refused = answer.exit_code == 1 or unused
            if not refused or not _is_clean(answer) or calls.number > MAX_CALLS:
                failures.append(f"{key} = {value!r}: {answer.exit_code}, {answer.stderr!r}, {answer.exception!r}")
    return failures


UNUSED = {  # keys for which some of the values are valid
    "bos_token_id", "eos_token_id", "max_window_layers", "max_position_embeddings", "decoder_sparse_step",
}  # fmt: skip


def tokenizer_bombs(where: Path, tries: int) -> list[str]:
    """R17: tokenizers designed to hang or to abort: refused in one line, or limited, in a process of 4 GB."""
    made = json.loads(Tokenizer.train_bpe([TEXT], 300).to_json())
    model, cutter = made["model"], made["pre_tokenizer"]

    def split(pattern: Any, behavior: str = "Isolated") -> dict[str, Any]:
        step = {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}
        return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [step, cutter]}}

    def replace(text: str, times: int) -> dict[str, Any]:
        step = {"type": "Replace", "pattern": {"String": "a"}, "content": text}
        return {"normalizer": {"type": "Sequence", "normalizers": [step] * times}}

    fixed = {"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    bombs: dict[str, Any] = {
        "a pattern that never ends": split({"Regex": "(a+)+$"}),
        "an invalid pattern": split({"Regex": "(["}),
        "a pattern of 1 MB": split({"Regex": "(" * 500_000 + ")" * 500_000}),
        "a million steps": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [cutter] * 1_000_000}},
        "a split by nothing": split({"String": ""}),
        "a split that removes": split({"String": "a"}, "Removed"),
        "padding": {"padding": fixed | {"pad_type_id": 0, "pad_token": "x"}},
        "truncation": {"truncation": {"max_length": 0, "strategy": "LongestFirst", "stride": 1 << 60}},
        "a text that grows": replace("a" * 1000, 20),
        "a decoder that grows": {"decoder": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x" * 9999}},
        "a template": {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}] * 99}},
        "an id of four billion": {"model": model | {"vocab": model["vocab"] | {"zz": 4_294_967_295}}},
        "an id twice": {"model": model | {"vocab": model["vocab"] | {"zz": 5}}},
        "merges without end": {"model": model | {"merges": [["zz", "zz"]] * 100_000}},
        "added tokens of nothing": {"added_tokens": [{"id": 300, "content": "", "special": True}]},
        "dropout": {"model": model | {"dropout": 0.999}},
    }
    failures = []
    for name, bomb in bombs.items():
        (where / "tokenizer.json").write_text(json.dumps(made | bomb), "utf-8")
        run = python(where, LIMITED, "tokenize", "-m", "tokenizer.json", "--json", "a" * 40 + "!")
        out, stderr = run.communicate(timeout=TIMEOUT)
        refused = run.returncode == 1 and stderr.startswith(b"error: ") and stderr.count(b"\n") == 1
        if not refused and not (run.returncode == 0 and len(json.loads(out)["ids"]) <= 41):
            failures.append(f"{name}: {run.returncode}, {stderr[-200:]!r}")
    return failures


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
from llmcli.cli.main import main
main()
"""
EXECUTING = {"pickle", "cPickle", "dill", "marshal", "shelve", "jinja2", "joblib", "cloudpickle"}


def nothing_executes(where: Path, tries: int) -> list[str]:
    """R18: no module loads pickles or evaluates text; templates are rendered in a separate process, in a sandbox;
    files that are pickles are refused."""
    failures = []
    for source in Path(llmcli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            names_ = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            called = node.func if isinstance(node, ast.Call) else None
            bad = isinstance(called, ast.Name) and called.id in ("eval", "exec", "compile", "__import__")
            bad |= ast.unparse(called).endswith("torch.load") if called else False
            executing = EXECUTING & {name.split(".")[0] for name in names_}
            if bad or (executing and (source.name, executing) != ("template_worker.py", {"jinja2"})):
                failures.append(f"{source.name}, line {node.lineno}")
    canary = where / "fired"
    pickled = b"\x80\x04cposix\nsystem\n(V" + b"touch " + os.fsencode(canary) + b"\ntR."
    (where / "model.safetensors").write_bytes(pickled)
    (where / "model.pt").write_bytes(pickled)
    for name in ("model.safetensors", "model.pt"):
        for words in (["inspect"], ["generate", "x", "-m"], ["train", "c.txt", "--steps", "1", "--from"]):
            (where / "c.txt").write_text(TEXT, "utf-8")
            answer = invoke(*words, str(where / name)) if words[0] != "train" else None
            if answer and (answer.exit_code != 1 or not _is_clean(answer)):
                failures.append(f"{name}, {words[0]}: {answer.exit_code}, {answer.stderr!r}")
    if canary.exists():
        failures.append("the pickle was executed")
    return failures


SPARSE = """
import resource, sys
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from llmcli.cli.main import main
try:
    main()
except SystemExit as ended:
    if ended.code:
        raise
usage = resource.getrusage(resource.RUSAGE_SELF)
print("", usage.ru_maxrss - before, "torch" in sys.modules)
"""


def huge_file(where: Path, tries: int) -> list[str]:
    """R25: `inspect` of a sparse file of 140 GB takes less than 100 MB of memory and does not import torch."""
    layers = 80
    infos, position = {}, 0
    for i in range(layers):
        size = 875_000_000
        infos[f"layers.{i}.weight"] = {
            "dtype": "BF16",
            "shape": [size],
            "data_offsets": [position, position + 2 * size],
        }
        position += 2 * size
    _write(where / "big.safetensors", json.dumps(infos).encode(), position)
    if (where / "big.safetensors").stat().st_size < 140e9:
        return ["the file is too small"]
    run = python(where, SPARSE, "inspect", "big.safetensors")
    out, stderr = run.communicate(timeout=TIMEOUT)
    (where / "big.safetensors").unlink()
    if run.returncode:
        return [f"ended with {run.returncode}: {stderr[-300:]!r}"]
    kilobytes, torch = out.split()[-2:]
    return (
        [] if int(kilobytes) < 100_000 and torch == b"False" else [f"{kilobytes.decode()} kB, torch: {torch.decode()}"]
    )
