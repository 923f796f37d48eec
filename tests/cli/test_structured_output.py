"""--json-schema, --regex and --grammar of `llm generate` and `llm chat`, and the penalties."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("llguidance", reason='needs pip install "llmcli[structured]"')

from tests.cli.commands.test_chat import write_chat_model
from tests.conftest import Llm

SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, "りんご"]}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    """A model with random weights that can chat, and the files with a form."""
    (tmp_path / "form.json").write_text(json.dumps(SCHEMA), "utf-8")
    (tmp_path / "form.lark").write_text('start: "a" | "b"', "utf-8")
    return write_chat_model(tmp_path / "chat.safetensors")


def test_the_text_has_the_form(llm: Llm, chat_model: Path) -> None:
    for verb in ["generate", "chat"]:
        common = (verb, "The cat", "-m", chat_model)
        assert json.loads(llm(*common, "--json-schema", "form.json").stdout) in ({"n": 1}, {"n": "りんご"})
        assert re.fullmatch("[xy]{3}\n", llm(*common, "--regex", "[xy]{3}").stdout)
        assert llm(*common, "--grammar", "form.lark").stdout in ("a\n", "b\n")
    run = llm("generate", "The cat", "-m", chat_model, "--regex", "[xy]{3}", "--steps", 2, "--json")
    for step in json.loads(run.stdout)["steps"]:
        assert {candidate["text"] for candidate in step["candidates"]} == {"x", "y"}


def test_a_text_that_is_cut_off_says_so(llm: Llm, chat_model: Path) -> None:
    for json_ in [(), ("--json",)]:
        for verb in ["generate", "chat"]:
            run = llm(verb, "The cat", "-m", chat_model, "--regex", "[xy]{9}", "-n", 3, *json_)
            assert run.exit_code == 0 and "(cut off after 3 tokens; " in run.stderr
            assert not json_ or json.loads(run.stdout)["finish_reason"] == "length"


def test_each_line_and_each_row_has_the_form(llm: Llm, chat_model: Path) -> None:
    Path("prompts.txt").write_text("The cat\nThe ca\nりん\n", "utf-8")
    lines = llm("chat", "-m", chat_model, "--batch", "-", "--regex", "[xy]{3}", stdin="one\ntwo\n").stdout
    rows = llm("generate", "-m", chat_model, "--batch", "prompts.txt", "--regex", "[xy]{3}").stdout
    texts = [json.loads(line)["content"] for line in lines.splitlines()]
    texts += [json.loads(row)["text"] for row in rows.splitlines()]
    assert len(texts) == 5 and all(re.fullmatch("[xy]{3}", text) for text in texts)


def test_a_form_that_cannot_be_had_is_one_line(llm: Llm, chat_model: Path) -> None:
    for words, message in [
        (("--regex", "a", "--grammar", "form.lark"), "--regex and --grammar cannot be combined"),
        (("--regex", "a", "--choices", "a,b"), "--regex has no effect with --choices"),
        (("--regex", "a", "--next", 3), "--regex has no effect with --next"),
        (("--regex", "a", "--stop", "x"), "--stop would cut the structured output short"),
        (("--json-schema", "none.json"), "there is no file none.json; name a file with the JSON schema"),
        (("--json-schema", "form.lark"), "form.lark is not JSON: "),
        (
            ("--grammar", "itself.lark", "--batch", "prompts.txt"),
            "error: the grammar cannot be used: no text fits it\n",
        ),
    ]:
        Path("prompts.txt").write_text("The cat\nThe ca\n")
        Path("itself.lark").write_text("start: a\na: a")
        run = llm("generate", *(() if "--batch" in words else ("The cat",)), "-m", chat_model, *words)
        assert run.exit_code in (1, 2) and run.stdout == ""
        assert message in run.stderr and run.stderr.count("\n") == 1
