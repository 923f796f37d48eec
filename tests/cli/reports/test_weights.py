"""The statistics of weights by group, compared with numpy's."""

from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
from tests.cli.terminals import STYLES, in_a_terminal
from tests.conftest import random_checkpoint


@pytest.mark.slow
def test_weights_are_shown_as_a_tree_with_histograms(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint(load(tiny_model).config, tokenizer_json=load(tiny_model).tokenizer_json)
    checkpoint.tensors["model.norm.weight"][:] = np.nan
    monkeypatch.setattr("llmcli.formats.checkpoint.checked_finite", lambda name, values: values)
    save(tiny_model, checkpoint)
    for columns in ("80", "200"):
        shown = STYLES.sub("", in_a_terminal("inspect", "--weights", COLUMNS=columns).split("\x1b[K")[-1])
        assert "q_proj.weight x 2" in shown and "█" in shown and "no finite value" in shown
        assert all(cell_len(line.rstrip()) <= int(columns) for line in shown.splitlines())
