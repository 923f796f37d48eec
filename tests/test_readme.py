"""The options and files that the README shows exist."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

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
            r"\bllm (train|generate|chat|explain|eval|inspect|tokenize|mix|import|export)\b[^`\n|&]*",
            re.sub("<!--.*?-->", "", (ROOT / page).read_text("utf-8"), flags=re.S),
        )
    }
)


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 20


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_option_that_is_shown_exists(llm: Callable[..., Result], page: str, command: str) -> None:
    words = shlex.split(command.split("#")[0])
    known = llm(words[1], "--help").stdout
    for word in words[2:]:
        if word.startswith("-") and len(word) > 1:
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", known), word


def test_the_files_that_are_shown_exist() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for link in re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'srcset="([^"]+)"', text):
            assert link.startswith("https://") or (ROOT / page).parent.joinpath(link).exists(), link
        for example in re.findall(r"\bexamples/[\w.]+\.txt", text):
            assert (ROOT / example).exists(), example
