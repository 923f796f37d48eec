"""Distances between two files compared with numpy's norms."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from safetensors.numpy import save_file

from llmcli.analysis.diff import compare
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.formats.checkpoint import load, save
from llmcli.formats.safetensors.header import read_header
from tests.cli.terminals import STYLES, in_a_terminal
from tests.conftest import TEXT, Llm


@pytest.fixture
def changed(tiny_model: Path) -> Path:
    """other.safetensors: the same model except for two tensors, a key of the config and the tokenizer."""
    model = load(tiny_model)
    tensors = {name: array.copy() for name, array in model.tensors.items()}
    tensors["model.norm.weight"] *= 1.5
    tensors["model.layers.1.mlp.up_proj.weight"][0] += 0.5
    tokenizer = Tokenizer.train_bpe([TEXT.upper()], 300)
    config = replace(model.config, rope_theta=500.0, vocab_size=300)
    save(Path("other.safetensors"), replace(
        model, tensors=tensors, config=config, tokenizer_source=tokenizer.to_json()
    ))  # fmt: skip
    return Path("other.safetensors")


def test_distances_are_relative_norms_and_the_most_distant_comes_first(tiny_model: Path, changed: Path) -> None:
    progress: list[float] = []
    difference = compare(read_header(tiny_model), read_header(changed), progress.append)
    a, b = load(tiny_model).tensors, load(changed).tensors
    expected = {name: np.linalg.norm(b[name] - a[name]) / np.linalg.norm(a[name]) for name in a}
    assert {t.name: t.distance for t in difference.tensors} == pytest.approx(expected, rel=1e-5)
    assert difference.tensors[0].distance == pytest.approx(0.5) and difference.tensors[0].name == "model.norm.weight"
    assert difference.tensors[1].largest == pytest.approx(0.5) and not any(t.distance for t in difference.tensors[2:])
    assert difference.config == {"rope_theta": (10000.0, 500.0)}
    assert progress[-1] == 1 and progress == sorted(progress)
    both = [set(Tokenizer.from_json(load(path).tokenizer_json).token_bytes) - {b""} for path in (tiny_model, changed)]
    assert difference.shared_tokens == len(both[0] & both[1]) < 295


def test_a_file_does_not_differ_from_itself(tiny_model: Path, llm: Llm) -> None:
    printed = json.loads(llm("inspect", tiny_model, "--diff", tiny_model, "--json").stdout)
    assert not any(t["distance"] or t["largest"] for t in printed["tensors"]) and len(printed["tensors"]) == 25
    assert (printed["config"], printed["tokenizer"], printed["shared_tokens"]) == ({}, {}, 295)
    assert "25 tensors are equal" in llm("inspect", "--diff", tiny_model).stdout


def test_files_of_other_programs_are_compared_by_name_and_shape() -> None:
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    save_file({"a": zeros, "b": ones, "c": ones, "n": ones * np.nan}, "a.safetensors")
    save_file({"a": ones, "b": np.ones((3, 1), np.float32), "d": ones, "n": ones}, "b.safetensors")
    difference = compare(read_header("a.safetensors"), read_header("b.safetensors"))
    assert {t.name for t in difference.tensors} == {"a", "n"}
    distances = {t.name: t.distance for t in difference.tensors}
    assert distances["a"] == math.inf and math.isnan(distances["n"])
    assert difference.reshaped == {"b": ((3,), (3, 1))} and difference.shared_tokens is None
    assert (difference.only_first, difference.only_other) == (("c",), ("d",))


def test_a_quantized_model_is_compared_by_its_dequantized_weights(tiny_model: Path) -> None:
    model = load(tiny_model)
    save(Path("int8.safetensors"), replace(model, quantization="int8"))
    difference = compare(read_header(tiny_model), read_header("int8.safetensors"))
    assert not difference.only_first and not difference.only_other
    assert 0 < difference.tensors[0].distance < 0.02


@pytest.mark.slow
def test_a_difference_as_json_and_in_a_terminal(llm: Llm, tiny_model: Path, changed: Path) -> None:
    printed = json.loads(llm("inspect", "--diff", changed, "--json").stdout)
    assert printed["config"] == {"rope_theta": [10000.0, 500.0]}
    for columns in ("80", "200"):
        shown = STYLES.sub("", in_a_terminal("inspect", "--diff", str(changed), COLUMNS=columns).split("\x1b[K")[-1])
        assert "rope_theta" in shown and "23 tensors are equal" in shown and "0.5000" in shown
        assert all(cell_len(line.rstrip()) <= int(columns) for line in shown.splitlines())
