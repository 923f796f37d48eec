"""Text that is JSON or JSON Lines gets a note with the command that extracts its text."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from llmcli.data.json_text import json_note
from tests.conftest import TEXT

Llm = Callable[..., Result]


def lines(*records: object) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


CHAT = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Bye"}]}
JSON = [
    ("a.jsonl", lines({"id": 1, "text": "One."}, {"id": 2, "text": "Two."}), "JSON Lines", ["One.", "Two."]),
    ("a.txt", lines({"text": "One."}, {"text": "Two."}), "JSON Lines", ["One.", "Two."]),
    ("one.jsonl", lines({"text": "One."}), "JSON Lines", ["One."]),
    ("a.jsonl", lines({"q": "?", "a b": "Three."}, {"q": "?", "a b": "x"}), "JSON Lines", ["Three.", "x"]),
    ("chat.jsonl", lines(CHAT, CHAT), "JSON Lines", ["Hello", "Bye"] * 2),
    ("a.json", json.dumps([{"text": "One."}, {"text": "Two."}], indent=2), "JSON", ["One.", "Two."]),
    ("a.json", json.dumps({"title": "x", "content": "One."}), "JSON", ["One."]),
    ("a.json", json.dumps([CHAT]), "JSON", ["Hello", "Bye"]),
    ("a.json", json.dumps([1, 2, 3]), "JSON", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "file_format", "expected"), JSON)
def test_the_note_on_json_has_a_command_that_extracts_its_text(
    name: str, text: str, file_format: str, expected: list[str] | None
) -> None:
    note = json_note(name, text, complete=True)
    assert note and note.startswith(f"{name} is {file_format}; it is used as plain text, with")
    assert ("jq -r" in note) == (expected is not None)
    if expected is None or not shutil.which("jq"):
        return
    Path(name).write_text(text, "utf-8")
    command = note.split("to train on one field only: ")[1]
    subprocess.run(command, shell=True, check=True)
    assert Path(shlex.split(command)[-1]).read_text("utf-8").split("\n") == [*expected, ""]


@pytest.mark.parametrize(
    "text", ["", "Once upon a time", "{ x }\n{ y }\n", "[Scene 1]\nEnter", "12\n13\n", '"quoted"\n', "{}\n"]
)
def test_other_text_is_not_mistaken_for_json(text: str) -> None:
    assert json_note("a.txt", text, complete=True) is None


def test_a_line_that_is_no_json_is_named() -> None:
    good = lines({"prompt": "Hi", "completion": "Ho"})
    for text, line in (("\n{'prompt': 'Hi'}\n" * 3, 2), (good + '{"prompt": "a\tb"}\n' * 9, 2), ("Hello\n", 1)):
        assert json_note("a.jsonl", text, complete=True) == (
            f"a.jsonl line {line}: no JSON object, as a file of that name has; the file is used as plain text"
        )
    assert json_note("a.jsonl", good + '{"prompt"', complete=False) is not None  # the end may be cut off
    assert json_note("a.jsonl", "\n", complete=True) is None


def test_train_notes_that_json_is_used_as_plain_text(llm: Llm) -> None:
    Path("d").mkdir()
    for name in ("a.jsonl", "b.jsonl", "c.json"):
        Path("d", name).write_text(lines(*({"n": i, "text": "The cat sat."} for i in range(5000))), "utf-8")
    Path("d/d.txt").write_text(TEXT, "utf-8")
    note = llm("train", "d", "--dry-run", "--steps", 1).stderr.splitlines()
    assert note[0] == (
        "d/a.jsonl is JSON Lines; it is used as plain text, with its keys and braces; to train on one field only: "
        "jq -r .text d/a.jsonl > d/a.txt"
    )
    assert note[1] == "and 2 more files are JSON" and len(note) == 2
    assert llm("train", "d/d.txt", "--dry-run", "--steps", 1).stderr == ""
