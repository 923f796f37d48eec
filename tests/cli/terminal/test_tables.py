"""Tables and trees: at any width of a terminal, and in a pipe."""

import pytest

from llmcli.cli.terminal import tables
from tests.cli.terminals import STYLES, colored_stdout


def test_a_tree_connects_children_and_siblings(capsys: pytest.CaptureFixture[str]) -> None:
    tables.tree([(0, "a", "", ""), (1, "b", "", ""), (1, "c", "", ""), (0, "d", "", "")])
    assert capsys.readouterr().out.split("\n")[:4] == ["├─ a", "│  ├─ b", "│  └─ c", "└─ d"]


def test_a_number_in_a_table_is_never_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in [*range(1, 60), 80]:
        screen = colored_stdout(monkeypatch)
        monkeypatch.setenv("COLUMNS", str(columns))
        names = ("model", "bits/byte", "perplexity", "tokens")
        tables.table(
            names, [("model.safetensors", "0.300", "1.98", "5600"), ("xz", "0.381", "", "")], numbers=(1, 2, 3)
        )
        shown = STYLES.sub("", screen.getvalue())
        for word in ("0.300", "1.98", "5600", "0.381", "bits/byte"):
            assert word in shown.split(), shown
        assert columns < 32 or max(map(len, shown.splitlines())) <= columns
