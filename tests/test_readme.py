"""The options, files, arguments and keys that the documents name exist."""

import dataclasses
import inspect
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest

import llmcli
from llmcli import api
from llmcli.cli.app import SUBCOMMANDS
from llmcli.formats.training_record import TrainingRecord
from tests.conftest import Llm

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md", "README.ja.md", "examples/README.md", "examples/tour.md", "examples/tour.ja.md", "CONTRIBUTING.md",
    *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))),
]  # fmt: skip
COMMANDS = sorted(
    {
        (page, found[0].strip("`"))
        for page in PAGES
        for found in re.finditer(
            r"\bllm (train|generate|chat|serve|explain|eval|inspect|text|tokenize|mix|import|export|cache)\b[^`\n|&]*",
            re.sub("<!--.*?-->", "", (ROOT / page).read_text("utf-8"), flags=re.S),
        )
    }
)


def test_every_option_that_is_shown_exists(llm: Llm) -> None:
    assert len(COMMANDS) > 20
    for _, command in COMMANDS:
        words = shlex.split(command.split("#")[0])
        known = llm(words[1], "--help-all").stdout
        for word in words[2:]:
            if word.startswith("-") and len(word) > 1:
                assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", known), word


def test_the_examples_that_are_shown_exist() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for example in re.findall(r"\bexamples/[\w.]+\.txt", text):
            assert (ROOT / example).exists(), example


OF_OTHER_PROGRAMS = (
    "extra-index-url install-completion skipped-to pip-args no-deps torch-backend dist tags key tasks include_path "
    "model_args apply_chat_template nnodes standalone node-rank master-addr nproc-per-node max-restarts rdzv-backend "
    "rdzv-endpoint gpu price network-gbits mfu write only all shakespeare list max-minutes start-afresh budgets seeds "
    "beside"
)


def test_every_option_that_is_mentioned_exists(llm: Llm) -> None:
    known = {f"--{word}" for word in OF_OTHER_PROGRAMS.split()}
    known |= set(re.findall(r"--[\w-]+", "".join(llm(name, "--help-all").stdout for name in SUBCOMMANDS)))
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", (ROOT / page).read_text("utf-8")))
        assert named <= known, page


API = (ROOT / "docs" / "api.md").read_text("utf-8")


@pytest.mark.parametrize("function", [llmcli.load, llmcli.train], ids=["load", "train"])
def test_the_arguments_of_the_api_are_those_of_the_functions(function: Callable[..., object]) -> None:
    shown = re.search(rf"`({function.__name__}\((?:[^()]|\(\))*\))`", API)
    parameters = inspect.signature(function).parameters.values()
    plain = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
    expected = re.sub(r"=<function <lambda> at \w+>", "=...", str(inspect.Signature(plain)).replace("'", '"'))
    assert shown and " ".join(shown[1].split()) == function.__name__ + expected


def test_the_methods_and_options_of_the_api_exist() -> None:
    for name in re.findall(r"\bmodel\.(\w+)\(", API):
        assert callable(getattr(llmcli.Model, name)), name
    listed = re.search(r"`options` are (.*?)\. ", API, re.S)
    options = re.findall(r"\w+", re.sub(r"\(.*?\)|\band\b", "", listed[1])) if listed else []
    assert options == [*api.TrainOptions.__annotations__]
    for field in dataclasses.fields(llmcli.SamplingConfig):
        assert f"`{field.name}`" in API, field.name


def test_the_keys_of_the_training_record_are_documented() -> None:
    page = (ROOT / "docs" / "file-format.md").read_text("utf-8")
    table = page.partition("## The record of training")[2].partition("### ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.M)
    keys = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    read = get_type_hints(TrainingRecord).keys()
    assert read - {"experts", "document", "stage", "file"} <= keys
    source = "".join(path.read_text("utf-8") for path in (ROOT / "llmcli").rglob("*.py"))
    assert not [key for key in keys - read if f'"{key}"' not in source]
