"""A path becomes a header, and a header a model, in each format; each file is opened once to read its header."""

import builtins
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.formats import loading
from llmcli.formats.gguf import writer as gguf_writer
from llmcli.formats.huggingface import directory as hf_directory


@pytest.fixture
def paths(tiny_model: Path, tmp_path: Path) -> list[Path]:
    """One model as a file of our own, a Hugging Face directory and a GGUF file, whose names say nothing."""
    pytest.importorskip("gguf")
    model = loading.load(tiny_model)
    own, directory, gguf = (tmp_path / name for name in ("own", "directory", "gguf"))
    hf_directory.write(directory, model, {}, "# A model\n")
    tiny_model.rename(own)
    gguf_writer.write(gguf, model, "f32", {})
    return [own, directory, gguf]


def test_every_format_is_recognized_by_its_content(paths: list[Path]) -> None:
    first, *others = map(loading.load, paths)
    forms = [loading.read_header(path).form for path in paths]
    assert forms == ["safetensors file", "Hugging Face directory", "GGUF file"]
    for other in others:
        assert other.config.tensor_shapes() == first.config.tensor_shapes()
        assert all(np.array_equal(other.tensors[name], tensor) for name, tensor in first.tensors.items())


def test_each_file_is_opened_once_to_read_its_header(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Counter[str] = Counter()
    real = builtins.open

    def counting(file: Any, *args: Any, **options: Any) -> Any:
        opened[Path(file).name] += 1
        return real(file, *args, **options)

    monkeypatch.setattr(builtins, "open", counting)
    for path in paths:
        loading.read_header(path)
    assert opened >= Counter(["own", "config.json", "tokenizer.json", "model.safetensors", "gguf"])
    assert max(opened.values()) == 1, opened


def test_only_an_unchanged_model_has_the_fingerprint_of_its_source(tiny_model: Path) -> None:
    model = loading.load(tiny_model)
    record = model.record.without("train") | {"imported": {"sha256": "5"}}
    same = replace(model, record=record)
    assert loading.source_fingerprint(same) == "5"
    for changes in ({"train": {"steps": 1}}, {"adapter": "a"}, {"average_of": ["a"]}, {"imported": {}}):
        assert loading.source_fingerprint(replace(same, record=record | changes)) is None, changes
    assert loading.source_fingerprint(replace(same, quantization="int8")) is None
