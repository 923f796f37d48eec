"""Tokens and probabilities: in a terminal and in a pipe."""

import pytest

from llmcli.cli.reports import tokens as token_output
from tests.cli.terminals import STYLES, colored_stdout


def test_tokens_are_shown_above_their_ids_and_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = colored_stdout(monkeypatch)
    monkeypatch.setenv("COLUMNS", "40")
    token_output.tokens(["りんご"] * 12, list(range(100, 112)))
    lines = STYLES.sub("", screen.getvalue()).split("\n")
    assert lines[0] == "りんご " * 5 and lines[1].split() == ["100", "101", "102", "103", "104"]
    assert lines[2] == "" and lines[4].split() == ["105", "106", "107", "108", "109"]
