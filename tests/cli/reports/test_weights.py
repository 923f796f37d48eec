"""The statistics of weights by group, compared with numpy's."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
from tests.cli.terminals import STYLES, in_a_terminal
from tests.conftest import Llm, random_checkpoint


def test_the_statistics_of_a_group_are_those_of_numpy(llm: Llm, tiny_model: Path) -> None:
    groups = {group["name"]: group for group in json.loads(llm("inspect", "--weights", "--json").stdout)["parts"]}
    tensors = load(tiny_model).tensors
    group = groups["model.layers.self_attn.q_proj.weight"]
    values = np.concatenate([tensors[f"model.layers.{i}.self_attn.q_proj.weight"].ravel() for i in range(2)])
    assert group["tensors"] == 2 and group["parameters"] == values.size
    expected = [values.mean(), values.std(), values.min(), values.max()]
    assert [group[key] for key in ("mean", "deviation", "min", "max")] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert group["histogram"] == np.histogram(values.astype(float), len(group["histogram"]))[0].tolist()
    assert sum(g["parameters"] for g in groups.values()) == load(tiny_model).config.parameters


@pytest.mark.slow
def test_weights_are_shown_as_a_tree_with_histograms(tiny_model: Path) -> None:
    checkpoint = random_checkpoint(load(tiny_model).config, tokenizer_json=load(tiny_model).tokenizer_json)
    checkpoint.tensors["model.norm.weight"][:] = np.nan
    save(tiny_model, checkpoint)
    for columns in ("80", "200"):
        shown = STYLES.sub("", in_a_terminal("inspect", "--weights", COLUMNS=columns).split("\x1b[K")[-1])
        assert "q_proj.weight x 2" in shown and "█" in shown and "no finite value" in shown
        assert all(cell_len(line.rstrip()) <= int(columns) for line in shown.splitlines())
