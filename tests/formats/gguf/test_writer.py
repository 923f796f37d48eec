"""Writing a model as a GGUF; tests/ecosystem/test_architectures.py runs what is written."""

import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.config import ModelConfig, RopeScaling
from llmcli.data.tokenizers import tokenizer_json
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.formats import loading
from llmcli.formats.checkpoint import Checkpoint, ComputedTensors
from llmcli.formats.gguf import writer as gguf_writer
from llmcli.server.api.models import ServedModel
from tests.conftest import random_checkpoint
from tests.formats.gguf_by_hand import MODEL

gguf = pytest.importorskip("gguf", reason="needs the extra: pip install -e '.[gguf]'")


def model_with(tokenizer: Tokenizer, **changes: Any) -> Checkpoint:
    config = ModelConfig(tokenizer.vocab_size, 64, 96, 2, 4, 2, 16, 40, **changes)
    return random_checkpoint(config, tokenizer_json=tokenizer.to_json())


def test_writing_without_the_gguf_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(LLMError, match=r'pip install "llmcli\[gguf\]"'):
        gguf_writer.write(tmp_path / "m.gguf", MODEL, "f32", {})


def test_a_model_is_served_without_the_gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(Tokenizer.train_bpe(["the cat sat on the mat " * 50], 280))
    gguf_writer.write(tmp_path / "m.gguf", model, "q8_0", {})
    monkeypatch.setitem(sys.modules, "gguf", None)
    served = ServedModel(tmp_path / "m.gguf", None)
    assert served.source.shared.config == model.config
    for name, values in loading.load(tmp_path / "m.gguf").tensors.items():
        np.testing.assert_allclose(values, model.tensors[name], atol=0.01 * np.abs(model.tensors[name]).max())


def test_characters_that_sentencepiece_would_confuse_are_an_error(tmp_path: Path) -> None:
    model = model_with(Tokenizer.train_char([f"a {tokenizer_json.SPACE}"]))
    with pytest.raises(LLMError, match="both a space and"):
        gguf_writer.write(tmp_path / "b.gguf", model, "f32", {})


def test_rope_scaling_round_trips(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train_bpe(["the cat sat on the mat " * 50], 280)
    # the factors of Llama 3 do not determine its scaling
    for scaling in (RopeScaling("llama3", 32.0, 1.0, 2.0, 8192), RopeScaling("linear", 3.3)):
        model = model_with(tokenizer, rope_theta=500000.0, model_type="llama", rope_scaling=scaling)
        gguf_writer.write(tmp_path / "m.gguf", model, "f32", {})
        assert loading.load(tmp_path / "m.gguf").config == model.config, scaling


def test_rope_scaling_that_llama_cpp_does_not_support_is_an_error(tmp_path: Path) -> None:
    config = ModelConfig(300, 32, 64, 1, 4, 2, 8, 40, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32))
    with pytest.raises(LLMError, match="only in models of type llama, not qwen3; use `to` hf"):
        gguf_writer.write(tmp_path / "m.gguf", random_checkpoint(config), "f32", {})


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path, dtype: str) -> None:
    model = model_with(Tokenizer.train_char(["the cat"]))
    made: list[weakref.ref[np.ndarray]] = []

    def compute(name: str) -> np.ndarray:
        assert all(earlier() is None for earlier in made)
        array = model.tensors[name].copy()
        made.append(weakref.ref(array))
        return array

    streamed = replace(model, tensors=ComputedTensors(model.config.tensor_shapes(), compute))
    gguf_writer.write(tmp_path / "m.gguf", model, dtype, {})
    gguf_writer.write(tmp_path / "streamed.gguf", streamed, dtype, {})
    assert len(made) == len(model.tensors)
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "streamed.gguf").read_bytes()
