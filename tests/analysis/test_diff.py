"""Two files side by side, against numpy's own norms; weights by part against numpy's histograms."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from safetensors.numpy import save_file
from typer.testing import Result

from llmcli.analysis.diff import difference
from llmcli.data.tokenizer import Tokenizer
from llmcli.formats.checkpoint import load, save
from llmcli.formats.safetensors_file import read_header
from tests.cli.terminals import STYLES, in_a_terminal
from tests.conftest import TEXT, random_checkpoint

Llm = Callable[..., Result]


@pytest.fixture
def changed(tiny_model: Path) -> Path:
    """other.safetensors: the same model but for two tensors, a key of its config and its tokenizer."""
    model = load(tiny_model)
    tensors = {name: array.copy() for name, array in model.tensors.items()}
    tensors["model.norm.weight"] *= 1.5
    tensors["model.layers.1.mlp.up_proj.weight"][0] += 0.5
    tokenizer = Tokenizer.train_bpe([TEXT.upper()], 300)
    config = replace(model.config, rope_theta=500.0, vocab_size=300)
    save(Path("other.safetensors"), replace(
        model, tensors=tensors, config=config, tokenizer_json=tokenizer.to_json()
    ))  # fmt: skip
    return Path("other.safetensors")


def test_distances_are_numpys_norms_and_the_farthest_comes_first(tiny_model: Path, changed: Path) -> None:
    told: list[float] = []
    found = difference(read_header(tiny_model), read_header(changed), told.append)
    a, b = load(tiny_model).tensors, load(changed).tensors
    wanted = {name: np.linalg.norm(b[name] - a[name]) / np.linalg.norm(a[name]) for name in a}
    assert {t.name: t.distance for t in found.tensors} == pytest.approx(wanted, rel=1e-5)
    assert found.tensors[0].distance == pytest.approx(0.5) and found.tensors[0].name == "model.norm.weight"
    assert found.tensors[1].largest == pytest.approx(0.5) and not any(t.distance for t in found.tensors[2:])
    assert found.config == {"rope_theta": (10000.0, 500.0)}
    assert told[-1] == 1 and told == sorted(told)
    both = [set(Tokenizer.from_json(load(path).tokenizer_json).token_bytes) - {b""} for path in (tiny_model, changed)]
    assert found.shared_tokens == len(both[0] & both[1]) < 299


def test_a_file_and_itself_differ_in_nothing(tiny_model: Path, llm: Llm) -> None:
    found = json.loads(llm("inspect", tiny_model, "--diff", tiny_model, "--json").stdout)
    assert not any(t["distance"] or t["largest"] for t in found["tensors"]) and len(found["tensors"]) == 25
    assert (found["config"], found["tokenizer"], found["shared_tokens"]) == ({}, {}, 299)
    assert "25 tensors are equal" in llm("inspect", "--diff", tiny_model).stdout


def test_files_of_others_are_compared_by_name_and_shape() -> None:
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    save_file({"a": zeros, "b": ones, "c": ones, "n": ones * np.nan}, "a.safetensors")
    save_file({"a": ones, "b": np.ones((3, 1), np.float32), "d": ones, "n": ones}, "b.safetensors")
    found = difference(read_header("a.safetensors"), read_header("b.safetensors"))
    assert {t.name for t in found.tensors} == {"a", "n"}
    distances = {t.name: t.distance for t in found.tensors}
    assert distances["a"] == math.inf and math.isnan(distances["n"])
    assert found.reshaped == {"b": ((3,), (3, 1))} and found.shared_tokens is None
    assert (found.only_first, found.only_other) == (("c",), ("d",))


def test_a_model_in_few_bits_is_compared_by_what_they_stand_for(tiny_model: Path) -> None:
    model = load(tiny_model)
    save(Path("few.safetensors"), replace(model, quantization="int8"))
    found = difference(read_header(tiny_model), read_header("few.safetensors"))
    assert not found.only_first and not found.only_other
    assert 0 < found.tensors[0].distance < 0.02


def test_json_and_picture_of_a_difference(llm: Llm, tiny_model: Path, changed: Path) -> None:
    found = json.loads(llm("inspect", "--diff", changed, "--json").stdout)
    assert set(found) == {
        "file", "other", "config", "tokenizer", "shared_tokens", "tensors", "reshaped", "only_first", "only_other"
    }  # fmt: skip
    assert found["config"] == {"rope_theta": [10000.0, 500.0]}
    for columns in ("80", "200"):
        shown = STYLES.sub("", in_a_terminal("inspect", "--diff", str(changed), COLUMNS=columns).split("\x1b[K")[-1])
        assert "rope_theta" in shown and "23 tensors are equal" in shown and "0.5000" in shown
        assert all(cell_len(line.rstrip()) <= int(columns) for line in shown.splitlines())


# ---- weights by part


def test_the_weights_of_a_part_are_numpys_histogram(llm: Llm, tiny_model: Path) -> None:
    found = {part["name"]: part for part in json.loads(llm("inspect", "--weights", "--json").stdout)["parts"]}
    tensors = load(tiny_model).tensors
    part = found["model.layers.self_attn.q_proj.weight"]
    values = np.concatenate([tensors[f"model.layers.{i}.self_attn.q_proj.weight"].ravel() for i in range(2)])
    assert part["tensors"] == 2 and part["parameters"] == values.size
    wanted = [values.mean(), values.std(), values.min(), values.max()]
    assert [part[key] for key in ("mean", "deviation", "min", "max")] == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert part["histogram"] == np.histogram(values.astype(float), len(part["histogram"]))[0].tolist()
    assert sum(p["parameters"] for p in found.values()) == load(tiny_model).config.parameters


def test_the_weights_are_a_tree_with_histograms(tiny_model: Path) -> None:
    checkpoint = random_checkpoint(load(tiny_model).config, tokenizer_json=load(tiny_model).tokenizer_json)
    checkpoint.tensors["model.norm.weight"][:] = np.nan
    save(tiny_model, checkpoint)
    for columns in ("80", "200"):
        shown = STYLES.sub("", in_a_terminal("inspect", "--weights", COLUMNS=columns).split("\x1b[K")[-1])
        assert "q_proj.weight x 2" in shown and "█" in shown and "no finite number" in shown
        assert bool(re.search(r"[\d.]+ to \+", shown)) is (columns == "200")
        assert all(cell_len(line.rstrip()) <= int(columns) for line in shown.splitlines())
