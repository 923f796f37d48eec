"""Colors of tokens."""

import re

import pytest

from llmcli.cli.terminal import styles
from tests.cli.terminals import colored_stdout


def test_a_likely_token_is_greener_than_an_unlikely_one(monkeypatch: pytest.MonkeyPatch) -> None:
    colored_stdout(monkeypatch)
    shown = "".join(styles.by_value("x", p, styles.PROBABILITIES) for p in (0.001, 0.05, 0.2, 0.5, 0.8, 0.99))
    assert re.findall(r"48;5;(\d+)", shown) == ["88", "130", "136", "100", "64", "28"]


def test_a_background_ends_with_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    colored_stdout(monkeypatch)
    assert styles.by_value("a\nb", 0.5, styles.PROBABILITIES).split("\n")[0].endswith("\x1b[0m")
