"""Models in transformers' layout: directories are read as they were written, what differs in older files, and errors of
one line. tests/ecosystem compares tensors and logits with those of transformers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli.config import ARCHITECTURES, ModelConfig
from llmcli.errors import LLMError
from llmcli.formats import loading
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.header import TensorInfo
from llmcli.formats.huggingface import directory as hf_directory
from llmcli.formats.huggingface.conversion import convert_config, convert_tensors
from llmcli.formats.safetensors.file import read_tensor, write_tensors
from llmcli.formats.safetensors.header import read_header
from llmcli.formats.tensor_names import TRANSFORMERS
from tests.conftest import random_checkpoint

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"tie_word_embeddings": True},
    "gpt_neox": {"partial_rotary_factor": 2 / 3, "use_parallel_residual": True},
}


def write_model(kind: str, **more: Any) -> Checkpoint:
    """Write a directory of this name; returns the model that it holds."""
    model = random_checkpoint(ModelConfig(300, 12, 20, 2, 2, 2, 6, 16, model_type=kind, bos_token_id=3, **more))
    hf_directory.write(Path(kind), model, {}, "# A model\n")
    return model


def change_config(directory: str, **values: Any) -> None:
    path = Path(directory, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def test_an_architecture_with_other_names_of_tensors_is_a_row_and_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ARCHITECTURES["llama"]._replace(transformers_class="FooForCausalLM", qkv_bias=True)
    monkeypatch.setitem(ARCHITECTURES, "foo", row)
    names = {"foo.words": "model.embed_tokens", "foo.last": "model.norm", "out": "lm_head"}
    llama = ModelConfig(300, 12, 20, 1, 2, 2, 6, 16, model_type="llama")
    in_layer = [name.split(".", 3)[3].removesuffix(".weight") for name in llama.tensor_shapes() if ".0." in name]
    names |= {f"foo.#.{name.rpartition('.')[2]}": name for name in in_layer}
    monkeypatch.setitem(TRANSFORMERS, "foo", names)
    for kind, more in {"foo": {}, **FAMILIES}.items():
        model, back = write_model(kind, **more), loading.load(kind)
        assert back.config == model.config
        assert all(np.array_equal(back.tensors[name], tensor) for name, tensor in model.tensors.items()), kind
    stored = read_header("foo/model.safetensors").tensors
    assert {"foo.words.weight", "foo.1.q_proj.bias", "foo.0.down_proj.weight", "out.weight"} <= stored.keys()


def test_older_files_have_no_prefix_and_causal_masks() -> None:
    masks = {"h.0.attn.bias": np.ones((1, 1, 4, 4), "f4"), "layers.0.attention.masked_bias": np.zeros((), "f4")}
    for kind, more in FAMILIES.items():
        model = write_model(kind, **more)
        header = read_header(f"{kind}/model.safetensors")
        bare = {
            name.removeprefix("transformer.").removeprefix("gpt_neox."): read_tensor(header, tensor)
            for name, tensor in header.tensors.items()
        }
        write_tensors(header.path, bare | masks, {})
        older = loading.load(kind).tensors
        assert bare.keys() != header.tensors.keys() and older.keys() == model.tensors.keys()
        for name in older:
            np.testing.assert_array_equal(older[name], model.tensors[name])


def test_what_is_not_supported_names_the_key() -> None:
    for kind, change, message in (
        ("gpt2", {"scale_attn_weights": False}, "sets scale_attn_weights to false; supported: true"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx to true; supported: false"),
        ("gpt2", {"add_cross_attention": True}, "sets add_cross_attention to true; supported: false"),
        ("gpt2", {"activation_function": "relu"}, "sets hidden_act to 'relu'; supported: silu"),
        ("gpt2", {"n_head": "2"}, "num_attention_heads must be an integer, found '2'"),
        ("gpt2", {"n_layer": 2**31 - 1}, "its config has 2,147,483,647 layers, but the file has fewer tensors"),
        ("gpt2", {"n_positions": 20}, r"transformer.wpe.weight has shape \[16, 12\]; its config requires \[20, 12\]"),
        ("gpt2", {"n_inner": None}, r"c_fc.weight has shape \[12, 20\]; its config requires \[12, 48\]"),
        ("gpt_neox", {"attention_bias": False}, "sets attention_bias to false; supported: true"),
        ("gpt_neox", {"head_dim": 4}, "sets head_dim to 4; supported: hidden_size / num_attention_heads"),
        ("gpt_neox", {"rotary_pct": 0.5}, "partial_rotary_factor must be an even part of the head size 6, found 0.5"),
        ("gpt_neox", {"rotary_pct": "all"}, "partial_rotary_factor"),
        ("gpt_neox", {"use_parallel_residual": 2}, "use_parallel_residual must be true or false, found 2"),
    ):
        write_model(kind, **FAMILIES[kind])
        change_config(kind, **change)
        with pytest.raises(LLMError, match=message) as caught:
            loading.load(kind)
        assert "\n" not in str(caught.value)
        assert hf_directory.read_header(Path(kind)).problem  # llm inspect shows it
        shutil.rmtree(kind)


SHAPE: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "vocab_size": 300, "num_hidden_layers": 1, "max_position_embeddings": 64,
}  # fmt: skip
MULTIPLIERS = {
    "embedding_multiplier": 12.0, "attention_multiplier": 0.25, "residual_multiplier": 0.5, "logits_scaling": 8.0,
}  # fmt: skip
GRANITE = SHAPE | MULTIPLIERS | {"model_type": "granite", "rms_norm_eps": 1e-5}
PHI3 = SHAPE | {"model_type": "phi3", "vocab_size": 32064}


def test_the_parts_of_the_stacked_matrices_of_phi3_have_their_share_of_the_bytes() -> None:
    name = "model.layers.0.self_attn.{}_proj.weight"
    stored = TensorInfo(name.format("qkv"), "BF16", (32, 8), 0, 512)
    split = convert_tensors(PHI3, {stored.name: stored})
    found = [(tensor.shape, tensor.start, tensor.end) for tensor in (split[name.format(part)] for part in "qkv")]
    assert found == [((16, 8), 0, 256), ((8, 8), 256, 384), ((8, 8), 384, 512)]
    config = convert_config(PHI3)
    assert config["rms_norm_eps"] == 1e-5 and config["eos_token_id"] == 32000  # defaults


def test_what_cannot_be_converted_is_an_error() -> None:
    gate_up = TensorInfo("model.layers.0.mlp.gate_up_proj.weight", "BF16", (12, 8), 0, 0)
    cases = [
        (GRANITE | {"residual_multiplier": "2"}, "residual_multiplier to '2'; supported: a positive number"),
        (GRANITE | {"embedding_multiplier": 0}, "embedding_multiplier to 0; supported"),
        (GRANITE | {"attention_multiplier": True}, "attention_multiplier to True; supported"),
        (GRANITE | {"rms_norm_eps": None}, "rms_norm_eps to None; supported: a positive number"),
        (PHI3 | {"num_attention_heads": 0}, "num_attention_heads` must be between 1"),
        (PHI3 | {"intermediate_size": 7}, r"gate_up_proj.weight has shape \[12, 8\]; its config requires \[14, 8\]"),
    ]
    for config, message in cases:
        with pytest.raises(LLMError, match=message):
            convert_tensors(config, {gate_up.name: gate_up})


def test_the_weights_of_granite_that_are_multiplied_are_no_longer_in_16_bits() -> None:
    config = ModelConfig(300, 32, 48, 2, 4, 2, 8, 64, model_type="llama", rms_norm_eps=1e-5)
    model = random_checkpoint(config)
    halves = replace(model, dtypes=dict.fromkeys(config.tensor_shapes(), "F16"))
    hf_directory.write(Path("g"), halves, {}, "# A model\n")
    change_config("g", model_type="granite", **MULTIPLIERS)
    opened = loading.load("g")
    assert opened.config.rms_norm_eps == 1e-5 / 144
    residual = 0.5 / 12
    of_matrices = {"self_attn.q": 0.25 * 8**0.5, "self_attn.o": residual, "mlp.down": residual, "mlp.up": 1}
    factors = {f"layers.1.{name}_proj": factor for name, factor in of_matrices.items()} | {"norm": 1 / 8}
    for name, factor in factors.items():
        weight = f"model.{name}.weight"
        expected = model.tensors[weight].astype(np.float16).astype(np.float32) * np.float32(factor)
        np.testing.assert_allclose(opened.tensors[weight], expected, rtol=1e-6, strict=True)
        assert opened.dtypes.get(weight) == ("F16" if factor == 1 else None)
