"""Names of files and tensors, metadata and tokens with control characters: no command writes these to stdout or stderr,
and none of them breaks a line."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.cli.reports import tokens as token_output
from llmcli.cli.terminal import console
from llmcli.formats.safetensors import file as safetensors_file
from tests.sample_models import run

NAME = "m\x1b]0;x\x07\n\r\x9b31m\u202e\u2066\u200f\u061c\x7f"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def unsafe_characters(stream: str) -> list[str]:
    """The unsafe characters of NAME in a stream."""
    return UNSAFE.findall(stream) + re.findall("\n␍|\n␛", stream)


def strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def named(ending: str) -> str:
    return NAME + ending


MODEL, OTHER, MIXED, ADAPTER, TEXT = map(
    named, (".safetensors", "2.safetensors", "3.safetensors", "4.safetensors", ".txt")
)
DIRECTORY, GGUF, MISSING, NEW = map(named, ("-hf", ".gguf", "-no.safetensors", "-new.safetensors"))
TRAIN = ("train", TEXT, "--steps", 1, "--layers", 1, "--width", 16, "--context", 16, "--threads", 1)
COMMANDS: list[tuple[object, ...]] = [
    ("inspect", MODEL),
    ("inspect", MODEL, "--tensor", NAME),
    ("inspect", MODEL, "--json"),
    ("inspect", MODEL, "--verify"),
    ("inspect", DIRECTORY),
    ("inspect", GGUF),
    ("inspect", MISSING),
    ("generate", "The cat", "-m", MODEL, "--next", 3),
    ("generate", "The cat", "-m", MODEL, "-n", 2, "--memory", "--json", "--corpus", TEXT),
    ("generate", "The cat", "-m", MODEL, "-n", 2, "--experts"),
    ("generate", "The cat", "-m", MIXED, "-n", 2, "--experts", "--json"),
    ("generate", "The cat", "-m", ADAPTER),
    ("generate", NAME, "-m", MODEL, "-n", 2, "--json"),
    ("eval", TEXT, "-m", MODEL, "-m", OTHER),
    ("eval", TEXT, "-m", MODEL, "--json"),
    ("eval", TEXT, "-m", MODEL, "--per-token", "--whole"),
    ("eval", TEXT, TEXT, "-m", MODEL, "--whole"),
    ("explain", "The", "-m", MIXED),
    ("explain", "The", "-m", MODEL, "--html", named("2.html")),
    ("tokenize", NAME, "-m", MODEL),
    ("mix", MODEL, OTHER, "-o", named("6.safetensors"), "--json"),
    ("import", DIRECTORY, "-o", NEW, "--json"),
    ("import", DIRECTORY, "-o", NEW),
    ("import", DIRECTORY, "--adapter", ADAPTER, "-o", NEW, "--force"),
    ("import", MODEL, "-o", f"{NAME}/{NAME}.safetensors"),
    ("export", MODEL, named("2.gguf"), "--to", "gguf", "--json"),
    ("export", MODEL, named("3.gguf"), "--to", "gguf"),
    ("export", MODEL, named("-hf2"), "--to", "hf", "--name", NAME),
    ("export", MODEL, DIRECTORY, "--to", "hf"),
    ("export", MODEL, named("9.safetensors"), "--quantize", "int8"),
    (*TRAIN, "-o", named("10.safetensors")),
    (*TRAIN, "-o", named("10.safetensors")),
    (*TRAIN, "-o", named("11.safetensors"), "--json", "--val", TEXT),
    (*TRAIN[:4], "-o", named("13.safetensors"), "--from", MODEL),
    ("train", MISSING, "-o", named("14.safetensors")),
    (NAME,),
    ("inspect", "--" + NAME),
]


@pytest.fixture
def files(models: Path, own_directory: Path) -> None:
    for name, file in (
        (MODEL, "m.safetensors"), (OTHER, "other.safetensors"), (MIXED, "mixture.safetensors"), (TEXT, "c.txt"),
        (ADAPTER, "a.safetensors"),
    ):  # fmt: skip
        shutil.copy(models / file, name)
    shutil.copytree(models / "hf", DIRECTORY)


@pytest.mark.slow
@pytest.mark.usefixtures("short_search")
def test_every_command_marks_control_characters_of_file_names(files: None) -> None:
    pytest.importorskip("gguf", reason="needs the extra gguf")
    from llmcli.cli.app import app

    assert run("export", MODEL, GGUF, "--to", "gguf", "-q").exit_code == 0
    failures, shown, in_json = [], set(), set()
    for command in COMMANDS:
        answer = run(*command)
        assert answer.exception is None or isinstance(answer.exception, SystemExit), (command, answer.exception)
        for which, stream in (("stdout", answer.stdout), ("stderr", answer.stderr)):
            if found := unsafe_characters(stream):
                failures.append((command, which, found))
            shown |= {(command[0], which)} if "m␛" in stream or "m\\u001b" in stream else set()
        if "--json" in command and answer.exit_code == 0:
            printed = [json.loads(line) for line in answer.stdout.splitlines()]
            in_json |= {command[0]} if any(NAME in text for text in strings(printed)) else set()
    assert failures == []
    subcommands = {name for group in app.registered_commands if (name := group.name) and not group.hidden}
    assert {name for name, _ in shown} >= subcommands  # each of them has shown the name
    assert {name for name, which in shown if which == "stdout"} >= {"inspect", "eval", "export", "generate"}
    assert in_json >= {"inspect", "eval", "export", "generate", "import", "mix", "train"}  # JSON has it unchanged


def test_control_characters_of_metadata_are_marked(own_directory: Path) -> None:
    tensors = {f"layers.0.{NAME}.weight": np.zeros((2, 2), "f4"), NAME: np.ones(3, "f4")}
    record = {"corpus": [{"name": NAME, "bytes": 1, "sha256": NAME}], "imported": {NAME: NAME}, "verdict": [NAME]}
    record |= {"versions": {NAME: NAME}, "samples": {"prompt": NAME, "texts": [[1, NAME]]}, "train": {"dtype": NAME}}
    metadata = {NAME: NAME, "config.json": json.dumps({"model_type": NAME}), "training.json": json.dumps(record)}
    safetensors_file.write_tensors("a.safetensors", tensors, metadata)
    for command in (
        ("inspect", "a.safetensors"), ("inspect", "a.safetensors", "--json"), ("inspect", "a.safetensors", "--tensors"),
        ("inspect", "a.safetensors", "--weights"), ("inspect", "a.safetensors", "--weights", "--json"),
        ("inspect", "a.safetensors", "--tensor", NAME), ("inspect", "a.safetensors", "--tensor", NAME, "--json"),
    ):  # fmt: skip
        answer = run(*command)
        assert answer.exit_code == 0 and unsafe_characters(answer.stdout + answer.stderr) == [], command
        assert "m␛" in answer.stdout or "m\\u001b" in answer.stdout
        assert "--json" not in command or json.loads(answer.stdout)


def test_generated_text_is_unchanged_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    console.verbatim(NAME)
    token_output.with_highlights(NAME, [(1, 2)])
    assert capsys.readouterr().out == NAME + NAME[0] + f"⟦{NAME[1]}⟧" + NAME[2:]


def test_escaped_json_has_the_same_value(capsys: pytest.CaptureFixture[str]) -> None:
    value = {NAME: [NAME, "\u2028\ud800りんご🍎"], "x": 1.5}
    console.json_result(value)
    line = capsys.readouterr().out
    assert json.loads(line) == value and unsafe_characters(line) == [] and "りんご🍎" in line and line.count("\n") == 1
    console.json_result({"a": float("nan"), "b": [float("inf"), 1.0]})
    assert capsys.readouterr().out == '{"a": null, "b": [null, 1.0]}\n'
