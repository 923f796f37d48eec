"""The table of hyperparameters: each constant has a source that exists, and is used."""

import ast
import itertools
import re
from pathlib import Path

from llmcli.training.planning import recipe

ROOT = Path(__file__).parents[3]
SOURCE = Path(recipe.__file__).read_text("utf-8")
LINES = SOURCE.splitlines()


def comment(node: ast.Assign) -> str:
    """The comment lines above an assignment, and the comment at its end."""
    above = itertools.takewhile(lambda line: line.startswith("# "), reversed(LINES[: node.lineno - 1]))
    return "\n".join([*above, LINES[(node.end_lineno or 1) - 1].partition("#")[2]])


# constant -> what is in brackets in its comments
SOURCES = {
    node.targets[0].id: " ".join(re.findall(r"\[(.+?)\]", comment(node)))
    for node in ast.parse(SOURCE).body
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.end_lineno
}
LOG = (ROOT / "tests/benchmarks/LOG.md").read_text("utf-8")
HEADINGS = re.findall(r"^(?:### |(?:- )?\*\*)(.+)", LOG, re.MULTILINE)


def test_every_constant_is_in_the_table_and_used() -> None:
    assert set(SOURCES) == {name for name in vars(recipe) if name.isupper()}
    others = [file for file in (ROOT / "llmcli").rglob("*.py") if file != Path(recipe.__file__)]
    used = {name for file in others for name in re.findall(r"\brecipe\.([A-Z]\w*)", file.read_text("utf-8"))}
    used |= set(re.findall(r"\b[A-Z]\w*", SOURCE[SOURCE.index("\ndef ") :]))
    assert set(SOURCES) <= used


def test_every_constant_has_a_source() -> None:
    """The beginning of one heading of LOG.md, or of several; a publication; or the word "chosen"."""
    for name in SOURCES:
        titles = re.findall('"(.+?)"', SOURCES[name])
        assert titles or re.search(r"chosen|arXiv:\d{4}\.\d{5}|nanochat|modded-nanogpt", SOURCES[name])
        for title in titles:
            assert len([heading for heading in HEADINGS if heading.startswith(title)]) == 1, title
